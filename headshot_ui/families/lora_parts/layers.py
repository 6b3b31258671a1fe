"""LoRA layers in memory, and what their tensors are called in files.

A layer's effect is ΔW = alpha / rank · up · down, or that of a relative (``relatives``). Files say alpha beside each
layer (kohya), in the header (diffusers) or not at all, which means alpha = rank.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headshot_ui.families.lora_parts.relatives import TENSOR, RelatedLayer

#: How the two matrices are called: in kohya's, peft's and three older layouts of diffusers.
_MATRIX = re.compile(
    r"^(?P<stem>.+?)(?:_lora|\.lora_linear_layer|\.lora)?[._](?:lora_)?"
    r"(?:(?P<down>A(?:\.\w+)?|down)|(?P<up>B(?:\.\w+)?|up))\.weight$"
)
_OLD_PROCESSOR = re.compile(r"\.processor\.(to_\w+)$")
_PEFT_PREFIX = "base_model.model."
TEXT_MODEL = "text_model."

#: Layouts that LoRAs are written in.
DIFFUSERS, KOHYA_LAYOUT = "diffusers", "kohya"


@dataclass(frozen=True)
class LoraLayer:
    """One layer's pair of matrices, in the dtype of the file, on the CPU."""

    down: torch.Tensor  # (rank, in) or, for a convolution, (rank, in, height, width)
    up: torch.Tensor  # (out, rank) or (out, rank, 1, 1)
    alpha: torch.Tensor | None = None  # 0-d, as in the file; None: equal to the rank

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])

    @property
    def strength(self) -> float:
        """alpha, whichever way it was told."""
        return float(self.rank) if self.alpha is None else float(self.alpha)


Layer = LoraLayer | RelatedLayer


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that fits a base model."""

    path: Path
    layers: Mapping[str, Layer]  # part and path in diffusers' classes, "unet.mid_block.…" → its matrices
    header: Mapping[str, str]
    layout: str  # what the family calls the way it is written

    def of_part(self, part: str) -> dict[str, Layer]:
        """Path inside the part → its matrices."""
        return {split(layer)[1]: found for layer, found in self.layers.items() if split(layer)[0] == part}


# --- names ----------------------------------------------------------------------------------------------
def split(layer: str) -> tuple[str, str]:
    """Part and path of a layer."""
    part, _, path = layer.partition(".")
    return part, path


def in_files(part: str, path: str) -> str:
    """The name of a layer of a loaded module.

    transformers 5 took ``text_model.`` out of CLIP's text encoder; in files it stays, because every other program
    still looks for it.
    """
    inside_text_model = path.startswith(("encoder.layers.", "embeddings."))
    return f"{part}.{TEXT_MODEL}{path}" if inside_text_model else f"{part}.{path}"


def weight_shapes(modules: Mapping[str, torch.nn.Module]) -> dict[str, tuple[int, ...]]:
    """Where LoRAs can go in these modules (by part): layer → shape of its weight. LoRAs that are on do not matter."""
    shapes = {}
    for part, module in modules.items():
        for path, layer in module.named_modules():
            plain = getattr(layer, "base_layer", layer)
            inner = ".lora_" in path or path.endswith(".base_layer")
            if isinstance(plain, (torch.nn.Linear, torch.nn.Conv2d)) and not inner:
                shapes[in_files(part, path)] = tuple(plain.weight.shape)
    return shapes


def told_apart(name: str) -> tuple[str, str]:
    """A tensor's name as (stem with underscores for dots, role); "" for what is neither a LoRA's nor a relative's.

    Roles are "down", "up", "alpha" and those of ``relatives.TENSOR``.
    """
    name = name.removeprefix(_PEFT_PREFIX)
    if name.endswith(".alpha"):
        stem, role = name.removesuffix(".alpha"), "alpha"
    elif relative := TENSOR.match(name):
        stem, role = relative["stem"], relative["role"]
    else:
        match = _MATRIX.match(name)
        if match is None:
            return name.replace(".", "_"), ""
        stem, role = match["stem"], "down" if match["down"] else "up"
    stem = _OLD_PROCESSOR.sub(lambda found: f".{found[1]}{'.0' if found[1] == 'to_out' else ''}", stem)
    return stem.replace(".", "_"), role


# --- numbers --------------------------------------------------------------------------------------------
def commonest(numbers: Any) -> float:
    """The number that occurs most often; the larger one of equally frequent ones."""
    return max(Counter(numbers).items(), key=lambda item: (item[1], item[0]))[0]  # type: ignore[no-any-return]


def exactly(number: float, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """A 0-d tensor of ``dtype``, or of the smallest larger type that holds the number as it is."""
    for one in (dtype, torch.float32):
        made = torch.tensor(number, dtype=one)
        if float(made) == number:
            return made
    return torch.tensor(number, dtype=torch.float64)
