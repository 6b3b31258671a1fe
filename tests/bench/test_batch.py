"""A person's headshots beside diffusers' pipeline: which of its forms counts, and all of it when tiny."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.timing import Timed
from headshot_ui.bench.works import all_works, batch
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec


def test_it_is_found() -> None:
    assert all_works()["batch"] is batch.WORK


@pytest.mark.parametrize(
    ("alone", "at_once", "reference"),
    [(4.0, 3.0, batch.TOGETHER), (3.0, 4.0, batch.ONE_BY_ONE), (4.0, None, batch.ONE_BY_ONE)],
)
def test_the_faster_form_that_fits_is_the_reference(
    alone: float, at_once: float | None, reference: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[str] = []
    picture = Image.new("RGB", (4, 4))

    class Fake(batch.Batch):
        planned = [None, None]  # type: ignore[assignment]

        def timed(self, way: str) -> Timed:
            runs.append(way)
            self.drawn[way] = [picture]
            if way == batch.TOGETHER and at_once is None:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return Timed({batch.ONE_BY_ONE: alone, batch.TOGETHER: at_once or 0.0, batch.OURS: 2.0}[way], 0.0, 7)

    models: Any = SimpleNamespace(side=64, on_card=lambda wanted: None)
    spec = GenerateSpec("bench", "bench", presets=("a", "b"), steps=3)
    monkeypatch.setattr(batch, "_batch", lambda setting: Fake(models, setting, Path(), spec))
    settings = Settings.from_environment(device="cpu", outputs_dir=tmp_path / "outputs", environment={})
    (row,) = batch.measure_batch(BenchSetting(settings, "tiny", 1, tmp_path / "scratch", lambda line: None))
    first = [batch.ONE_BY_ONE, batch.TOGETHER]
    assert runs == [*first, reference, batch.OURS, batch.OURS, reference]
    assert (row.reference_s, row.ours_s) == (3.0 if at_once == 3.0 or alone == 3.0 else 4.0, 2.0)
    assert ("does not fit" in row.note) == (at_once is None) and reference in row.note
    assert row.met is (row.reference_s >= batch.TIMES * 2.0)


@pytest.mark.slow
def test_the_same_pictures_come_of_it_when_tiny(tmp_path: Path) -> None:
    settings = Settings.from_environment(device="cpu", outputs_dir=tmp_path / "outputs", environment={})
    said: list[Any] = []
    (row,) = batch.measure_batch(BenchSetting(settings, "tiny", 1, tmp_path / "scratch", said.append))
    assert row.reference_s > 0 and row.ours_s > 0 and row.bound_s is None
    assert "2 pictures of 2 looks" in row.work and "one by one" in said[-1]
    decibels = float(row.note.split(" dB")[0].split()[-1])
    assert decibels >= 40, "the same noise, words and LoRA give other pictures than diffusers' pipeline"
