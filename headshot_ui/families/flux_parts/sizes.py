"""What a FLUX.1 transformer weighs, from its config alone and without importing torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from headshot_ui.errors import ModelError


@dataclass(frozen=True)
class Shape:
    """What a FluxTransformer2DModel's size follows from."""

    width: int
    head: int
    double: int
    single: int
    joint: int
    pooled: int
    channels: int
    guidance: bool

    @property
    def blocks(self) -> int:
        return self.double + self.single


def shape_of(config: Mapping[str, Any]) -> Shape:
    """From the transformer's ``config.json``; what it leaves out is as in diffusers. Raises ModelError."""
    try:
        head = int(config.get("attention_head_dim", 128))
        return Shape(
            width=head * int(config.get("num_attention_heads", 24)),
            head=head,
            double=int(config.get("num_layers", 19)),
            single=int(config.get("num_single_layers", 38)),
            joint=int(config.get("joint_attention_dim", 4096)),
            pooled=int(config.get("pooled_projection_dim", 768)),
            channels=int(config.get("in_channels", 64)),
            guidance=bool(config.get("guidance_embeds", False)),
        )
    except (TypeError, ValueError) as error:
        raise ModelError("The transformer's config.json is damaged: get the model again.") from error


# --- counting weights -----------------------------------------------------------------------------
@dataclass(frozen=True)
class _Count:
    """Of some layers: numbers that may be in 8 bit, their rows, and numbers that are always in 16."""

    weights: int
    rows: int
    other: int

    def __add__(self, more: _Count) -> _Count:
        return _Count(self.weights + more.weights, self.rows + more.rows, self.other + more.other)

    def bytes(self, eight_bit: bool) -> int:
        return self.weights + 2 * (self.rows + self.other) if eight_bit else 2 * (self.weights + self.other)


def _linears(*sizes: tuple[int, int]) -> _Count:
    """Layers of (inputs, outputs), with biases."""
    rows = sum(outputs for _, outputs in sizes)
    return _Count(sum(inputs * outputs for inputs, outputs in sizes), rows, rows)


def _double(shape: Shape) -> _Count:
    d = shape.width
    feed_forward = ((d, 4 * d), (4 * d, d))
    return _linears(*(((d, d),) * 8), *feed_forward, *feed_forward) + _Count(0, 0, 4 * shape.head)


def _single(shape: Shape) -> _Count:
    d = shape.width
    return _linears((d, d), (d, d), (d, d), (d, 4 * d), (5 * d, d)) + _Count(0, 0, 2 * shape.head)


def _modulation(shape: Shape, rows: int) -> _Count:
    return _linears((shape.width, rows * shape.width))


def _embeddings(shape: Shape) -> int:
    """Numbers outside the blocks: embeddings and the last layer, never in 8 bit."""
    d = shape.width
    embedded = [(256, d), (d, d)] * (2 if shape.guidance else 1) + [(shape.pooled, d), (d, d)]
    counted = _linears(*embedded, (shape.joint, d), (shape.channels, d), (d, shape.channels))
    return counted.weights + counted.other


def weight_bytes(shape: Shape, eight_bit: bool, dropped: bool) -> int:
    """All weights of the transformer as they lie on a card that holds them all."""
    blocks = sum(
        block * count for block, count in zip(block_bytes(shape, eight_bit, dropped), _counts(shape), strict=True)
    )
    last = 0 if dropped else _modulation(shape, 2).bytes(eight_bit)
    return blocks + last + 2 * _embeddings(shape)


def block_bytes(shape: Shape, eight_bit: bool, dropped: bool) -> tuple[int, int]:
    """Bytes of a double and of a single block."""
    double, single = _double(shape), _single(shape)
    if not dropped:
        double, single = double + _modulation(shape, 6) + _modulation(shape, 6), single + _modulation(shape, 3)
    return double.bytes(eight_bit), single.bytes(eight_bit)


def _counts(shape: Shape) -> tuple[int, int]:
    return shape.double, shape.single


def lora_parameters(shape: Shape, rank: int, feed_forward: bool = True) -> int:
    """Numbers of a LoRA on attention, and on feed-forward layers too: ``rank`` for each input and output."""
    double, single = (16 + 20, 6 + 11) if feed_forward else (16, 6)
    return rank * shape.width * (double * shape.double + single * shape.single)


def row_numbers(shape: Shape) -> int:
    """Numbers that modulate one step of one picture: 12 widths for a double block, 3 for a single one, 2 at the end."""
    return shape.width * (12 * shape.double + 3 * shape.single + 2)


def dropped_parameters(shape: Shape) -> int:
    """How many parameters the modulation layers have together: each number has ``width`` weights and a bias."""
    return row_numbers(shape) * (shape.width + 1)
