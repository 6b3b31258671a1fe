"""LoRA files of SDXL: reading diffusers' and kohya's layouts, and where in a base model they go."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from headshot_ui.families.lora_parts.fused import Piece
from headshot_ui.families.lora_parts.layers import DIFFUSERS, KOHYA_LAYOUT, LoraFile, weight_shapes
from headshot_ui.families.lora_parts.origin import SDXL, WITH_UNET, Shapes
from headshot_ui.families.lora_parts.reading import Names, read_lora
from headshot_ui.families.sdxl_parts.lora_names import PARTS, Topology, known_stems

OURS = (SDXL, WITH_UNET)
_KOHYA = re.compile(r"\.lora_(down|up)\.|\.(hada|lokr)_")


@dataclass(frozen=True)
class Place:
    """Where LoRAs can go in a base model: its linear layers and convolutions."""

    base: str  # title, for sentences
    shapes: Mapping[str, tuple[int, ...]]  # layer ("unet.…", see ``lora_names``) → shape of its weight
    topology: Topology


def place_of(base: str, modules: Mapping[str, torch.nn.Module], topology: Topology) -> Place:
    """Where LoRAs can go in these modules (``lora_names.PARTS`` → module); LoRAs that are on now do not matter."""
    return Place(base, weight_shapes(modules), topology)


def layout_of(shapes: Shapes) -> str:
    """Which of the two layouts the names of a file are in."""
    return KOHYA_LAYOUT if any(_KOHYA.search(name) for name in shapes) else DIFFUSERS


_NAMES = Names(OURS, PARTS, layout_of)


def read_lora_file(path: Path, place: Place, family: str) -> LoraFile:
    """See ``reading.read_lora``. Layers are called "unet.…", "text_encoder.…", "text_encoder_2.…"."""
    stems = {stem: (Piece(layer),) for stem, layer in known_stems(place.shapes, place.topology).items()}
    return read_lora(path, family, place.base, place.shapes, stems, _NAMES)
