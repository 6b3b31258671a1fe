"""Bytes of a base model's parts and of what they compute with, told from headers and configs before it is loaded.

Weights are counted. What computing takes is as the family says, else by the figures below: those are for Stable
Diffusion XL in 16 bit and were measured with a full-size model at 1024 x 1024; for another model they go by the square
root of its parameters, which is about its width, and twice as much for 32 bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.families import is_trained, layer_shapes, weight_places, working_bytes
from headshot_ui.memory import FilePart, StoredTensor, files_bytes, read_header
from headshot_ui.specs import FULL, NONE, PARTIAL

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo, RefinerInfo

SDXL_DENOISER_PARAMETERS, SDXL_VAE_PARAMETERS = 2.567e9, 83.7e6
#: Bytes for each pixel of each picture in a batch.
DRAWING = 1200  # of the VAE: memory.DECODING and ENCODING
#: By ``specs.CHECKPOINTING``: none as measured on an H100 (``benchmarks/results/train-h100.json``), partial less what
#: it keeps less by ``benchmarks/activations.py``.
LEARNING: Mapping[str, int] = {NONE: 6000, PARTIAL: 3600, FULL: 900}


@dataclass(frozen=True)
class BaseParts:
    """Bytes of the weights of a base model or a refiner, by what they are for."""

    info: BaseInfo | RefinerInfo
    text: int
    vae: int
    denoiser: int
    item_bytes: int  # of one number in memory
    vae_item_bytes: int

    @classmethod
    def of(cls, info: BaseInfo | RefinerInfo, dtype: str) -> BaseParts:
        """By the headers of its files, in memory in ``dtype``. Raises ModelError."""
        text = vae = denoiser = 0
        for part, size in files_bytes(weight_places(info), dtype).items():
            if part.startswith("text_encoder"):
                text += size
            elif part.startswith("vae"):
                vae += size
            else:
                denoiser += size
        item = 4 if dtype == "float32" else 2
        wide = item == 2 and _computes_in_float32(info.folder / "vae" / "config.json")
        return cls(info, text, 2 * vae if wide else vae, denoiser, item, 4 if wide else item)

    def denoiser_working(self, bytes_per_pixel: float, pixels: int, batch: int, learning: str | None = None) -> int:
        """As the family says, else in proportion to SDXL's ``bytes_per_pixel`` of each of the pictures."""
        told = working_bytes(self.info, pixels, batch, learning, self.item_bytes)
        of_sdxl = bytes_per_pixel * pixels * batch
        return _working(self.denoiser, SDXL_DENOISER_PARAMETERS, self.item_bytes, of_sdxl) if told is None else told

    def vae_working(self, bytes_per_pixel: float, pixels: int) -> int:
        """In proportion to the ``bytes_per_pixel`` of SDXL's."""
        return _working(self.vae, SDXL_VAE_PARAMETERS, self.vae_item_bytes, bytes_per_pixel * pixels)


def _working(weights: int, sdxl_parameters: float, item_bytes: int, of_sdxl: float) -> int:
    width = math.sqrt(weights / item_bytes / sdxl_parameters)
    return int(of_sdxl * width * item_bytes / 2)


def _computes_in_float32(vae_config: Path) -> bool:
    """Whether a VAE asks for float32 beside a denoiser in 16 bit, as SDXL's own does."""
    try:
        return bool(json.loads(vae_config.read_text(encoding="utf-8")).get("force_upcast", True))
    except (OSError, ValueError, AttributeError):
        return False


def lora_bytes(info: BaseInfo, rank: int) -> int:
    """Bytes in float32 of a LoRA of that rank on every matrix of the denoiser that training puts one on."""
    return 4 * rank * sum(sum(shape) for shape in _lora_shapes(info))


def moments_bytes(info: BaseInfo, rank: int, optimizer: str) -> int:
    """Bytes of the two moments of every number of such a LoRA."""
    from headshot_ui.training.optimizers import moment_bytes

    return sum(moment_bytes(rank * side, optimizer) for shape in _lora_shapes(info) for side in shape)


def _lora_shapes(info: BaseInfo) -> list[tuple[int, ...]]:
    """(rows, columns) of the matrices that get a LoRA."""
    shapes = layer_shapes(info)
    if shapes is None:
        shapes = {tensor.name: tensor.shape for place in weight_places(info) for tensor in _denoiser_of(place)}
    return [tuple(shape) for name, shape in shapes.items() if len(shape) == 2 and is_trained(info, name)]


def _denoiser_of(place: Path | FilePart) -> Iterator[StoredTensor]:
    """The tensors of the denoiser of a folder in diffusers layout, or of a part that is one."""
    if isinstance(place, FilePart):
        if not place.name.startswith(("text_encoder", "vae")):
            yield from place.tensors()
        return
    for path in sorted(place.glob("*/*.safetensors")):
        if not path.parent.name.startswith(("text_encoder", "vae")) and not _is_double(path):
            yield from read_header(path)


def _is_double(path: Path) -> bool:
    """Whether the same weights lie beside it under the plain name."""
    return ".fp16." in path.name and path.with_name(path.name.replace(".fp16.", ".")).is_file()
