"""Linear layers with a LoRA that is being trained: y = W x + b + s·B (A x), forwards and backwards.

The same numbers as peft's own layers under autocast, in less than half as many kernels: what is added is added by the
product that makes it, no cast stands between, gradients leave in float32 without having been rounded first, and
layers that read the same input (query, key and value) share the products with A. On a card a training step of SDXL is
as long as its kernels are many.

The matrices stay in float32, because in half precision most updates would be rounded away. Layers compute with a copy
of them in their own number format, which ``refresh`` brings up to date in a few kernels for all layers together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from headshot_ui.families.lora_parts import whole_products

_GROUP = "_headshot_ui_group"


@dataclass(frozen=True)
class Piece:
    """A layer, or some of its outputs, as it computes."""

    weight: torch.Tensor  # (out, in)
    bias: torch.Tensor | None  # (out,)
    up: torch.Tensor  # (out, r), the copy of B
    inner: slice  # its columns of ``inner``, which the products with every A stand side by side in
    factors: torch.Tensor | None = None  # of a weight in 8 bit: what each row is multiplied with, (out, 1)


#: Of layers whose weights are whole numbers (int8): what each row is multiplied with, (out, 1); None for others.
Factors = tuple[torch.Tensor | None, ...]


def full(weight: torch.Tensor, factors: torch.Tensor | None, rows: torch.Tensor) -> torch.Tensor:
    """A weight as it is multiplied with ``rows``; it is not kept, so it is made again for the gradients."""
    return weight if factors is None else weight * factors.to(rows.dtype)


def forwards(
    rows: torch.Tensor, inner: torch.Tensor, piece: Piece, scale: float, after: torch.Tensor | None = None
) -> torch.Tensor:
    """(N, in) to (N, out), given ``inner`` = rows @ downs.T (N, R). For ``after`` see ``whole_products.product``."""
    given = rows, inner[:, piece.inner], piece.weight, piece.factors, piece.bias, piece.up, scale
    if not torch.compiler.is_compiling():
        return _forwards(*given)
    out: torch.Tensor = _whole_forwards(*given, after)
    return out


def _forwards(
    rows: torch.Tensor,
    inner: torch.Tensor,
    weight: torch.Tensor,
    factors: torch.Tensor | None,
    bias: torch.Tensor | None,
    up: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    weight = full(weight, factors, rows)
    out = rows @ weight.T if bias is None else torch.addmm(bias, rows, weight.T)
    return out.addmm_(inner, up.T, alpha=scale)


def backwards(
    grads: Sequence[torch.Tensor],
    pieces: Sequence[Piece],
    rows: torch.Tensor,
    inner: torch.Tensor,
    downs: torch.Tensor,
    scale: float,
    wants_rows: bool,
) -> tuple[torch.Tensor | None, torch.Tensor, list[torch.Tensor]]:
    """Gradients of ``rows`` (None unless wanted), of every A as ``downs`` has them (R, in), and of each piece's B.

    ``grads`` (N, out) are those of the pieces' outputs. Those of the matrices are float32.
    """
    if not torch.compiler.is_compiling():
        return _backwards(grads, pieces, rows, inner, downs, scale, wants_rows)
    starts = [piece.inner.start for piece in pieces]
    layers = ([getattr(piece, name) for piece in pieces] for name in ("weight", "factors", "up"))
    made = _whole_backwards(list(grads), *layers, starts, rows, inner, downs, scale, wants_rows)
    # By their places: to the compiler of torch 2.11 what such an operation gives is a tuple, however it is unpacked.
    return (made[-1] if wants_rows else None), made[0], list(made[1 : 1 + len(starts)])


def _backwards(
    grads: Sequence[torch.Tensor],
    pieces: Sequence[Piece],
    rows: torch.Tensor,
    inner: torch.Tensor,
    downs: torch.Tensor,
    scale: float,
    wants_rows: bool,
) -> tuple[torch.Tensor | None, torch.Tensor, list[torch.Tensor]]:
    if scale != 1:
        inner = inner * scale
    to_inner = rows.new_empty(len(rows), len(downs))
    to_rows: torch.Tensor | None = None
    to_ups, begun = [], set()
    for grad, piece in zip(grads, pieces, strict=True):
        place = to_inner[:, piece.inner]
        torch.addmm(place, grad, piece.up, beta=piece.inner.start in begun, alpha=scale, out=place)
        begun.add(piece.inner.start)
        to_ups.append(_product(grad.T, inner[:, piece.inner]))
        if wants_rows:
            weight = full(piece.weight, piece.factors, rows)
            to_rows = grad @ weight if to_rows is None else to_rows.addmm_(grad, weight)
    if to_rows is not None:
        to_rows.addmm_(to_inner, downs)
    return to_rows, _product(to_inner.T, rows), to_ups


def _backwards_flat(
    grads: Sequence[torch.Tensor],
    weights: Sequence[torch.Tensor],
    factors: Sequence[torch.Tensor | None],
    ups: Sequence[torch.Tensor],
    starts: Sequence[int],
    rows: torch.Tensor,
    inner: torch.Tensor,
    downs: torch.Tensor,
    scale: float,
    wants_rows: bool,
) -> list[torch.Tensor]:
    pieces = [
        Piece(weight, None, up, slice(start, start + up.shape[1]), factor)
        for weight, factor, up, start in zip(weights, factors, ups, starts, strict=True)
    ]
    to_rows, to_downs, to_ups = _backwards(grads, pieces, rows, inner, downs, scale, wants_rows)
    return [to_downs, *to_ups] if to_rows is None else [to_downs, *to_ups, to_rows]


_whole_forwards = whole_products.product("lora_forwards", _forwards)
_whole_backwards = whole_products.gradients("lora_backwards", _backwards_flat)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b in float32, as the product adds it up."""
    if a.is_cuda and a.dtype != torch.float32:
        return torch.mm(a, b, out_dtype=torch.float32)
    return (a @ b).float()


