"""The products of linear layers with a LoRA in training as operations that a compiler takes as they are.

Compilers of torch know no product that is added to what is there already: each would cost a copy of its whole result.
So where a block is compiled these products stay the kernels they are otherwise, and only what lies between is fused.
The arithmetic itself is in ``linear``, and given to these operations, which know only the shapes of what comes out.
"""

# No annotations as text here: torch reads of which kinds the arguments are.

from collections.abc import Callable, Sequence
from typing import Any

import torch

Make = Callable[..., Any]


def product(name: str, make: Make) -> Any:
    """An operation ``name`` of rows (N, in), inner (N, R), weight (out, in), factors, bias, up and scale: (N, out).

    ``after`` is not read. What is given so is made first: without it a compiler would see that an equal product was
    made before, and keep that one's result all the way.
    """

    def made(
        rows: torch.Tensor,
        inner: torch.Tensor,
        weight: torch.Tensor,
        factors: torch.Tensor | None,
        bias: torch.Tensor | None,
        up: torch.Tensor,
        scale: float,
        after: torch.Tensor | None,
    ) -> torch.Tensor:
        out: torch.Tensor = make(rows, inner, weight, factors, bias, up, scale)
        return out

    operation = _operation(name, made)

    @operation.register_fake  # type: ignore[untyped-decorator]
    def _(rows: Any, inner: Any, weight: Any, factors: Any, bias: Any, up: Any, scale: float, after: Any) -> Any:
        return rows.new_empty(len(rows), len(weight))

    return operation


def gradients(name: str, make: Make) -> Any:
    """An operation ``name`` that gives those of ``linear.backwards``: of A, then of each B, then of the rows if wanted.

    ``starts`` are the columns of ``inner`` at which those of each layer begin.
    """

    def made(
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
        out: list[torch.Tensor] = make(grads, weights, factors, ups, starts, rows, inner, downs, scale, wants_rows)
        return out

    operation = _operation(name, made)

    @operation.register_fake  # type: ignore[untyped-decorator]
    def _(
        grads: Any, weights: Any, factors: Any, ups: Any, starts: Any, rows: Any, inner: Any, downs: Any,
        scale: float, wants_rows: bool,
    ) -> Any:  # fmt: skip
        matrices = [rows.new_empty(tensor.shape, dtype=torch.float32) for tensor in (downs, *ups)]
        return [*matrices, rows.new_empty(rows.shape)] if wants_rows else matrices

    return operation


def _operation(name: str, made: Callable[..., Any]) -> Any:
    return torch.library.custom_op(f"headshot_ui::{name}", made, mutates_args=())
