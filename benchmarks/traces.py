"""What a trace of torch.profiler says of one step: kernels with the operations that started them, sums, gaps, bounds.

A replayed CUDA graph tells its kernels' names and times, but not by which operation each was started, so nothing of
shapes. The same step, launched kernel by kernel, tells both: kernels of one name come in the same order in either, so
that each of a replay is told what the one of the same number was started by (``paired``).

Events are those of a trace in Chrome's format (``torch.profiler.profile.export_chrome_trace``); times in microseconds.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from benchmarks import kernel_kinds as kinds

Shape = tuple[int, ...]

_ON_CARD = ("kernel", "gpu_memcpy", "gpu_memset")
_BYTES = {"c10::BFloat16": 2, "c10::Half": 2, "float": 4, "double": 8, "int": 4, "long int": 8, "long": 8, "bool": 1,
          "unsigned char": 1, "signed char": 1, "c10::complex<float>": 8}  # fmt: skip
_IN_LIST = 2  # bytes of a number in a list of tensors, whose format no trace tells: what is put together has 16 bit


@dataclass(frozen=True)
class Operation:
    """A call of one of torch's operations, with what it was given: of each argument its shape, () for none."""

    number: int  # of the call, within one trace
    name: str
    shapes: tuple[Any, ...] = ()  # a Shape each; of a list of tensors a tuple of them
    strides: tuple[Any, ...] = ()
    types: tuple[str, ...] = ()
    values: tuple[str, ...] = ()  # of arguments that are no tensors
    inside_counted: bool = False  # of another one whose arithmetic is counted


@dataclass(frozen=True)
class Kernel:
    """One kernel, or one copy of memory, of a step; on a CPU what an operation takes without those it calls."""

    name: str
    begin: float
    lasts: float
    operation: Operation | None = None


# --- reading ------------------------------------------------------------------------------------------
def operations(events: Iterable[Mapping[str, Any]]) -> dict[int, Operation]:
    """Every call of an operation by its number."""
    return {called.number: called for called, _, _ in _calls(events)}


def on_card(events: Sequence[Mapping[str, Any]]) -> list[Kernel]:
    """The kernels and copies on the card in their order; with operations where they were launched one by one."""
    called = operations(events)
    found = [
        Kernel(str(each["name"]), float(each["ts"]), float(each.get("dur", 0)),
               called.get(int(each.get("args", {}).get("External id", -1))))
        for each in events
        if each.get("cat") in _ON_CARD
    ]  # fmt: skip
    return sorted(found, key=lambda kernel: kernel.begin)


def on_processor(events: Sequence[Mapping[str, Any]]) -> list[Kernel]:
    """Each operation with the time that it takes itself: a rehearsal of ``on_card``, for machines without one."""
    return [Kernel(called.name, begin, own, called) for called, begin, own in _calls(events)]


def _calls(events: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Operation, float, float]]:
    """Operations with when they begin, and how long they take without those they call."""
    threads: dict[Any, list[Mapping[str, Any]]] = defaultdict(list)
    for each in events:
        if each.get("cat") == "cpu_op":
            threads[each.get("tid")].append(each)
    for calls in threads.values():
        calls.sort(key=lambda each: (each["ts"], -each["dur"]))
        open_calls: list[tuple[float, bool, list[float]]] = []  # end, whether counted, time of those within
        made: list[tuple[Operation, float, float, list[float]]] = []
        for each in calls:
            begin, lasts = float(each["ts"]), float(each["dur"])
            while open_calls and open_calls[-1][0] <= begin:
                open_calls.pop()
            inside = bool(open_calls) and open_calls[-1][1]
            if open_calls:
                open_calls[-1][2].append(lasts)
            within: list[float] = []
            called = _operation(each, inside)
            open_calls.append((begin + lasts, inside or called.name in _ARITHMETIC, within))
            made.append((called, begin, lasts, within))
        for called, begin, lasts, within in made:
            yield called, begin, max(lasts - sum(within), 0.0)


def _operation(event: Mapping[str, Any], inside: bool) -> Operation:
    facts = event.get("args", {})
    shapes, strides = (_tuples(facts.get(name, ())) for name in ("Input Dims", "Input Strides"))
    types, values = (tuple(map(str, facts.get(name, ()))) for name in ("Input type", "Concrete Inputs"))
    return Operation(int(facts.get("External id", -1)), str(event["name"]), shapes, strides, types, values, inside)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, (list, tuple)) else value


