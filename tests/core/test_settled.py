"""Whether a training keeps its activations or computes them twice, where the request leaves it open."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headshot_ui import forecast as forecast_module
from headshot_ui.errors import SpecError
from headshot_ui.families.fits import ROOM_FOR_DOUBT
from headshot_ui.forecast import Forecast, settled
from headshot_ui.peaks import Measured, Peaks
from headshot_ui.settings import Settings
from headshot_ui.specs import CHECKPOINTING, TrainSpec
from headshot_ui.training.plan import going_on
from tests.core.fakes import FakeWorld
from tests.core.test_forecast import TRAIN, peaks, plan, world

__all__ = ["peaks", "plan", "world"]  # fixtures
OPEN = replace(TRAIN, gradient_checkpointing=None)


@pytest.fixture
def decided(plan: Callable[..., Forecast], settings: Settings, world: FakeWorld, peaks: Peaks) -> Callable[..., Any]:
    """``settled`` where so many bytes of main memory are free."""

    def decide(spec: TrainSpec, limit: int) -> TrainSpec:
        plan(spec, limit)  # sets what is free
        return settled(spec, settings, world.parts(), peaks)

    return decide


def test_the_least_checkpointing_is_chosen_that_clearly_fits(
    plan: Callable[..., Forecast], decided: Callable[..., TrainSpec]
) -> None:
    none, partial, full = (plan(replace(TRAIN, gradient_checkpointing=level)).peak_bytes for level in CHECKPOINTING)
    for needed, fits, else_ in ((none, "none", "partial"), (partial, "partial", "full"), (full, "full", "full")):
        clearly = int(needed * ROOM_FOR_DOUBT) + 1
        assert decided(OPEN, clearly) == replace(TRAIN, gradient_checkpointing=fits), "nothing else changes"
        assert decided(OPEN, clearly - 2).gradient_checkpointing == else_
    assert decided(OPEN, 1).gradient_checkpointing == "full", "that it does not fit at all is for the forecast to say"


@pytest.mark.parametrize(("gb", "level"), [(8, "full"), (12, "partial"), (16, "none"), (24, "none")])
def test_cards_of_usual_sizes(
    gb: int, level: str, settings: Settings, world: FakeWorld, peaks: Peaks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a denoiser as large as that of SDXL and its LoRA of rank 32, at 1024 x 1024, by headers alone."""
    parts = world.parts()
    large = replace(parts.find_base("demo", settings), size_px=1024)
    write_outline(settings.models_dir / "demo" / "unet" / "x.safetensors", 2_567_463_684, 83_722_240 // 32)
    monkeypatch.setattr("headshot_ui.settings._usable", lambda device: True)
    monkeypatch.setattr(forecast_module, "vram_budget_bytes", lambda settings: int(gb * 0.95 * 2**30))
    card = Settings.from_environment(root=settings.root, device="cuda", dtype="bfloat16", environment={})
    spec = replace(OPEN, batch_size=1, rank=32)
    assert settled(spec, card, replace(parts, find_base=lambda *_: large), peaks).gradient_checkpointing == level


def write_outline(path: Path, numbers: int, sides: int) -> None:
    """The header of weights of so many numbers, a matrix of attention with so many rows and columns among them."""
    matrix = {"dtype": "F16", "shape": [sides - 1, 1], "data_offsets": [0, 2 * (sides - 1)]}
    rest = {"dtype": "F16", "shape": [numbers], "data_offsets": [0, 2 * numbers]}
    header = json.dumps({"mid.attn1.to_q.weight": matrix, "other": rest}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)


def test_what_was_asked_for_is_not_decided_again(decided: Callable[..., TrainSpec]) -> None:
    for asked in CHECKPOINTING:
        for limit in (1, 2**40):
            assert decided(replace(TRAIN, gradient_checkpointing=asked), limit).gradient_checkpointing is asked


def test_what_was_measured_needs_no_room_for_doubt(
    plan: Callable[..., Forecast], decided: Callable[..., TrainSpec], peaks: Peaks
) -> None:
    (train,) = plan(TRAIN).stages
    assert decided(OPEN, train.peak_bytes).gradient_checkpointing != "none"
    measured = {"none": 1_500_000_000, "partial": 1_400_000_000}
    for size, peak in zip(("64x64 batch 2", "64x64 batch 2 partly checkpointed"), measured.values(), strict=True):
        peaks.record("demo", Measured("train", 50.0, peak, 0, size, "cpu", "float32", units=200))
    for level, peak in measured.items():
        assert plan(replace(TRAIN, gradient_checkpointing=level)).peak_bytes == peak
        assert decided(OPEN, peak).gradient_checkpointing == level
        assert decided(OPEN, peak - 1).gradient_checkpointing == CHECKPOINTING[CHECKPOINTING.index(level) + 1]


def test_requests_of_before_there_were_levels_are_read() -> None:
    for old, level in ((True, "full"), (False, "none"), (None, None)):
        data = {**TRAIN.to_json(), "gradient_checkpointing": old}
        assert TrainSpec.from_json(data).gradient_checkpointing == level
        assert data["gradient_checkpointing"] is old, "what was given stays"
    assert TrainSpec.from_json(TRAIN.to_json()) == TRAIN
    with pytest.raises(SpecError, match="“some” is no gradient checkpointing; choose none or partial or full"):
        replace(TRAIN, gradient_checkpointing="some")


@pytest.mark.parametrize(("begun", "asked", "goes_on"), [
    ("none", None, "none"), ("none", "partial", "partial"), ("full", "partial", "full"), ("partial", "none", "partial"),
])  # fmt: skip
def test_a_run_goes_on_with_no_less_checkpointing_than_it_began_with(
    begun: str, asked: str | None, goes_on: str, world: FakeWorld, settings: Settings
) -> None:
    first = replace(TRAIN, gradient_checkpointing=begun)
    info = world.parts().find_base("demo", settings)
    resumed = going_on(first, replace(OPEN, gradient_checkpointing=asked), info)
    assert resumed.gradient_checkpointing == goes_on
