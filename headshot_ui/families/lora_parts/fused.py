"""Layers that are one in a file and several in the base model: query, key and value in one matrix, for instance.

A LoRA of several layers that was put together has the ranks of all one below the other, and ``up`` is zero but for a
block of each layer:

    down = (a_q; a_k; a_v)      up = ( b_q  0    0  )      so that up · down = (b_q a_q; b_k a_k; b_v a_v)
                                     ( 0    b_k  0  )
                                     ( 0    0    b_v)

One that was trained in one piece has no such zeros; each layer then takes its rows of ``up`` and the whole ``down``.
Both ways ΔW is the very same: nothing is computed but alpha, which grows and shrinks with the rank.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from headshot_ui.families.lora_parts.layers import Layer, LoraLayer, exactly
from headshot_ui.families.lora_parts.relatives import RelatedLayer, Rows, rows_of


@dataclass(frozen=True)
class Piece:
    """What a layer of the base model is of a layer in a file."""

    layer: str  # the one of the base model
    rows: Rows | None = None  # of the one in the file, in the order in which the base model has them; None: all


def divided(made: Layer, pieces: Sequence[Piece]) -> dict[str, Layer] | None:
    """The layers of the base model; None where they cannot be told apart exactly.

    A plain layer that is zero is left out where others are not: it was not trained.
    """
    if isinstance(made, RelatedLayer):
        out = max((stop for piece in pieces for _, stop in piece.rows or ()), default=0)
        found = {piece.layer: made if piece.rows is None else rows_of(made, piece.rows, out) for piece in pieces}
        return None if None in found.values() else {layer: one for layer, one in found.items() if one is not None}
    ups = [_taken(made.up, piece.rows) for piece in pieces]
    blocks = _blocks([(up != 0).flatten(1).any(0) if up.dim() == 2 else None for up in ups])
    if blocks is None:
        return {piece.layer: LoraLayer(made.down, up, made.alpha) for piece, up in zip(pieces, ups, strict=True)}
    return {
        piece.layer: LoraLayer(made.down[block].clone(), up[:, block].contiguous(), _share(made, block))
        for piece, up, block in zip(pieces, ups, blocks, strict=True)
        if block is not None
    }


def united(layers: Mapping[str, LoraLayer], pieces: Sequence[Piece], sizes: Mapping[str, int]) -> LoraLayer | None:
    """The layer of a file for those of its pieces that there are, of ``sizes`` rows; None where there is none.

    Exact but where the pieces are of different strength for their ranks and no power of two lies between.
    """
    present = [(piece, layers[piece.layer]) for piece in pieces if piece.layer in layers]
    if not present:
        return None
    if len(pieces) == 1 and pieces[0].rows is None:
        return present[0][1]
    first = present[0][1]
    scales = {Fraction(one.strength) / one.rank for _, one in present}
    total = sum(sizes[piece.layer] for piece in pieces)
    if len(scales) == 1 and all(_equal(one.down, first.down) for _, one in present):
        up = first.up.new_zeros(total, first.rank, dtype=_widest([one.up for _, one in present]))
        for piece, one in present:
            _put(up, piece.rows, one.up)
        return LoraLayer(first.down, up, first.alpha)
    ups = [one.up if len(scales) == 1 else scaled_up(one) for _, one in present]
    ranks = [one.rank for _, one in present]
    up = ups[0].new_zeros(total, sum(ranks), dtype=_widest(ups))
    for (piece, _), columns, block in zip(present, torch.split(up, ranks, dim=1), ups, strict=True):
        _put(columns, piece.rows, block)
    dtype = _widest([one.down for _, one in present])
    down = torch.cat([one.down.to(dtype) for _, one in present])
    if len(scales) > 1 or first.alpha is None:
        return LoraLayer(down, up)
    return LoraLayer(down, up, exactly(float(scales.pop() * sum(ranks)), first.alpha.dtype))


def scaled_up(layer: LoraLayer) -> torch.Tensor:
    """``up`` times alpha over rank; in float32 where its own type would round."""
    if layer.strength == layer.rank:
        return layer.up
    scaled = layer.up.float() * (layer.strength / layer.rank)
    made = scaled.to(layer.up.dtype)  # float16 rounds the smallest numbers
    return made if torch.equal(made.float(), scaled) else scaled


def _blocks(used: Sequence[torch.Tensor | None]) -> list[slice | None] | None:
    """For each piece its columns of ``up``, given which it has numbers in; None where pieces share columns."""
    if len(used) == 1 or any(one is None for one in used):
        return None
    columns = [one.nonzero().flatten().tolist() for one in used if one is not None]
    rank = 0 if used[0] is None else len(used[0])
    present = [index for index, found in enumerate(columns) if found]
    if not present or any(columns[a][-1] >= columns[b][0] for a, b in zip(present, present[1:], strict=False)):
        return None
    for among in (present, list(range(len(used)))):  # equal ranks, as everybody's are; zeros inside do not matter
        share = rank // len(among)
        even = {index: slice(at * share, (at + 1) * share) for at, index in enumerate(among)}
        inside = all(even[i].start <= columns[i][0] and columns[i][-1] < even[i].stop for i in present)
        if rank % len(among) == 0 and inside:
            return [even[index] if index in present else None for index in range(len(used))]
    ends = [columns[index][0] for index in present[1:]] + [rank]
    starts = [0, *ends[:-1]]
    there = dict(zip(present, map(slice, starts, ends), strict=True))
    return [there.get(index) for index in range(len(used))]


def _share(made: LoraLayer, block: slice) -> torch.Tensor | None:
    if made.alpha is None:
        return None
    part = Fraction(made.strength) * (block.stop - block.start) / made.rank
    return exactly(float(part), made.alpha.dtype)


def _taken(up: torch.Tensor, rows: Rows | None) -> torch.Tensor:
    return up if rows is None else torch.cat([up[start:stop] for start, stop in rows])


def _put(up: torch.Tensor, rows: Rows | None, block: torch.Tensor) -> None:
    at = 0
    for start, stop in rows or ((0, len(up)),):
        up[start:stop] = block[at : at + stop - start]
        at += stop - start


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a is b or (a.dtype == b.dtype and torch.equal(a, b))


def _widest(tensors: Sequence[torch.Tensor]) -> torch.dtype:
    dtype = tensors[0].dtype
    for tensor in tensors[1:]:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype
