"""How long each stage took and how much memory it needed at most."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import psutil

SAMPLE_EVERY_S = 0.05


@dataclass(frozen=True)
class StageUse:
    """What one stage took."""

    name: str
    seconds: float
    peak_ram_bytes: int  # resident memory of the whole process
    peak_vram_bytes: int  # allocated by torch; 0 without a GPU


class StageMeter:
    """``with meter.stage("train"): …``, stage after stage; then ``meter.stages`` has one row for each.

    RAM is sampled every 50 ms by a light thread, VRAM is torch's own exact counter. Meters may overlap.
    """

    def __init__(self) -> None:
        self._stages: list[StageUse] = []

    @property
    def stages(self) -> tuple[StageUse, ...]:
        """The stages that have ended, with or without an error, in the order they ended."""
        return tuple(self._stages)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure the block."""
        ram, started = _RamPeak(name), time.perf_counter()
        vram = _vram.open()
        try:
            yield
        finally:
            seconds = time.perf_counter() - started
            self._stages.append(StageUse(name, seconds, ram.close(), _vram.close(vram)))


class _RamPeak:
    """Samples the process until it is closed."""

    def __init__(self, name: str) -> None:
        self._process = psutil.Process()
        self._peak = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name=f"meter-{name}", daemon=True)
        self._thread.start()

    def close(self) -> int:
        self._stop.set()
        self._thread.join()
        return int(max(self._peak, self._process.memory_info().rss))

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            with suppress(psutil.Error):
                self._peak = max(self._peak, self._process.memory_info().rss)


class _VramPeaks:
    """Shares torch's one peak counter of the process among overlapping readings.

    Before the counter is reset for a new reading, what it shows is credited to all that are open.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[object, int] = {}

    def open(self) -> object:
        reading = object()
        with self._lock:
            self._credit()
            self._open[reading] = 0
        return reading

    def close(self, reading: object) -> int:
        with self._lock:
            self._credit()
            return self._open.pop(reading)

    def _credit(self) -> None:
        torch = sys.modules.get("torch")  # never imported just to measure it
        cuda = getattr(torch, "cuda", None)  # another thread may be half-way through importing it
        if cuda is None or not getattr(cuda, "is_initialized", bool)():
            return
        peak = int(cuda.max_memory_allocated())
        cuda.reset_peak_memory_stats()
        for reading in self._open:
            self._open[reading] = max(self._open[reading], peak)


_vram = _VramPeaks()  # one per process, as the counter it shares
