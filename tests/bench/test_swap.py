"""The work ``swap`` on tiny models, from its files to its rows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from headshot_ui.bench import swap_pictures, works
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.timing import Timed
from headshot_ui.bench.works import swap
from headshot_ui.families.protocol import RefinerInfo
from headshot_ui.settings import Settings
from tests.core.fakes import write_weights


@pytest.mark.slow
def test_the_work_measures_its_four_rows_on_tiny_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(swap_pictures, "STEPS", 2)
    settings = Settings.from_environment(root=tmp_path, device="cpu", vram_limit="8GB", environment={})
    assert works.all_works()["swap"] is swap.WORK
    rows = list(swap.measure(BenchSetting(settings, "tiny", 1, tmp_path / "swap", lambda line: None)))
    assert [row.work.split(",")[0] for row in rows] == [
        "tiny SDXL: base → refiner", "tiny SDXL: 4 swaps", "tiny SDXL: loading the base", "2 pictures of 2 steps",
    ]  # fmt: skip
    assert all(row.reference_s > 0 and row.ours_s > 0 and row.bound_s is None for row in rows)
    assert "demo restorer" in rows[3].work and "cap 8 GB" in rows[3].work


def test_each_way_is_undone_off_the_clock_and_has_the_card_to_itself() -> None:
    done: list[str] = []
    note = lambda text: lambda: done.append(text)  # noqa: E731
    ways = [swap.Way(*(note(f"{way} {what}") for what in ("run", "undo", "end"))) for way in "AB"]
    first, second = swap.alternating(ways[0], ways[1], "cpu", 4)
    assert [line[0] for line in done if line.endswith("end")] == ["A", "B", "B", "A"]
    assert done[: done.index("B run")] == [*(["A run", "A undo"] * 3), "A end"]
    assert first.peak_bytes is None and second.seconds < 0.1


@pytest.mark.parametrize(("ours", "met"), [(0.124, True), (0.126, False)])
def test_the_swap_is_held_against_the_bytes_of_the_refiner(
    ours: float, met: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings.from_environment(root=tmp_path, device="cpu", environment={})
    setting = BenchSetting(settings, "full", 1, tmp_path, lambda line: None)
    refiner = RefinerInfo("r", "sdxl", "R", tmp_path / "r", "", "")
    write_weights(refiner.folder / "unet" / "x.safetensors", {"w": ("F16", 1000)})
    models = swap.Models(settings, SimpleNamespace(), refiner)  # type: ignore[arg-type]
    monkeypatch.setattr(swap, "_bound", lambda settings, size: size / 20_000)
    row = swap._swap_row(setting, models, Timed(1.0, 0.0, 5), Timed(ours, 0.0, 6), "it is so")
    assert (row.bound_s, row.met) == (0.1, met) and "it is so" in row.note


@pytest.mark.parametrize(("grows", "met"), [(0, True), (30, False)])
def test_fifty_swaps_are_held_against_the_memory_after_the_first(
    grows: int, met: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SimpleNamespace(device="cuda")
    setting = BenchSetting(settings, "full", 1, tmp_path, lambda line: None)  # type: ignore[arg-type]
    done: list[str] = []
    monkeypatch.setattr(swap, "_memory", lambda device: [1000 + (grows if len(done) > 2 else 0), 50])
    monkeypatch.setattr(swap, "synchronise", lambda device: None)
    note = lambda text: lambda: done.append(text)  # noqa: E731
    row = swap._fifty_row(setting, Timed(1.0, 0.0, None), note("first"), note("other"))
    assert len(done) == 52 and done[:4] == ["other", "first", "other", "first"] and row.met is met
