"""Drawing beside diffusers' pipeline: the order of the runs, the arithmetic of the rows, and all of it when tiny."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from headshot_ui.bench.sdxl import bound_tflop, psnr
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.timing import Timed, in_both_orders
from headshot_ui.bench.works import all_works, generate
from headshot_ui.settings import Settings


def test_it_is_found() -> None:
    assert all_works()["generate"] is generate.WORK


def test_both_orders_and_the_highest_peak() -> None:
    runs: list[str] = []
    times = iter(Timed(float(number), 0.0, 100 - number) for number in range(1, 9))

    def timed(way: str) -> Timed:
        runs.append(way)
        return next(times)

    theirs, ours = in_both_orders(lambda: timed("together"), lambda: timed("exact"), rounds=2)
    assert runs == ["together", "exact", "exact", "together"] * 2
    assert (theirs.seconds, theirs.peak_bytes) == (4.5, 99)  # 1, 4, 5, 8
    assert (ours.seconds, ours.peak_bytes) == (4.5, 98)  # 2, 3, 6, 7


def test_what_arithmetic_takes() -> None:
    assert bound_tflop(1, 30, 30) == pytest.approx(416, abs=1)  # as counted for a picture with guidance throughout
    assert bound_tflop(8, 30, 18) < 0.82 * bound_tflop(8, 30, 30)


def test_the_least_alike_pair_counts() -> None:
    black, grey, white = (Image.new("RGB", (4, 4), (level,) * 3) for level in (0, 1, 255))
    assert psnr([black, white], [black, white]) == 99
    assert psnr([black, black], [black, grey]) == pytest.approx(48.13, abs=0.01)
    assert psnr([white], [black]) == 0


@pytest.mark.slow
def test_all_of_it_when_tiny(tmp_path: Path) -> None:
    settings = Settings.from_environment(device="cpu", outputs_dir=tmp_path / "outputs", environment={})
    exact, fast, alone = generate.measure_generate(BenchSetting(settings, "tiny", 1, tmp_path / "scratch", print))
    assert exact.reference_s > 0 and exact.ours_s > 0 and exact.bound_s is None
    assert exact.met is not None and "Drawing" in exact.note
    decibels = float(exact.note.split(" dB")[0].split()[-1])
    assert decibels >= 40, "the same noise and words give another picture than diffusers' pipeline"
    assert "2 of 3 steps" in fast.note and fast.reference_s == exact.reference_s
    assert "with a LoRA" in alone.work and alone.ratio > 0
    assert float(alone.note.split("differ by ")[1].split("%")[0]) < 0.1, "the LoRA does not do the same both ways"
