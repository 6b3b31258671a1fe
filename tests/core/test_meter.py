"""Stages are measured in seconds and bytes."""

from __future__ import annotations

import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from headshot_ui.meter import StageMeter


def test_seconds_and_peak_memory_of_each_stage() -> None:
    meter = StageMeter()
    with meter.stage("small"):
        time.sleep(0.12)
    with meter.stage("large"):
        block = bytearray(300 * 2**20)  # touched, so it is really there; gone again before the stage ends
        time.sleep(0.2)
        del block
        time.sleep(0.1)
    small, large = meter.stages
    assert [small.name, large.name] == ["small", "large"]
    assert 0.11 <= small.seconds < 5 and 0.29 <= large.seconds < 5
    assert 200 * 2**20 < large.peak_ram_bytes - small.peak_ram_bytes < 500 * 2**20
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("meter-")]


def test_a_stage_that_breaks_off_is_measured_too() -> None:
    meter = StageMeter()
    with pytest.raises(ZeroDivisionError), meter.stage("broken"):
        raise ZeroDivisionError
    assert [use.name for use in meter.stages] == ["broken"]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("meter-")]


class FakeCuda:
    """torch.cuda's peak counter."""

    def __init__(self) -> None:
        self.peak = 0

    def is_initialized(self) -> bool:
        return True

    def max_memory_allocated(self) -> int:
        return self.peak

    def reset_peak_memory_stats(self) -> None:
        self.peak = 0


def test_overlapping_meters_share_the_one_peak_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = FakeCuda()
    fake: Any = SimpleNamespace(cuda=cuda)
    monkeypatch.setitem(sys.modules, "torch", fake)
    outer, inner = StageMeter(), StageMeter()
    cuda.peak = 999  # before either began
    with outer.stage("outer"):
        cuda.peak = 70
        with inner.stage("first"):
            cuda.peak = 30
        with inner.stage("second"):
            cuda.peak = 50
    assert [use.peak_vram_bytes for use in inner.stages] == [30, 50]
    assert [use.peak_vram_bytes for use in outer.stages] == [70]