def paired(replayed: Sequence[Kernel], launched: Sequence[Kernel]) -> list[Kernel]:
    """Kernels of a replay with the operations of the same step launched one by one.

    By name: the first of a name by what the first of that name was started by, and so on. Where a name comes more
    often in one than in the other, only if all of that name were started by operations of the same shapes.
    """
    began: dict[str, list[Operation | None]] = defaultdict(list)
    for kernel in launched:
        began[kernel.name].append(kernel.operation)
    counts, seen = Counter(kernel.name for kernel in replayed), Counter[str]()
    made = []
    for kernel in replayed:
        there = began.get(kernel.name, [])
        found: Operation | None = None
        if len(there) == counts[kernel.name]:
            found = there[seen[kernel.name]]
        elif there and there[0] and len({(each.name, each.shapes) if each else None for each in there}) == 1:
            found = replace(there[0], number=-1 - len(made))  # a call of its own
        seen[kernel.name] += 1
        made.append(replace(kernel, operation=found))
    return made


# --- kinds ----------------------------------------------------------------------------------------------
def kind_of(kernel: Kernel, rank: int | None) -> str:
    """Its kind by its name, by its operation where no pattern knows the name, products by their shapes.

    ``rank`` is that of a LoRA that is being trained.
    """
    kind, began = kinds.kind_of(kernel.name), kernel.operation
    if began is not None and (kind == kinds.UNKNOWN or on_a_processor(kernel)):
        kind = kinds.kind_of_operation(began.name)
    if kind != kinds.PRODUCTS:
        return kind
    if began is not None and kinds.kind_of_operation(began.name) == kinds.CONVOLUTIONS:
        return kinds.CONVOLUTIONS  # cuDNN computes some of them by products
    return product_kind(began, rank)


def on_a_processor(kernel: Kernel) -> bool:
    """Whether it is an operation that stands for a kernel. A compiled kernel's operation has its name as well."""
    began = kernel.operation
    return began is not None and kernel.name == began.name and not kernel.name.startswith("triton_")


def product_kind(began: Operation | None, rank: int | None) -> str:
    """Of a product: a LoRA's has its rank, or that of up to four which stand side by side, among its dimensions.

    A product that adds a bias is none of a LoRA's, nor is one of many matrices at once (attention, taken apart). In
    FLUX.1 the gradients of the last layer (64 outputs) pass for one of rank 16: one product of some hundreds.
    """
    sizes = None if began is None else product_sizes(began)
    if sizes is None:
        return kinds.UNSHAPED_PRODUCTS
    assert began is not None
    plain = "bmm" not in began.name and not (began.name == "aten::addmm" and len(began.shapes[0]) == 1)
    if rank is not None and plain and any(size in (rank, 2 * rank, 3 * rank, 4 * rank) for size in sizes):
        return kinds.LORA_PRODUCTS
    return kinds.SMALL_PRODUCTS if min(sizes) < 16 else kinds.PRODUCTS


def product_sizes(began: Operation) -> tuple[int, int, int] | None:
    """Rows, inner and columns of a product of matrices; None where it is none or its shapes are not known."""
    first = _FACTORS.get(began.name)
    if first is None or len(began.shapes) < first + 2:
        return None
    left, right = began.shapes[first], began.shapes[first + 1]
    if len(left) < 2 or len(right) < 2:
        return None
    return left[-2], left[-1], right[-1]


_FACTORS = {"aten::mm": 0, "aten::bmm": 0, "aten::addmm": 1, "aten::addmm_": 1, "aten::baddbmm": 1, "aten::baddbmm_": 1,
            "aten::_addmm_activation": 1}  # fmt: skip


# --- arithmetic and bytes -------------------------------------------------------------------------------
def _of_product(began: Operation) -> float:
    sizes = product_sizes(began)
    if sizes is None:
        return 0.0
    left = began.shapes[_FACTORS[began.name]]
    return 2.0 * prod(left[:-2]) * prod(sizes)


def _of_attention(first: int, products: int) -> Callable[[Operation], float]:
    """``products`` products of (queries, width) with (width, keys); (B, H, tokens, width) from argument ``first``."""

    def count(began: Operation) -> float:
        query, key = began.shapes[first : first + 2]
        return 2.0 * products * prod(query) * key[-2]

    return count


