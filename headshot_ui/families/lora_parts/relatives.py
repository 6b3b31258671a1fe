"""LoRA's relatives: LoHa, LoKr, a LoRA with a third matrix, and each of them as a DoRA; what a layer adds to a weight.

With ⊙ for numbers multiplied one by one, ⊗ for Kronecker's product, r for the rank and s = alpha / r:

    LoHa                ΔW = s · (w1_a · w1_b) ⊙ (w2_a · w2_b)
    LoKr                ΔW = s · w1 ⊗ w2            each whole, or a product w_a · w_b; s = 1 where both are whole
    three matrices      ΔW[p, q, k, l] = s · Σij mid[i, j, k, l] · up[p, i] · down[j, q]
    with a core (t1, t2) w[p, q, k, l] = Σij t[i, j, k, l] · w_a[i, p] · w_b[j, q]
    DoRA                ΔW' = m · (W + ΔW) / ‖W + ΔW‖ - W    lengths by output, m of shape (out, 1, …), or by input

Names, shapes and formulas are those of LyCORIS (https://github.com/KohakuBlueleaf/LyCORIS, ``lycoris/modules`` and
``lycoris/functional``), which ComfyUI reads as well (``comfy/weight_adapter``); ``lora_magnitude_vector`` is what peft
calls m. ComfyUI divides by ‖W‖ where lengths go by output; here it is the length that the training divided by.

A weight w of use means w · ΔW', so that 0 is no LoRA, as in ComfyUI; a DoRA is measured against the bare W, whatever
other LoRAs are on. ΔW is computed each time from its few numbers, in float32: kept whole, those of SDXL's UNet would
take as much memory as the UNet. A layer then takes twice its time, nearly all of it for the second product.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from headshot_ui.families.lora_parts.base_layer import computing_dtype, full_weight

Factors = Mapping[str, torch.Tensor]
Rows = tuple[tuple[int, int], ...]  # (start, stop) pairs, one after the other

LOHA, LOKR, THREE, DORA = "LoHa", "LoKr", "LoCon", "DoRA"
#: What the tensors of a layer are called behind its name.
TENSOR = re.compile(
    r"^(?P<stem>.+)\.(?P<role>hada_(?:w[12]_[ab]|t[12])|lokr_(?:w[12](?:_[ab])?|t2)|lora_mid(?=\.weight$)|dora_scale|"
    r"lora_magnitude_vector)(?:\.default)?(?:\.weight)?$"
)
MID, SCALE, MAGNITUDE = "lora_mid", "dora_scale", "lora_magnitude_vector"
_PLAIN = {"down", "up"}
_HADA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
#: Tensors that belong together.
_SETS: tuple[frozenset[str], ...] = (
    frozenset(_PLAIN),
    frozenset(_PLAIN | {MID}),
    frozenset(_HADA),
    frozenset(_HADA | {"hada_t1", "hada_t2"}),
    *(
        frozenset(first | second)
        for first in ({"lokr_w1"}, {"lokr_w1_a", "lokr_w1_b"})
        for second in ({"lokr_w2"}, {"lokr_w2_a", "lokr_w2_b"}, {"lokr_w2_a", "lokr_w2_b", "lokr_t2"})
    ),
)


@dataclass(frozen=True)
class RelatedLayer:
    """One layer of such a file, in the dtype of the file, on the CPU."""

    factors: Factors  # by role, see ``TENSOR``; "down" and "up" for the matrices of a LoRA
    alpha: torch.Tensor | None  # 0-d, as in the file; None: equal to the rank
    lengths: torch.Tensor | None = None  # DoRA's m, (out, 1, …) or (1, in, …)
    rows: Rows | None = None  # those of the outputs that count; None: all
    out: int = 0  # outputs that the factors make, where only some of them count

    @property
    def rank(self) -> int | None:
        """None where nothing is split, and so nothing scaled."""
        return rank_of(self.factors)

    @property
    def scale(self) -> float:
        return _scale(self.factors, self.alpha)

    def change(self, factors: Factors, weight: tuple[int, ...]) -> torch.Tensor:
        """ΔW of the shape ``weight`` from copies of this layer's factors somewhere; lengths do not count yet."""
        scale = _scale(factors, self.alpha)
        if self.rows is None:
            return product(factors, weight) * scale
        whole = product(factors, (self.out, *weight[1:]))
        return torch.cat([whole[start:stop] for start, stop in self.rows]) * scale


def kind_of(roles: Collection[str]) -> str:
    """What a layer with tensors of these roles is called, for people: "LoRA" for a plain one."""
    found = {role.partition("_")[0] for role in roles}
    kind = LOHA if "hada" in found else LOKR if "lokr" in found else THREE if MID in roles else "LoRA"
    if not {SCALE, MAGNITUDE} & set(roles):
        return kind
    return DORA if kind == "LoRA" else f"{kind} with {DORA}"


def related_layer(matrices: Mapping[str, torch.Tensor], weight: tuple[int, ...]) -> RelatedLayer | None:
    """The layer of these tensors by role, "alpha" too; None where they do not belong together or to such a weight.

    Raises KeyError where one is missing.
    """
    factors = {role: one for role, one in matrices.items() if role not in ("alpha", SCALE, MAGNITUDE)}
    if factors.keys() not in _SETS:
        raise KeyError
    alpha, lengths = matrices.get("alpha"), _lengths(matrices, weight)
    made = RelatedLayer(factors, None if alpha is None else alpha.reshape(()), lengths)
    if {SCALE, MAGNITUDE} & matrices.keys() and lengths is None:
        return None
    try:
        there = product({role: one.to("meta") for role, one in factors.items()}, weight)
    except (RuntimeError, ValueError, IndexError):  # matrices that cannot be multiplied
        return None
    return made if tuple(there.shape) == weight else None


