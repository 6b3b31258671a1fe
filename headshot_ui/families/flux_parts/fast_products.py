"""“Fast” in FLUX.1's large layers: products of 8-bit numbers instead of 16-bit ones, for drawing only.

Attention and feed-forward layers of the blocks round their weights once, row by row, and their inputs as they come,
row by row too. Cards since the RTX 40 series multiply float8 (e4m3: 1 sign, 4 bits of exponent, 3 of fraction, up to
448; Micikevicius et al. 2022, arXiv 2209.05433) with a factor for each row of both sides in one kernel
(``torch._scaled_mm``), others since the RTX 20 series whole numbers (``torch._int_mm``), whose factors take two more
passes over the outputs. What reads one input (query, key, value) rounds it once. LoRAs stand on top in their own
format; modulation, embeddings and the last layer stay as they are. Gradients are always computed the exact way.

The rounded weights lie beside the exact ones, a byte for each number, so that nothing is lost; layers that are in 8
bit already lend theirs to whole numbers for nothing. Where that has no room, or a small trial on the card fails, layers
multiply as ever, and the log says so.

Shapes: M rows (pictures x tokens), I inputs, O outputs.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import torch

from headshot_ui.families.flux_parts.eight_bit import TOP, EightBitLinear, layers_of, rounded

FLOAT8, INT8 = KINDS = ("float8", "int8")
#: Largest float8 number (e4m3fn).
TOP_FLOAT8 = 448.0
#: Compute capability from which a card multiplies so.
_SINCE = {FLOAT8: (8, 9), INT8: (7, 5)}
#: What the kernels want: more rows than this, and inputs and outputs in multiples of so many.
_FEWEST_ROWS, _STEP = 16, {FLOAT8: 16, INT8: 8}
#: Relative error of a product of normal numbers that a trial may have; both have about 0.04 and 0.01.
_TOLERANCE = 0.08
_NUMBERS, _SCALES, _FAST = "fast_numbers", "fast_scales", "_headshot_ui_fast"

_log = logging.getLogger(__name__)


# --- numbers ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Rounded:
    """Rows of 8-bit numbers; row i stands for ``numbers[i] * scales[i]``."""

    numbers: torch.Tensor  # (rows, I) float8_e4m3fn or int8
    scales: torch.Tensor  # (rows, 1) float32


def in_8_bit(rows: torch.Tensor, kind: str) -> Rounded:
    """(rows, I) in 16 bit or float32, each row with the factor that its largest number needs."""
    largest = torch.linalg.vector_norm(rows, float("inf"), dim=1, keepdim=True).clamp_(min=1e-12)
    if kind == INT8:
        scales = largest.float() / TOP
        return Rounded((rows / scales).round_().to(torch.int8), scales)
    turned = (TOP_FLOAT8 / largest.float()).to(rows.dtype)  # in the rows' format: no pass over them is in float32
    return Rounded((rows * turned).to(torch.float8_e4m3fn), 1 / turned.float())


def product(
    rows: Rounded, weight: Rounded, bias: torch.Tensor | None, dtype: torch.dtype
) -> torch.Tensor:  # fmt: skip
    """(M, I) times (O, I) transposed: (M, O) in ``dtype``."""
    if rows.numbers.dtype == torch.int8:
        whole = torch._int_mm(rows.numbers, weight.numbers.T)
        out = torch.mul(whole, rows.scales, out=torch.empty(whole.shape, dtype=dtype, device=whole.device))
        scales = weight.scales.T.to(dtype)  # of bfloat16's precision: see ``eight_bit.rounded``
        return out.mul_(scales) if bias is None else torch.addcmul(bias, out, scales)
    if rows.numbers.device.type == "cuda":
        out = torch._scaled_mm(
            rows.numbers, weight.numbers.T, rows.scales, weight.scales.T.contiguous(), bias,
            out_dtype=dtype, use_fast_accum=True,
        )  # fmt: skip
        return out
    out = (rows.numbers.float() @ weight.numbers.float().T) * rows.scales * weight.scales.T
    return (out if bias is None else out + bias).to(dtype)


def rounded_weight(layer: torch.nn.Linear, kind: str) -> Rounded:
    """Of a frozen layer in 16 bit or more, or in 8 bit."""
    if isinstance(layer, EightBitLinear):
        if kind == INT8:
            return Rounded(layer.weight.detach(), layer.get_buffer("factors").float())
        return in_8_bit(layer.full_weight(), kind)
    if kind == INT8:
        numbers, factors = rounded(layer.weight)
        return Rounded(numbers, factors.float())
    return in_8_bit(layer.weight.detach().float(), kind)


# --- layers -----------------------------------------------------------------------------------------
@dataclass
class _LastInput:
    """What was rounded last: layers that read the same input come one after the other."""

    of: weakref.ref[torch.Tensor] | None = None
    version: int = 0
    rows: Rounded | None = None

    def rounded(self, x: torch.Tensor, kind: str) -> Rounded:
        known = self.of is not None and self.of() is x and self.version == x._version
        if self.rows is None or not known:
            self.rows = in_8_bit(x.reshape(-1, x.shape[-1]), kind)
            self.of, self.version = weakref.ref(x), x._version
        return self.rows


def _forward(layer: torch.nn.Linear, kind: str, last: _LastInput, x: torch.Tensor) -> torch.Tensor:
    """(…, I) to (…, O) in the format of ``x``; exactly where a gradient is wanted or the kernels cannot."""
    few = x.shape[:-1].numel() <= _FEWEST_ROWS
    if few or torch.is_grad_enabled() or (kind == FLOAT8 and x.is_cuda and x.dtype != torch.bfloat16):
        exact: torch.Tensor = type(layer).forward(layer, x)
        return exact
    if isinstance(layer, EightBitLinear) and kind == INT8:  # looked up at every call: its block may travel
        weight = Rounded(layer.weight, layer.get_buffer("factors"))
    else:
        weight = Rounded(layer.get_buffer(_NUMBERS), layer.get_buffer(_SCALES))
    out = product(last.rounded(x, kind), weight, layer.bias, x.dtype)
    return out.reshape(*x.shape[:-1], layer.out_features)


def fast_layers(transformer: torch.nn.Module, kind: str) -> list[torch.nn.Linear]:
    """The attention and feed-forward layers of all blocks whose sizes the kernels take, under a LoRA or not."""
    return [layer for layer in _large(transformer) if not any(size % _STEP[kind] for size in layer.weight.shape)]


def _large(transformer: torch.nn.Module) -> Iterator[torch.nn.Linear]:
    in_8 = ((name, layer) for name, layer in transformer.named_modules() if isinstance(layer, EightBitLinear))
    for name, layer in (*layers_of(transformer), *in_8):
        if ".norm" not in f".{name}":
            yield layer


def extra_bytes(transformer: torch.nn.Module, kind: str) -> int:
    """What rounded weights take beside those that are there."""
    return sum(
        layer.weight.numel() + 4 * layer.out_features
        for layer in fast_layers(transformer, kind)
        if not (kind == INT8 and isinstance(layer, EightBitLinear))
    )


def switch_on(transformer: torch.nn.Module, kind: str) -> None:
    """Have the large layers multiply so until ``switch_off``, which must come before their weights are moved."""
    switch_off(transformer)
    last = _LastInput()
    for layer in fast_layers(transformer, kind):
        if not (kind == INT8 and isinstance(layer, EightBitLinear)):
            weight = rounded_weight(layer, kind)
            layer.register_buffer(_NUMBERS, weight.numbers, persistent=False)
            layer.register_buffer(_SCALES, weight.scales, persistent=False)
        layer.forward = partial(_forward, layer, kind, last)  # type: ignore[method-assign]
    transformer.__dict__[_FAST] = kind


def switch_off(transformer: torch.nn.Module) -> None:
    """All layers multiply as before, and what was rounded is gone."""
    if transformer.__dict__.pop(_FAST, None) is None:
        return
    for layer in _large(transformer):
        own = layer.__dict__.get("forward")
        if isinstance(own, partial) and own.func is _forward:
            del layer.__dict__["forward"]
        for name in (_NUMBERS, _SCALES):
            layer._buffers.pop(name, None)
            layer._non_persistent_buffers_set.discard(name)


def kind_of(transformer: torch.nn.Module) -> str | None:
    """How the large layers multiply now; None: exactly."""
    found: str | None = transformer.__dict__.get(_FAST)
    return found


# --- where it can be done -----------------------------------------------------------------------------
def ask(transformer: torch.nn.Module, wanted: bool, travels: bool, room: int | None) -> None:
    """Have the layers of a transformer that is where it computes multiply in 8 bit if ``wanted`` and possible.

    ``travels``: some blocks do, so nothing may lie beside them. ``room``: bytes of the device that rounded weights may
    take; None where it is not a card.
    """
    if not wanted:
        switch_off(transformer)
        return
    kinds = kinds_on(str(next(transformer.parameters()).device.type))
    if kind_of(transformer) in kinds:
        return
    for kind in kinds:
        extra = extra_bytes(transformer, kind)
        if extra and (travels or (room is not None and extra > room)):
            continue
        switch_on(transformer, kind)
        _log.info("Large layers multiply in %s (%.1f GB of rounded weights)", kind, extra / 2**30)
        return
    why = "there is no room for rounded weights" if kinds else "this device does not multiply so"
    _log.info("Large layers multiply exactly although 8 bit would do: %s", why)


@lru_cache(maxsize=4)
def kinds_on(device: str) -> Sequence[str]:
    """In what a device multiplies, the quickest first, tried once in a process; () for everything but CUDA cards."""
    if device != "cuda":
        return ()
    capability: Any = torch.cuda.get_device_capability()
    return tuple(kind for kind, since in _SINCE.items() if capability >= since and works(kind, device))


def works(kind: str, device: str) -> bool:
    """Whether a small product comes out as it must. Raises nothing."""
    draw = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(64, 256, generator=draw), torch.randn(128, 256, generator=draw)
    try:
        given = rows.to(device, torch.bfloat16), weight.to(device, torch.bfloat16)
        found = product(in_8_bit(given[0], kind), in_8_bit(given[1], kind), None, torch.bfloat16).float().cpu()
    except Exception:  # what a build of torch lacks, it says in many ways
        _log.info("Products in %s do not work on %s", kind, device, exc_info=True)
        return False
    exact = rows @ weight.T
    error = float((found - exact).norm() / exact.norm())
    _log.info("Products in %s on %s are off by %.1e", kind, device, error)
    return error < _TOLERANCE  # false for what is no number, too