class _LoraLinears(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, scale: float, downs: torch.Tensor, factors: Factors, *layers: torch.Tensor
    ) -> Any:
        """(…, in) to one (…, out) per layer. ``factors`` has one entry for each layer.

        ``downs`` (layers · r, in) holds the copies of A one below the other. ``layers`` has five tensors for each
        layer: its weight (out, in) and bias or None, the float32 A and B, which get the gradients, and B's copy.
        """
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ downs.T
        rank = len(downs) * 5 // len(layers)
        pieces = [
            Piece(
                layers[at], layers[at + 1], layers[at + 4],
                slice(at // 5 * rank, (at // 5 + 1) * rank), factors[at // 5],
            )
            for at in range(0, len(layers), 5)
        ]  # fmt: skip
        outs = [forwards(rows, inner, piece, scale).reshape(*x.shape[:-1], -1) for piece in pieces]
        kept = (tensor for at in range(0, len(layers), 5) for tensor in (layers[at], layers[at + 4]))
        ctx.save_for_backward(rows, inner, downs, *kept)
        ctx.scale, ctx.rank, ctx.shape, ctx.factors = scale, rank, x.shape, factors
        return outs[0] if len(outs) == 1 else tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        rows, inner, downs, *saved = ctx.saved_tensors
        rank = ctx.rank
        pieces = [
            Piece(
                saved[at], None, saved[at + 1], slice(at // 2 * rank, (at // 2 + 1) * rank), ctx.factors[at // 2]
            )
            for at in range(0, len(saved), 2)
        ]  # fmt: skip
        flat = [grad.reshape(-1, grad.shape[-1]) for grad in grads]
        found = backwards(flat, pieces, rows, inner, downs, ctx.scale, ctx.needs_input_grad[0])
        to_rows, to_downs, to_ups = found
        to_x = None if to_rows is None else to_rows.reshape(ctx.shape)
        per_layer = [(None, None, down, up, None) for down, up in zip(torch.split(to_downs, rank), to_ups, strict=True)]
        return to_x, None, None, None, *(entry for layer in per_layer for entry in layer)


# --- layers of peft -----------------------------------------------------------------------------------
class Group:
    """Layers of one peft adapter that read the same input, with copies of their matrices to compute with."""

    def __init__(self, layers: Sequence[Any], adapter: str) -> None:
        """Raises ValueError unless all have the same rank and scale, which one product for all needs."""
        self.layers, self.adapter = tuple(layers), adapter
        if len({(layer.r[adapter], layer.scaling[adapter]) for layer in layers}) != 1:
            raise ValueError("layers of a group must have one rank and scale")
        self.scale = float(layers[0].scaling[adapter])
        self.downs: torch.Tensor | None = None
        self.ups: list[torch.Tensor] = []

    def matrices(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """The float32 A of every layer, and the B."""
        downs = [layer.lora_A[self.adapter].weight for layer in self.layers]
        return downs, [layer.lora_B[self.adapter].weight for layer in self.layers]

    def copies(self) -> list[torch.Tensor]:
        """What the layers compute with, in the order of ``matrices``; made where the layers are now."""
        downs, ups = self.matrices()
        ranks = [len(down) for down in downs]
        return [*torch.split(self._stacked(downs, ups), ranks), *self.ups]

    def _stacked(self, downs: Sequence[torch.Tensor], ups: Sequence[torch.Tensor]) -> torch.Tensor:
        """The copies of A one below the other; made, together with those of B, if there are none here."""
        base = self.layers[0].get_base_layer()
        weight = base.weight if base.weight.is_floating_point() else base.bias  # 8-bit layers compute in the latter's
        stacked = self.downs
        if stacked is None or (stacked.device, stacked.dtype) != (weight.device, weight.dtype):
            stacked = torch.cat([down.detach() for down in downs]).to(weight.device, weight.dtype)
            self.downs = stacked
            self.ups = [up.detach().to(weight.device, weight.dtype, copy=True) for up in ups]
        return stacked

    def __call__(self, x: torch.Tensor) -> Any:
        """(…, in) to (…, out), or one of them for each of several layers.

        Where nothing is learned from it, as peft computes it: samples are to the last bit what the LoRA's file draws.
        """
        if torch.is_grad_enabled():
            x, scale, downs, *layers = self.tensors(x)
            factors = tuple(getattr(layer.get_base_layer(), "factors", None) for layer in self.layers)
            return _LoraLinears.apply(x, scale, downs, factors, *layers)
        outs = tuple(type(layer).forward(layer, x) for layer in self.layers)
        return outs[0] if len(outs) == 1 else outs

    def tensors(self, x: torch.Tensor) -> list[Any]:
        """Input, scale, all copies of A in one, and for each layer weight, bias, A, B and the copy of B."""
        downs, ups = self.matrices()
        stacked = self._stacked(downs, ups)
        found: list[Any] = [x.to(stacked.dtype), self.scale, stacked]
        for layer, down, up, copy in zip(self.layers, downs, ups, self.ups, strict=True):
            base = layer.get_base_layer()
            found += [base.weight, base.bias, down, up, copy]
        return found


def speed_up(module: torch.nn.Module, adapter: str, together: Sequence[Sequence[Any]] = ()) -> None:
    """Have the linear layers of a peft adapter of plain matrices, which is the only one on, compute like this.

    ``together`` names layers that a caller gives their shared input with ``group_of``.
    """
    for layers in together:
        group = Group(layers, adapter)
        for layer in layers:
            layer.__dict__[_GROUP] = group
    for layer in module.modules():
        if adapter in getattr(layer, "lora_A", ()) and _GROUP not in layer.__dict__:
            group = Group([layer], adapter)
            layer.__dict__[_GROUP] = group
            layer.forward = group.__call__


def group_of(layer: Any) -> Group:
    """The group that a layer is in since ``speed_up``."""
    found: Group = layer.__dict__[_GROUP]
    return found


def together(layers: Sequence[Any], x: torch.Tensor) -> Sequence[torch.Tensor]:
    """One output for each of several layers that read ``x``: by their group if they are in one, else by themselves."""
    group: Group | None = layers[0].__dict__.get(_GROUP)
    outs: Sequence[torch.Tensor] = tuple(layer(x) for layer in layers) if group is None else group(x)
    return outs


def slow_down(module: torch.nn.Module) -> None:
    """Give the layers their own way of computing back."""
    for layer in module.modules():
        if layer.__dict__.pop(_GROUP, None) is not None:
            layer.__dict__.pop("forward", None)


def refresh(module: torch.nn.Module) -> None:
    """After the matrices changed or moved: what the layers compute with is like them again."""
    groups = {id(group): group for layer in module.modules() if (group := layer.__dict__.get(_GROUP)) is not None}
    copies = [copy for group in groups.values() for copy in group.copies()]
    matrices = [matrix.detach() for group in groups.values() for side in group.matrices() for matrix in side]
    if copies:
        torch._foreach_copy_(copies, matrices)
