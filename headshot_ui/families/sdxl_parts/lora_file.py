"""LoRA files as they are: reading diffusers' and kohya's layouts, every tensor of them or none.

A layer's effect is ΔW = alpha / rank · up · down. Files say alpha beside each layer (kohya), in the header
(diffusers) or not at all, which means alpha = rank.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import weights_fault
from headshot_ui.families.sdxl_parts.lora_names import PARTS, Topology, in_files, known_stems, split
from headshot_ui.families.sdxl_parts.lora_origin import Shapes, does_not_fit, other_kind, refuse_no_lora, refuse_pickle

DIFFUSERS, KOHYA_LAYOUT = "diffusers", "kohya"
#: How the two matrices are called: in kohya's, peft's and three older layouts of diffusers.
_MATRIX = re.compile(
    r"^(?P<stem>.+?)(?:_lora|\.lora_linear_layer|\.lora)?[._](?:lora_)?"
    r"(?:(?P<down>A(?:\.\w+)?|down)|(?P<up>B(?:\.\w+)?|up))\.weight$"
)
_LORA_TENSOR = re.compile(r"lora(_[AB]|_linear_layer|_down|_up|\.down|\.up)\b|_lora\.(down|up)\.weight$")
_OLD_PROCESSOR = re.compile(r"\.processor\.(to_\w+)$")
_PEFT_PREFIX = "base_model.model."


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


@dataclass(frozen=True)
class Place:
    """Where LoRAs can go in a base model: its linear layers and convolutions."""

    base: str  # title, for sentences
    shapes: Mapping[str, tuple[int, ...]]  # layer ("unet.…", see ``lora_names``) → shape of its weight
    topology: Topology


@dataclass(frozen=True)
class LoraFile:
    """A LoRA that fits a base model."""

    path: Path
    layers: Mapping[str, LoraLayer]  # "unet.…", "text_encoder.…", "text_encoder_2.…" → its matrices
    header: Mapping[str, str]
    layout: str  # DIFFUSERS or KOHYA_LAYOUT

    def of_part(self, part: str) -> dict[str, LoraLayer]:
        """Path inside the part → its matrices."""
        return {split(layer)[1]: found for layer, found in self.layers.items() if split(layer)[0] == part}


def place_of(base: str, modules: Mapping[str, torch.nn.Module], topology: Topology) -> Place:
    """Where LoRAs can go in these modules (``lora_names.PARTS`` → module); LoRAs that are on now do not matter."""
    shapes = {}
    for part, module in modules.items():
        for path, layer in module.named_modules():
            plain = getattr(layer, "base_layer", layer)
            inner = ".lora_" in path or path.endswith(".base_layer")
            if isinstance(plain, (torch.nn.Linear, torch.nn.Conv2d)) and not inner:
                shapes[in_files(part, path)] = tuple(plain.weight.shape)
    return Place(base, shapes, topology)


def read_lora_file(path: Path, place: Place, family: str) -> LoraFile:
    """Read a LoRA whole. Nothing in it is passed over: what has no place in the base model is refused.

    Raises ModelError, saying what the file is, when it is missing, damaged, a pickle, no LoRA, another kind of LoRA,
    or made for another family or size.
    """
    check_readable(path)
    tensors, header = read_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_kind(path, header, shapes, family)
    stems = known_stems(place.shapes, place.topology)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        stem, role = told_apart(name)
        layer = stems.get(stem)
        if layer is None or role in found.setdefault(layer, {}):
            raise does_not_fit(path, header, shapes, place.base, name)
        found[layer][role] = tensor
    layers = {layer: _layer(path, layer, matrices) for layer, matrices in found.items()}
    for layer, matrices in layers.items():
        if not _fits(matrices, place.shapes[layer]):
            raise does_not_fit(path, header, shapes, place.base, layer)
    return LoraFile(path, _with_alphas(path, layers, header), header, layout_of(shapes))


def check_readable(path: Path) -> None:
    """Raise ModelError for a LoRA that is not there, a pickle, or damaged."""
    refuse_pickle(path)
    if not path.is_file():
        raise ModelError(f"The LoRA {path} is not there: train one, or choose another.")
    if path.stat().st_size == 0:
        raise ModelError(f"The LoRA {path} is damaged (an empty file): get it again, or choose another.")
    fault = weights_fault(path)
    if fault:
        raise ModelError(f"The LoRA {path} is {fault}: get or train it again, or choose another.")


def check_kind(path: Path, header: Mapping[str, str], shapes: Shapes, family: str) -> None:
    """Raise ModelError for what is no plain LoRA, or says in its header that it is for another family of ours."""
    made_for = header.get("family", family)
    if made_for != family:
        raise ModelError(f"{path} was trained for the family “{made_for}”, not for “{family}”: choose another LoRA.")
    refuse_no_lora(path, shapes, _LORA_TENSOR)
    other = other_kind(shapes)
    if other:
        raise ModelError(f"{path} is {other}, which cannot be applied exactly here: choose a plain LoRA.")


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file. Raises ModelError when it cannot be read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"The LoRA {path} is damaged: get or train it again, or choose another.") from error


def told_apart(name: str) -> tuple[str, str]:
    """A tensor's name as (stem with underscores for dots, "down", "up", "alpha" or ""); "" for what is none of them."""
    name = name.removeprefix(_PEFT_PREFIX)
    if name.endswith(".alpha"):
        stem, role = name.removesuffix(".alpha"), "alpha"
    else:
        match = _MATRIX.match(name)
        if match is None:
            return name.replace(".", "_"), ""
        stem, role = match["stem"], "down" if match["down"] else "up"
    stem = _OLD_PROCESSOR.sub(lambda found: f".{found[1]}{'.0' if found[1] == 'to_out' else ''}", stem)
    return stem.replace(".", "_"), role


