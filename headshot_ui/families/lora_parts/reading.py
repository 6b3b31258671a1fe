"""LoRA files as they are: every tensor of them or none, in whichever layout a family's names say."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import weights_fault
from headshot_ui.families.lora_parts.fused import Piece, divided
from headshot_ui.families.lora_parts.layers import Layer, LoraFile, LoraLayer, split, told_apart
from headshot_ui.families.lora_parts.origin import (
    ForeignLora,
    Shapes,
    does_not_fit,
    other_kind,
    refuse_no_lora,
    refuse_pickle,
)
from headshot_ui.families.lora_parts.relatives import related_layer

_LORA_TENSOR = re.compile(
    r"lora(_[AB]|_linear_layer|_down|_up|\.down|\.up)\b|_lora\d?\.(down|up)\.weight$|\.(hada|lokr)_[wt][12]"
)
_DIFFERENCE = re.compile(r"\.(diff|diff_b)$")


def _none(_stem: str) -> bool:
    return False


@dataclass(frozen=True)
class Names:
    """What a family's LoRA files call things."""

    ours: Collection[str]  # kinds of ``origin`` that are this family's
    parts: Mapping[str, str]  # part of a base model → what people call it
    layout_of: Callable[[Shapes], str]  # which layout names are in
    unused: Callable[[str], bool] = _none  # whether a stem's layer is never computed with, so that nothing is lost


def read_lora(
    path: Path,
    family: str,
    base: str,
    shapes: Mapping[str, tuple[int, ...]],
    stems: Mapping[str, tuple[Piece, ...]],
    names: Names,
) -> LoraFile:
    """Read a LoRA whole. Nothing that has an effect is passed over: what has no place in the base model is refused.

    ``shapes`` are those of the weights of ``base`` (a title); ``stems`` says what of them each name in files means.
    Raises ModelError, saying what the file is, when it is missing, damaged, a pickle, no LoRA, another kind of LoRA,
    or made for another family or size.
    """
    check_readable(path)
    tensors, header = read_tensors(path)
    told = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_kind(path, header, told, family)
    layers: dict[str, Layer] = {}
    passed_over = ""
    for stem, (first, matrices) in by_stem(path, tensors).items():
        pieces = stems.get(stem)
        if pieces is None and (names.unused(stem) or is_nothing(matrices)):
            passed_over = first
            continue
        if pieces is None or "" in matrices:
            raise does_not_fit(path, header, told, base, first, names.ours)
        weight = _weight(pieces, shapes)
        made = _layer(path, pieces[0].layer, matrices, weight, names)
        if made is None or (isinstance(made, LoraLayer) and not _fits(made, weight)):
            at = pieces[0].layer if len(pieces) == 1 else stem
            raise does_not_fit(path, header, told, base, at, names.ours)
        for layer, one in _divided(path, made, pieces).items():
            if layer in layers:
                raise ModelError(f"The LoRA {path} says twice how “{layer}” changes: choose another.")
            layers[layer] = one
    if not layers:
        raise does_not_fit(path, header, told, base, passed_over, names.ours)
    return LoraFile(path, _with_alphas(path, layers, header), header, names.layout_of(told))


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
        raise ForeignLora(f"{path} was trained for the family “{made_for}”, not for “{family}”: choose another LoRA.")
    refuse_no_lora(path, shapes, _LORA_TENSOR)
    other = other_kind(shapes)
    if other:
        raise ModelError(f"{path} is {other}, which cannot be applied exactly here: choose a plain LoRA.")


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file, without differences of zero, which some programs write beside a LoRA.

    Raises ModelError when it cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            header = dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"The LoRA {path} is damaged: get or train it again, or choose another.") from error
    kept = {name: one for name, one in tensors.items() if not _DIFFERENCE.search(name) or bool(one.any())}
    return kept, header


