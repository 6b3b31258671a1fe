"""Weights in the formats of GGUF turned into ordinary numbers.

llama.cpp's formats keep a row as blocks of 32 or 256 numbers with few bits each, and per block (of those of 256, per
16 or 32 numbers) a factor and perhaps an offset. What is here follows ``gguf-py/gguf/quants.py`` of
https://github.com/ggml-org/llama.cpp (MIT), operation by operation in float32, so that the results are equal to the
last bit (the tests compare with that package), but in torch, which uses all cores, or the card.

Shapes: N blocks. Each function gets (N, bytes of a block) uint8 and gives (N, numbers of a block) float32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from headshot_ui.gguf_files import FORMATS

#: Numbers that are unpacked at a time: what is in memory beside the result is about twelve times as many bytes.
AT_A_TIME = 2**20

_Blocks = torch.Tensor
#: The 16 values of IQ4_NL and IQ4_XS (``kvalues_iq4nl`` in ggml).
_FOUR_BIT = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def dequantised(data: torch.Tensor, format_: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """``data`` (bytes,) uint8 in one of ``TAKEN`` as a new tensor of ``shape`` in ``dtype``, on the device of ``data``.

    Computed in float32 and rounded once. Raises KeyError for another format.
    """
    if format_ in _PLAIN:
        return data.view(_PLAIN[format_]).view(shape).to(dtype, copy=True)
    block, block_bytes = _SIZES[format_]
    unpack, blocks = _UNPACK[format_], data.view(-1, block_bytes)
    out = torch.empty(len(blocks), block, dtype=dtype, device=data.device)
    step = max(1, AT_A_TIME // block)
    for start in range(0, len(blocks), step):
        out[start : start + step] = unpack(blocks[start : start + step])
    return out.view(shape)


def row_bytes(format_: str, columns: int) -> int:
    """How many bytes a row of so many numbers takes; ``columns`` is a multiple of the block."""
    block, block_bytes = _SIZES[format_]
    return columns // block * block_bytes


# --- pieces of blocks -----------------------------------------------------------------------------
def _half(piece: _Blocks) -> torch.Tensor:
    """(N, 2) bytes to (N, 1): a float16."""
    return piece.contiguous().view(torch.float16).float()


def _signed(piece: _Blocks) -> torch.Tensor:
    return piece.contiguous().view(torch.int8).float()


def _bits(piece: _Blocks, width: int, shifts: tuple[int, ...], mask: int) -> torch.Tensor:
    """(N, B) bytes in groups of ``width``, each group once per shift: (N, B / width, shifts, width) uint8."""
    by = torch.tensor(shifts, dtype=torch.uint8, device=piece.device)[:, None]
    return (piece.reshape(len(piece), -1, 1, width) >> by) & mask


def _nibbles(piece: _Blocks, width: int) -> torch.Tensor:
    return _bits(piece, width, (0, 4), 0x0F)


_ALL_BITS = tuple(range(8))


def _fifth_bits(piece: _Blocks) -> torch.Tensor:
    """(N, 4) bytes to (N, 32), each bit by itself."""
    by = torch.arange(8, dtype=torch.uint8, device=piece.device)
    return ((piece[:, :, None] >> by) & 1).view(len(piece), 32)


# --- blocks of 32 ---------------------------------------------------------------------------------
def _q4_0(blocks: _Blocks) -> torch.Tensor:
    low = _nibbles(blocks[:, 2:], 16).view(-1, 32)
    return _half(blocks[:, :2]) * (low.float() - 8)


def _q4_1(blocks: _Blocks) -> torch.Tensor:
    low = _nibbles(blocks[:, 4:], 16).view(-1, 32)
    return _half(blocks[:, :2]) * low.float() + _half(blocks[:, 2:4])


def _q5_0(blocks: _Blocks) -> torch.Tensor:
    low, high = _nibbles(blocks[:, 6:], 16).view(-1, 32), _fifth_bits(blocks[:, 2:6])
    return _half(blocks[:, :2]) * ((low | (high << 4)).float() - 16)


def _q5_1(blocks: _Blocks) -> torch.Tensor:
    low, high = _nibbles(blocks[:, 8:], 16).view(-1, 32), _fifth_bits(blocks[:, 4:8])
    return _half(blocks[:, :2]) * (low | (high << 4)).float() + _half(blocks[:, 2:4])


def _q8_0(blocks: _Blocks) -> torch.Tensor:
    return _signed(blocks[:, 2:]) * _half(blocks[:, :2])


def _iq4_nl(blocks: _Blocks) -> torch.Tensor:
    return _half(blocks[:, :2]) * _values(_nibbles(blocks[:, 2:], 16)).view(-1, 32)


def _values(places: torch.Tensor) -> torch.Tensor:
    return torch.tensor(_FOUR_BIT, dtype=torch.float32, device=places.device)[places.int()]


# --- blocks of 256 --------------------------------------------------------------------------------
def _q2_k(blocks: _Blocks) -> torch.Tensor:
    scales, numbers, factor, least = blocks[:, :16], blocks[:, 16:80], blocks[:, 80:82], blocks[:, 82:]
    scale = (_half(factor) * (scales & 0x0F).float())[:, :, None]
    offset = (_half(least) * (scales >> 4).float())[:, :, None]
    low = _bits(numbers, 32, (0, 2, 4, 6), 3).reshape(-1, 16, 16)
    return (scale * low.float() - offset).view(-1, 256)


def _q3_k(blocks: _Blocks) -> torch.Tensor:
    mask, numbers, packed, factor = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108], blocks[:, 108:]
    low_scales = _nibbles(packed[:, :8], 8).view(-1, 16)
    high_scales = _bits(packed[:, 8:], 4, (0, 2, 4, 6), 3).view(-1, 16)
    scale = (_half(factor) * ((low_scales | (high_scales << 4)).float() - 32))[:, :, None]
    low = _bits(numbers, 32, (0, 2, 4, 6), 3).reshape(-1, 16, 16)
    high = _bits(mask, 32, _ALL_BITS, 1).reshape(-1, 16, 16) ^ 1  # a bit that is set stands for nothing taken off
    return (scale * (low.float() - (high << 2).float())).view(-1, 256)


def _q4_k(blocks: _Blocks) -> torch.Tensor:
    scale, offset = _scales_and_offsets(blocks)
    low = _nibbles(blocks[:, 16:], 32).reshape(-1, 8, 32)
    return (scale * low.float() - offset).view(-1, 256)


def _q5_k(blocks: _Blocks) -> torch.Tensor:
    scale, offset = _scales_and_offsets(blocks)
    high = _bits(blocks[:, 16:48], 32, _ALL_BITS, 1).reshape(-1, 8, 32)
    low = _nibbles(blocks[:, 48:], 32).reshape(-1, 8, 32)
    return (scale * (low | (high << 4)).float() - offset).view(-1, 256)


def _scales_and_offsets(blocks: _Blocks) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, 8, 1) each: eight numbers of six bits twice, packed into twelve bytes behind the two halves."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([first & 0x3F, (rest & 0x0F) | ((first >> 2) & 0x30)], 1)
    offsets = torch.cat([second & 0x3F, (rest >> 4) | ((second >> 2) & 0x30)], 1)
    scale, offset = _half(blocks[:, :2]) * scales.float(), _half(blocks[:, 2:4]) * offsets.float()
    return scale[:, :, None], offset[:, :, None]


def _q6_k(blocks: _Blocks) -> torch.Tensor:
    scale = (_half(blocks[:, 208:]) * _signed(blocks[:, 192:208]))[:, :, None]
    low = _nibbles(blocks[:, :128], 64).reshape(-1, 8, 32)
    high = _bits(blocks[:, 128:192], 32, (0, 2, 4, 6), 3).reshape(-1, 8, 32)
    return (scale * ((low | (high << 4)).float() - 32).view(-1, 16, 16)).view(-1, 256)


def _iq4_xs(blocks: _Blocks) -> torch.Tensor:
    low = _nibbles(blocks[:, 4:8], 1).view(-1, 8)
    by = torch.tensor((0, 2, 4, 6), dtype=torch.uint8, device=blocks.device)
    high = ((blocks[:, 2:4, None] >> by) & 3).view(-1, 8)
    scale = (_half(blocks[:, :2]) * ((low | (high << 4)).float() - 32))[:, :, None]
    return (scale * _values(_nibbles(blocks[:, 8:], 16)).view(-1, 8, 32)).view(-1, 256)


_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_UNPACK: Mapping[str, Callable[[_Blocks], torch.Tensor]] = {
    "Q4_0": _q4_0, "Q4_1": _q4_1, "Q5_0": _q5_0, "Q5_1": _q5_1, "Q8_0": _q8_0, "IQ4_NL": _iq4_nl,
    "Q2_K": _q2_k, "Q3_K": _q3_k, "Q4_K": _q4_k, "Q5_K": _q5_k, "Q6_K": _q6_k, "IQ4_XS": _iq4_xs,
}  # fmt: skip
_SIZES = {name: (block, block_bytes) for name, block, block_bytes in FORMATS.values()}
#: Formats that are taken.
TAKEN = frozenset(_PLAIN) | frozenset(_UNPACK)