def layout_of(shapes: Shapes) -> str:
    """Which of the two layouts the names of a file are in."""
    return KOHYA_LAYOUT if any(".lora_down." in name or ".lora_up." in name for name in shapes) else DIFFUSERS


def _layer(path: Path, layer: str, matrices: Mapping[str, torch.Tensor]) -> LoraLayer:
    try:
        alpha = matrices.get("alpha")
        made = LoraLayer(matrices["down"], matrices["up"], None if alpha is None else alpha.reshape(()))
    except (KeyError, RuntimeError) as error:
        part, inner = split(layer)
        raise ModelError(
            f"The LoRA {path} is incomplete (half of “{inner}” in the {PARTS[part]} is missing): choose another."
        ) from error
    tensors = [made.down, made.up, *([] if made.alpha is None else [made.alpha])]
    if not all(tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in tensors):
        raise ModelError(f"The LoRA {path} holds numbers that are not finite: train it again, or choose another.")
    return made


def _fits(layer: LoraLayer, weight: tuple[int, ...]) -> bool:
    down, up = tuple(layer.down.shape), tuple(layer.up.shape)
    if layer.rank < 1 or len(down) != len(weight) or len(up) != len(weight):
        return False
    return down[1:] == weight[1:] and up[:2] == (weight[0], layer.rank) and all(side == 1 for side in up[2:])


# --- alpha from the header ------------------------------------------------------------------------------------
def _with_alphas(path: Path, layers: Mapping[str, LoraLayer], header: Mapping[str, str]) -> dict[str, LoraLayer]:
    """The layers with the alphas that diffusers writes into the header, for those without one of their own."""
    text = header.get("lora_adapter_metadata")
    if not text:
        return dict(layers)
    try:
        settings: dict[str, Any] = json.loads(text)
        return {layer: _with_alpha(layer, found, settings) for layer, found in layers.items()}
    except (ValueError, AttributeError, TypeError, re.error) as error:
        raise ModelError(f"The header of the LoRA {path} is damaged: train it again, or choose another.") from error


def _with_alpha(layer: str, found: LoraLayer, settings: Mapping[str, Any]) -> LoraLayer:
    part, path = split(layer)
    alpha = settings.get(f"{part}.lora_alpha")
    for pattern, other in (settings.get(f"{part}.alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            alpha = other
            break
    if alpha is None or found.alpha is not None:
        return found
    if settings.get(f"{part}.use_rslora"):  # scaled by the square root of the rank instead
        alpha = float(alpha) * math.sqrt(found.rank)
    return LoraLayer(found.down, found.up, torch.tensor(float(alpha)))


def commonest(numbers: Any) -> float:
    """The number that occurs most often; the larger one of equally frequent ones."""
    return max(Counter(numbers).items(), key=lambda item: (item[1], item[0]))[0]  # type: ignore[no-any-return]