def by_stem(path: Path, tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[str, dict[str, torch.Tensor]]]:
    """Stem → the whole name of its first tensor, and its tensors by role. Raises ModelError."""
    found: dict[str, tuple[str, dict[str, torch.Tensor]]] = {}
    for name, tensor in tensors.items():
        stem, role = told_apart(name)
        matrices = found.setdefault(stem, (name, {}))[1]
        if role in matrices:
            raise ModelError(f"The LoRA {path} says twice how “{stem}” changes: choose another.")
        matrices[role] = tensor
    return found


def is_nothing(matrices: Mapping[str, torch.Tensor]) -> bool:
    """Whether a plain layer has no effect, so that nothing is lost with it."""
    return {"down", "up"} <= matrices.keys() <= {"down", "up", "alpha"} and not bool(matrices["up"].any())


def _weight(pieces: tuple[Piece, ...], shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """Shape of the weight that a layer in a file is for."""
    return (sum(shapes[piece.layer][0] for piece in pieces), *shapes[pieces[0].layer][1:])


def _divided(path: Path, made: Layer, pieces: tuple[Piece, ...]) -> dict[str, Layer]:
    found = divided(made, pieces)
    if found is None:
        several = ", ".join(f"“{piece.layer}”" for piece in pieces)
        raise ModelError(
            f"The LoRA {path} changes {several} in one piece of a kind that cannot be told apart exactly: "
            "choose a plain LoRA."
        )
    return found


def _layer(
    path: Path, layer: str, matrices: Mapping[str, torch.Tensor], weight: tuple[int, ...], names: Names
) -> Layer | None:
    """None where the matrices do not fit each other or the weight; a plain LoRA's are looked at afterwards."""
    made: Layer | None
    try:
        if matrices.keys() <= {"down", "up", "alpha"}:
            alpha = matrices.get("alpha")
            made = LoraLayer(matrices["down"], matrices["up"], None if alpha is None else alpha.reshape(()))
        else:
            made = related_layer(matrices, weight)
    except (KeyError, RuntimeError) as error:
        part, inner = split(layer)
        raise ModelError(
            f"The LoRA {path} is incomplete (half of “{inner}” in the {names.parts[part]} is missing): choose another."
        ) from error
    if not all(tensor.is_floating_point() and bool(tensor.isfinite().all()) for tensor in matrices.values()):
        raise ModelError(f"The LoRA {path} holds numbers that are not finite: train it again, or choose another.")
    return made


def _fits(layer: LoraLayer, weight: tuple[int, ...]) -> bool:
    down, up = tuple(layer.down.shape), tuple(layer.up.shape)
    if layer.rank < 1 or len(down) != len(weight) or len(up) != len(weight):
        return False
    return down[1:] == weight[1:] and up[:2] == (weight[0], layer.rank) and all(side == 1 for side in up[2:])


# --- alpha from the header ------------------------------------------------------------------------------------
def _with_alphas(path: Path, layers: Mapping[str, Layer], header: Mapping[str, str]) -> dict[str, Layer]:
    """The layers with the alphas that diffusers writes into the header, for those without one of their own."""
    text = header.get("lora_adapter_metadata")
    if not text:
        return dict(layers)
    try:
        settings: dict[str, Any] = json.loads(text)
        return {layer: _with_alpha(layer, found, settings) for layer, found in layers.items()}
    except (ValueError, AttributeError, TypeError, re.error) as error:
        raise ModelError(f"The header of the LoRA {path} is damaged: train it again, or choose another.") from error


def _with_alpha(layer: str, found: Layer, settings: Mapping[str, Any]) -> Layer:
    part, path = split(layer)
    alpha = settings.get(f"{part}.lora_alpha")
    for pattern, other in (settings.get(f"{part}.alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", path):
            alpha = other
            break
    if alpha is None or found.alpha is not None or found.rank is None:
        return found
    if settings.get(f"{part}.use_rslora"):  # scaled by the square root of the rank instead
        alpha = float(alpha) * math.sqrt(found.rank)
    return replace(found, alpha=torch.tensor(float(alpha)))
