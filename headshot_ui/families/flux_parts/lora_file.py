"""LoRA files of FLUX.1: reading them in every layout that ``lora_names`` knows, and where in a base model they go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from headshot_ui.families.flux_parts.lora_names import PARTS, is_unused, known_stems
from headshot_ui.families.lora_parts.layers import DIFFUSERS, KOHYA_LAYOUT, LoraFile, weight_shapes
from headshot_ui.families.lora_parts.origin import FLUX_1, LIKE_FLUX_1, LIKE_SD_3, Shapes
from headshot_ui.families.lora_parts.reading import Names, read_lora

#: Layouts that are read only: Black Forest Labs' names (ComfyUI, fal), those of XLabs.
BFL, XLABS = "bfl", "xlabs"
#: Double blocks alone have the names of Stable Diffusion 3's.
OURS = (FLUX_1, LIKE_FLUX_1, LIKE_SD_3)
_LAYOUTS = (
    (re.compile(r"_blocks.\d+.processor."), XLABS),
    (re.compile(r"^lora_unet_|^lora_te\d?_"), KOHYA_LAYOUT),
    (re.compile(r"(double|single)_blocks.\d+|final_layer"), BFL),
)


@dataclass(frozen=True)
class Place:
    """Where LoRAs can go in a base model: its linear layers."""

    base: str  # title, for sentences
    shapes: Mapping[str, tuple[int, ...]]  # layer ("transformer.…", see ``lora_names``) → shape of its weight


def place_of(base: str, modules: Mapping[str, torch.nn.Module]) -> Place:
    """Where LoRAs can go in these modules (``lora_names.PARTS`` → module); LoRAs that are on now do not matter."""
    return Place(base, weight_shapes(modules))


def layout_of(shapes: Shapes) -> str:
    """Which layout the names of a file are in."""
    return next((layout for mark, layout in _LAYOUTS if any(mark.search(name) for name in shapes)), DIFFUSERS)


_NAMES = Names(OURS, PARTS, layout_of, is_unused)


def read_lora_file(path: Path, place: Place, family: str) -> LoraFile:
    """See ``reading.read_lora``; layers: "transformer.…", "text_encoder.…" (CLIP), "text_encoder_2.…" (T5)."""
    return read_lora(path, family, place.base, place.shapes, known_stems(place.shapes), _NAMES)