def _of_convolution(began: Operation) -> float:
    given, weight = began.shapes[:2]
    stride, padding, dilation = (_whole_numbers(began.values[at]) for at in (3, 4, 5))
    out = [
        (size + 2 * padding[at % len(padding)] - dilation[at % len(dilation)] * (edge - 1) - 1)
        // stride[at % len(stride)] + 1
        for at, (size, edge) in enumerate(zip(given[2:], weight[2:], strict=True))
    ]  # fmt: skip
    return 2.0 * given[0] * prod(out) * prod(weight)


def _of_convolution_backward(began: Operation) -> float:
    """To its input, and to its weight where that is wanted."""
    grad, _, weight = began.shapes[:3]
    wanted = began.values[10].count("True", 0, began.values[10].rfind(",")) if len(began.values) > 10 else 1
    return 2.0 * max(wanted, 1) * grad[0] * prod(grad[2:]) * prod(weight)


def _whole_numbers(text: str) -> list[int]:
    return [int(each) for each in re.findall(r"-?\d+", text)]


#: Of operations that are counted: how many multiplications and additions one takes. What these call is not counted.
_ARITHMETIC: dict[str, Callable[[Operation], float]] = {
    **dict.fromkeys(_FACTORS, _of_product),
    "aten::convolution": _of_convolution,
    "aten::convolution_backward": _of_convolution_backward,
    **{
        f"aten::_scaled_dot_product_{way}_attention{end}{device}": _of_attention(*count)
        for way in ("flash", "efficient", "cudnn")
        for end, count in (("", (0, 2)), ("_backward", (1, 5)))
        for device in (("_for_cpu", "") if way == "flash" and not end else ("",))
    },
    "aten::_scaled_dot_product_flash_attention_for_cpu_backward": _of_attention(1, 5),
}


def arithmetic(calls: Iterable[Operation], rank: int | None) -> dict[str, float]:
    """Multiplications and additions (a fused one is two) by kind."""
    found: dict[str, float] = defaultdict(float)
    for began in calls:
        count = _ARITHMETIC.get(began.name)
        if count is None or began.inside_counted or not began.shapes:
            continue
        kind = kinds.kind_of_operation(began.name)
        found[product_kind(began, rank) if kind == kinds.PRODUCTS else kind] += count(began)
    return dict(found)


def least_bytes(began: Operation, kind: str) -> float:
    """What the operation reads and writes at least: each number once.

    Its result is taken to be as large as the largest it was given, in the format of the first. That of a reduction is
    left out, and so is that of a compiled kernel or a copy, which have it among what they were given. A product reads
    both factors and writes its result.
    """
    if kind in BY_PRODUCTS:
        rows, inner, columns = product_sizes(began) or (0, 0, 0)
        count = prod(began.shapes[_FACTORS[began.name]][:-2])
        return float(count * (rows * inner + inner * columns + rows * columns) * _BYTES.get(began.types[0], 0))
    given = [
        (_numbers(shape, began.strides[at] if at < len(began.strides) else ()), _BYTES.get(type_, 0))
        for at, (shape, type_) in enumerate(zip(began.shapes, began.types, strict=False))
        if type_ in _BYTES
    ]
    lists = [prod(one) for shape in began.shapes for one in shape if isinstance(one, tuple)]
    read = sum(count * size for count, size in given) + _IN_LIST * sum(lists)
    if kind in (kinds.REDUCTIONS, kinds.COMPILED) or began.name == "aten::copy_":
        return float(read)
    written = max((count for count, _ in given), default=0) * given[0][1] if given else 0
    return float(read + written + _IN_LIST * sum(lists))


def _numbers(shape: Shape, strides: Shape) -> int:
    """How many there are of them in memory: along a dimension of stride 0 there is one."""
    known = len(strides) == len(shape)
    return prod(size for at, size in enumerate(shape) if not known or strides[at] != 0)


# --- sums -----------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Peaks:
    """What the device does at best."""

    flop: float  # a second, in 16 bit
    bytes: float  # a second, read and written


#: Kinds whose bound is what memory delivers.
BY_BYTES = (kinds.LAYOUT, kinds.NORMS, kinds.ELEMENTWISE, kinds.REDUCTIONS, kinds.COMPILED)
#: Kinds whose bound is arithmetic or memory, for each product the longer of the two: a LoRA's are bound by memory.
BY_PRODUCTS = (kinds.PRODUCTS, kinds.LORA_PRODUCTS, kinds.SMALL_PRODUCTS)


