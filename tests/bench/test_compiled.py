"""``bench --compile always``: our way has compiled blocks, what compiling took is told apart, and rows say so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headshot_ui.bench.compiled import CompilingClock
from headshot_ui.bench.rows import Row
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.works import flux_generate, flux_train, generate, train
from headshot_ui.settings import Settings
from tests.compiled_here import as_on_a_card


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BenchSetting]:
    """Tiny models, compiled by what stands in for Inductor, though there is no card here."""
    settings = Settings.from_environment(
        device="cpu", outputs_dir=tmp_path / "outputs", compile="always", environment={}
    )
    with as_on_a_card(monkeypatch, tmp_path):
        yield BenchSetting(settings, "tiny", 1, tmp_path / "scratch", lambda _: None)


def one_turn(first: Callable[[], Any], second: Callable[[], Any], rounds: int = 1) -> tuple[Any, Any]:
    return first(), second()


def check(rows: list[Row], count: int) -> None:
    assert len(rows) == count and all(row.work.endswith(", compiled blocks") for row in rows)
    seconds = [row.compiling_s for row in rows]
    assert all(taken is not None and taken >= 0 for taken in seconds) and (seconds[0] or 0) > 0


@pytest.mark.parametrize("asked", ["never", "auto"])
def test_only_always_compiles(setting: BenchSetting, asked: Any) -> None:
    ordinary = dataclasses.replace(setting, settings=dataclasses.replace(setting.settings, compile=asked))
    clock = CompilingClock.of(ordinary)
    assert (clock.asked, clock.found, clock.words) == (False, None, "")
    with clock.blocks(None, learning=True):  # type: ignore[arg-type]
        pass  # nothing is asked of the model
    assert CompilingClock.of(setting).asked


@pytest.mark.slow
def test_a_training_step(setting: BenchSetting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "in_both_orders", one_turn)
    monkeypatch.setattr(train, "CHECKPOINTING", train.CHECKPOINTING[:1])
    rows = list(train.measure_training(setting))
    check(rows, 1)
    assert (rows[0].compiling_s or 0) > rows[0].ours_s / 2, "it is timed together with the steps"


def test_a_training_step_of_flux(setting: BenchSetting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flux_train, "in_both_orders", one_turn)
    monkeypatch.setattr(flux_train, "TINY_CASES", flux_train.TINY_CASES[:1])
    check(list(flux_train.measure_training(setting)), 1)


def test_drawing_with_flux(setting: BenchSetting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flux_generate, "in_both_orders", one_turn)
    rows = list(flux_generate.measure_generate(setting))
    check(rows, 2)
    assert float(rows[0].note.split(" dB")[0].split()[-1]) >= 40, "another picture than that of diffusers' pipeline"
    assert "Compiling" not in rows[0].note, "what is compiled is compiled before the clock runs"


def test_drawing_is_told_apart_by_its_stages(setting: BenchSetting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the models: what the few steps before compile counts for their own way only, and once."""
    drawing = generate.Drawing(FakeModels(), setting, pictures=1, steps=2)  # type: ignore[arg-type]

    def way(drawing: generate.Drawing, steps: int, folder: Path) -> list[Any]:
        drawing.stages["exact"] = {"Compiling": 4.0, "Drawing": 1.0} if steps == 3 else {"Drawing": 1.0}
        return []

    monkeypatch.setitem(generate._WAYS, "exact", way)
    monkeypatch.setitem(generate._WAYS, "together", lambda *_: [])
    drawing.timed("exact")
    drawing.timed("together")
    assert drawing.clock("exact").found == 4.0 and drawing.clock("fast").found == 0.0


class FakeModels:
    def on_card(self, wanted: bool) -> None:
        pass


@pytest.mark.slow
def test_drawing_when_tiny(setting: BenchSetting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "in_both_orders", one_turn)
    rows = list(generate.measure_generate(setting))
    check(rows, 3)
    assert float(rows[0].note.split(" dB")[0].split()[-1]) >= 40