def rows_of(layer: RelatedLayer, rows: Rows, out: int) -> RelatedLayer | None:
    """Some of the ``out`` outputs of a layer; None for a DoRA whose lengths go along all of them."""
    lengths = layer.lengths
    if lengths is not None:
        if lengths.shape[0] == 1:
            return None
        lengths = torch.cat([lengths[start:stop] for start, stop in rows])
    return replace(layer, lengths=lengths, rows=rows, out=out)


def _lengths(matrices: Mapping[str, torch.Tensor], weight: tuple[int, ...]) -> torch.Tensor | None:
    ones = tuple(1 for _ in weight[2:])
    if SCALE in matrices:
        shape = tuple(matrices[SCALE].shape)
        return matrices[SCALE] if shape in ((weight[0], 1, *ones), (1, weight[1], *ones)) else None
    found = matrices.get(MAGNITUDE)
    if found is None or found.numel() != weight[0]:
        return None
    return found.reshape(weight[0], 1, *ones)


def rank_of(factors: Factors) -> int | None:
    for role in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b"):
        if role in factors:
            return int(factors[role].shape[0])
    return None


def _scale(factors: Factors, alpha: torch.Tensor | None) -> float:
    rank = rank_of(factors)
    return 1.0 if rank is None or alpha is None else float(alpha) / rank


def product(factors: Factors, weight: tuple[int, ...]) -> torch.Tensor:
    """ΔW of the shape ``weight``, before it is scaled.

    Raises RuntimeError or ValueError for matrices that fit neither each other nor the weight.
    """
    if MID in factors:
        made = _with_core(factors[MID], factors["up"].flatten(1).T, factors["down"].flatten(1))
    elif "down" in factors:
        made = factors["up"].flatten(1) @ factors["down"].flatten(1)
    elif "hada_w1_a" in factors:
        made = _whole(factors, "hada_w1", "hada_t1") * _whole(factors, "hada_w2", "hada_t2")
    else:
        first, second = _whole(factors, "lokr_w1", ""), _whole(factors, "lokr_w2", "lokr_t2")
        made = torch.kron(first.reshape(*first.shape, *(1 for _ in second.shape[2:])), second)
    if made.shape[0] != weight[0] or (made.dim() > 2 and tuple(made.shape) != weight):
        raise ValueError("another weight's")  # with as many numbers, in another order
    return made.reshape(weight)


def _whole(factors: Factors, name: str, core: str) -> torch.Tensor:
    if name in factors:
        return factors[name]
    first, second = factors[f"{name}_a"], factors[f"{name}_b"]
    return _with_core(factors[core], first, second) if core in factors else first @ second


def _with_core(core: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    made: torch.Tensor = torch.einsum("ijkl,ip,jq->pqkl", core, first, second)
    return made.contiguous()  # torch.kron asks for it


class Change(torch.nn.Module):
    """What a layer adds to the output of ``base``, a linear layer or convolution, as the lower half of a peft layer.

    ``weight`` is there because peft asks for its dtype, that of the computing. The base is no child of this one: its
    weights are not ours.
    """

    def __init__(self, base: Any, layer: RelatedLayer) -> None:
        super().__init__()
        self._base, self._layer = (base,), replace(layer, factors={}, lengths=None)  # the tensors are here
        self._longer: torch.nn.Parameter | None = None
        place, dtype = base.weight.device, computing_dtype(base)
        self._factors = torch.nn.ParameterDict(
            {role: _frozen(one.to(place, dtype, copy=True)) for role, one in layer.factors.items()}
        )
        if layer.lengths is not None:
            self._longer = _frozen(self._times_longer(layer).to(dtype))

    @property
    def weight(self) -> torch.Tensor:
        base = self._base[0]
        found: torch.Tensor = base.weight if base.weight.is_floating_point() else next(iter(self._factors.values()))
        return found

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        base, change = self._base[0], self.change().to(x.dtype)
        if isinstance(base, torch.nn.Conv2d):
            convolved: torch.Tensor = base._conv_forward(x, change, None)
            return convolved
        return torch.nn.functional.linear(x, change)

    def change(self) -> torch.Tensor:
        """ΔW', float32."""
        shape = tuple(self._base[0].weight.shape)
        made = self._layer.change({role: one.float() for role, one in self._factors.items()}, shape)
        return made if self._longer is None else made + self._longer.float() * (full_weight(self._base[0]) + made)

    def _times_longer(self, layer: RelatedLayer) -> torch.Tensor:
        """m / ‖W + ΔW‖ - 1: so small a number keeps its digits in 16 bits, which the quotient itself would not."""
        assert layer.lengths is not None
        weight = full_weight(self._base[0])
        factors = {role: one.to(weight.device).float() for role, one in layer.factors.items()}
        summed = weight + layer.change(factors, tuple(weight.shape))
        wanted = layer.lengths.to(weight.device).float()
        kept = 0 if wanted.shape[1] == 1 else 1
        along = [axis for axis in range(summed.dim()) if axis != kept]
        length: torch.Tensor = torch.linalg.vector_norm(summed, dim=along, keepdim=True)
        return wanted / (length + torch.finfo(torch.float32).eps) - 1


def _frozen(tensor: torch.Tensor) -> torch.nn.Parameter:
    return torch.nn.Parameter(tensor, requires_grad=False)
