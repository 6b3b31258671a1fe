"""Seconds of a call: the device is waited for, the median counts, and two ways take turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Timed:
    """What several runs of the same call took."""

    seconds: float  # median
    spread: float  # between the slowest and the fastest tenth; 0.0 for a single run
    peak_bytes: int | None  # of the card's memory; None without one


def measure(run: Callable[[], object], device: str, repeats: int, warmups: int = 2) -> Timed:
    """Call ``run`` ``warmups`` times, then ``repeats`` times against the clock.

    ``peak_bytes`` is what torch's allocator took from the card at most, warm-ups included. It is not what it handed
    out: replaying a captured graph hands nothing out, though the graph's own memory is taken for good. What else lives
    in the process counts too, so free what this way does not need.
    """
    begin_peak(device)
    for _ in range(warmups):
        run()
    return summary(_times(run, device, repeats), peak_of(device))


def side_by_side(
    reference: Callable[[], object], ours: Callable[[], object], device: str, repeats: int, warmups: int = 2
) -> tuple[Timed, Timed]:
    """Both ways in both orders, A B B A: a machine that grows warm or busy slows neither more than the other.

    Each way is timed ``repeats`` times in all, rounded up to an even number, after ``warmups`` before each block.
    """
    half = (repeats + 1) // 2
    times: tuple[list[float], list[float]] = ([], [])
    peaks: tuple[list[int | None], list[int | None]] = ([], [])
    for way in (0, 1, 1, 0):
        run = (reference, ours)[way]
        begin_peak(device)
        for _ in range(warmups):
            run()
        times[way].extend(_times(run, device, half))
        peaks[way].append(peak_of(device))
    first, second = (
        summary(taken, max((peak for peak in found if peak is not None), default=None))
        for taken, found in zip(times, peaks, strict=True)
    )
    return first, second


def in_both_orders(reference: Callable[[], Timed], ours: Callable[[], Timed], rounds: int = 1) -> tuple[Timed, Timed]:
    """As ``side_by_side`` for ways that time themselves, because they have to be set up before: ``rounds`` A B B A."""
    ways = (reference, ours)
    found: tuple[list[Timed], list[Timed]] = ([], [])
    for way in (0, 1, 1, 0) * rounds:
        found[way].append(ways[way]())
    return together(found[0]), together(found[1])


def together(several: Sequence[Timed]) -> Timed:
    """Several turns of the same way as one: the median of their medians, the highest of their peaks."""
    peaks = [timed.peak_bytes for timed in several if timed.peak_bytes is not None]
    return summary([timed.seconds for timed in several], max(peaks, default=None))


def summary(times: Sequence[float], peak_bytes: int | None = None) -> Timed:
    """Median and spread of at least one time."""
    tenths = quantiles(times, n=10, method="inclusive") if len(times) > 1 else [0.0]
    return Timed(median(times), tenths[-1] - tenths[0], peak_bytes)


def _times(run: Callable[[], object], device: str, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        synchronise(device)
        began = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return times


def synchronise(device: str) -> None:
    """Wait until the device has done all it was given. Nothing on the CPU, where a call is done when it returns."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    elif device == "mps":
        import torch

        torch.mps.synchronize()


def begin_peak(device: str) -> None:
    """From now on ``peak_of`` counts; what torch's allocator only keeps is given back first."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak_of(device: str) -> int | None:
    """The most bytes torch's allocator had of the card since ``begin_peak``; None without one."""
    if device != "cuda":
        return None
    import torch

    return int(torch.cuda.max_memory_reserved())