def by_kind(kernels: Sequence[Kernel], work: Mapping[str, float], peaks: Peaks, rank: int | None) -> dict[str, Any]:
    """Of one step: milliseconds, kernels and least time of each kind, longest first.

    ``work`` is the ``arithmetic`` of the step. Where a bound is computed from what kernels were given, it is of those
    alone whose operations are known; ``of_known_ms`` is how long these take.
    """
    sums: dict[str, dict[str, Any]] = {}
    calls: dict[str, dict[int, Operation]] = defaultdict(dict)
    for kernel in kernels:
        kind = kind_of(kernel, rank)
        row = sums.setdefault(kind, {"ms": 0.0, "kernels": 0})
        row["ms"] += kernel.lasts / 1e3
        row["kernels"] += 1
        began = kernel.operation
        if kind in (*BY_BYTES, *BY_PRODUCTS) and began is not None and began.shapes:
            calls[kind][began.number] = began
            row["of_known_ms"] = row.get("of_known_ms", 0.0) + kernel.lasts / 1e3
    for kind, row in sums.items():
        moved = [least_bytes(began, kind) for began in calls[kind].values()]
        if kind in BY_PRODUCTS:
            flop = [_of_product(began) for began in calls[kind].values()]
            longer = (max(one / peaks.flop, other / peaks.bytes) for one, other in zip(flop, moved, strict=True))
            row |= {"tflop": sum(flop) / 1e12, "gigabytes": sum(moved) / 1e9, "bound_ms": 1e3 * sum(longer)}
        elif kind in BY_BYTES:
            row |= {"gigabytes": sum(moved) / 1e9, "bound_ms": 1e3 * sum(moved) / peaks.bytes}
        elif work.get(kind):
            row |= {"tflop": work[kind] / 1e12, "bound_ms": 1e3 * work[kind] / peaks.flop}
    return {kind: _rounded(row) for kind, row in sorted(sums.items(), key=lambda item: -item[1]["ms"])}


def longest(kernels: Sequence[Kernel], rank: int | None, count: int = 40) -> list[dict[str, Any]]:
    """Kernels of one name and one shape together, those first that take the most time."""
    rows: dict[tuple[str, str, str], dict[str, Any]] = {}
    for kernel in kernels:
        began = kernel.operation
        shapes = "" if began is None else " ".join(str(list(shape)) for shape in began.shapes[:4] if shape)
        key = kernel.name, began.name if began else "", shapes
        row = rows.setdefault(
            key,
            {"name": kernel.name[:160], "kind": kind_of(kernel, rank), "operation": key[1], "shapes": shapes,
             "ms": 0.0, "kernels": 0, "flop": 0.0},
        )  # fmt: skip
        row["ms"] += kernel.lasts / 1e3
        row["kernels"] += 1
        if began is not None and row["kind"] in BY_PRODUCTS:
            row["flop"] += _of_product(began)
    found = sorted(rows.values(), key=lambda row: -row["ms"])[:count]
    for row in found:
        flop = row.pop("flop")
        if flop and row["ms"]:
            row["tflops"] = flop / row["ms"] / 1e9
    return [_rounded(row) for row in found]


def unknown(kernels: Sequence[Kernel]) -> dict[str, float]:
    """Names that no pattern knows, with their milliseconds, whatever kind their operations made of them."""
    found: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        known = kinds.kind_of_operation if on_a_processor(kernel) else kinds.kind_of
        if known(kernel.name) == kinds.UNKNOWN:
            found[kernel.name[:160]] += kernel.lasts / 1e3
    return {name: round(ms, 4) for name, ms in sorted(found.items(), key=lambda item: -item[1])}


def busy(kernels: Sequence[Kernel]) -> tuple[float, float]:
    """Milliseconds from the first kernel's begin to the last one's end, and those in which any of them ran."""
    ran, end = 0.0, float("-inf")
    for kernel in sorted(kernels, key=lambda each: each.begin):
        ran += max(kernel.begin + kernel.lasts - max(kernel.begin, end), 0.0)
        end = max(end, kernel.begin + kernel.lasts)
    first = min((kernel.begin for kernel in kernels), default=end)
    return (end - first) / 1e3 if kernels else 0.0, ran / 1e3


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
