"""What the plan tells of time with FLUX.1: fast and exact apart, and what getting the model ready takes beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headshot_ui.amounts import Known, plan_generate
from headshot_ui.engine import Engine, real_parts
from headshot_ui.families.fits import COMPUTED_EACH_JOB
from headshot_ui.forecast import Forecast, forecast, forecast_lines
from headshot_ui.generation.speeds import REUSING_SHARE
from headshot_ui.peaks import Measured, Peaks
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec
from headshot_ui.workshop import GettingReady
from tests.families.flux.test_flux_cards import DRAW, card, machine, peaks
from tests.families.flux.test_flux_told import SPEC, engine

FIXTURES = card, machine, peaks, engine  # of those files
FAST = replace(DRAW, speed="fast")
Cards = Callable[..., Settings]


def measured(settings: Settings, peaks: Peaks, spec: GenerateSpec, seconds: float, first_s: float = 0.0) -> None:
    """As if that had been drawn before."""
    plan = plan_generate(spec, Known(settings, real_parts(), "cuda", "bfloat16"))
    use = Measured(plan.name, seconds, 2**30, 2**30, plan.size, "cuda", "bfloat16", plan.units, first_s)
    peaks.record(plan.model, use)


def planned(settings: Settings, peaks: Peaks, spec: GenerateSpec) -> Forecast:
    return forecast(spec, settings, real_parts(), peaks)


# --- fast ---------------------------------------------------------------------------------------------
def test_fast_and_exact_are_measured_apart_and_estimated_by_each_other(card: Cards, peaks: Peaks) -> None:
    settings = card(24)
    assert planned(settings, peaks, FAST).seconds is None
    measured(settings, peaks, DRAW, 30.0)
    exact, fast = planned(settings, peaks, DRAW), planned(settings, peaks, FAST)
    assert exact.seconds == pytest.approx(30.0) and fast.seconds == pytest.approx(30.0 * REUSING_SHARE)
    assert "“Fast” is taken to need 67% of the time" in "\n".join(forecast_lines(fast))
    assert fast.stages[0].measured and fast.peak_bytes == exact.peak_bytes
    assert not any("“Fast”" in line for line in forecast_lines(exact))
    measured(settings, peaks, FAST, 12.0)
    fast = planned(settings, peaks, FAST)
    assert fast.seconds == pytest.approx(12.0) and not any("“Fast”" in line for line in forecast_lines(fast))
    assert planned(settings, peaks, DRAW).seconds == pytest.approx(30.0)


def test_exact_is_estimated_by_fast_too(card: Cards, peaks: Peaks) -> None:
    settings = card(24)
    measured(settings, peaks, FAST, 12.0)
    exact = planned(settings, peaks, DRAW)
    assert exact.seconds == pytest.approx(12.0 / REUSING_SHARE) and "only fast ones" in exact.notes[-1]


def test_where_blocks_travel_fast_is_no_faster(card: Cards, peaks: Peaks) -> None:
    settings = card(8)
    measured(settings, peaks, DRAW, 90.0)
    fast = planned(settings, peaks, FAST)
    assert fast.seconds == pytest.approx(90.0) and not any("“Fast”" in line for line in forecast_lines(fast))


# --- the first time -----------------------------------------------------------------------------------
def time_line(made: Forecast) -> str:
    return next(line for line in forecast_lines(made) if line.startswith("Time: "))


def test_getting_the_model_ready_is_estimated_and_then_measured(card: Cards, peaks: Peaks) -> None:
    settings = card(24)
    on_top = "Reading the base model and making it fit comes on top where it is not in memory yet:"
    assert time_line(planned(settings, peaks, DRAW)) == (
        f"Time: not measured on this computer yet. {on_top} about 34 s (estimated: 1 GB a second from the disk)."
    )
    measured(settings, peaks, DRAW, 30.0, first_s=71.0)
    wanted = f"Time: about 30 s, judging by the last time. {on_top} at most about 1 min 11 s (as measured before)."
    assert time_line(planned(settings, peaks, DRAW)) == wanted
    for first_s in (0.0, 4.0):  # it was in memory; all but T5 was
        measured(settings, peaks, DRAW, 30.0, first_s)
        assert time_line(planned(settings, peaks, DRAW)) == wanted
    assert "1 min 11 s (as measured before)" in time_line(planned(settings, peaks, FAST)), "it is read alike"


def test_only_what_was_told_of_getting_ready_counts() -> None:
    now = [0.0]
    heard: list[Any] = []
    ready = GettingReady(lambda *step: heard.append(step), lambda: now[0])
    steps = [(5, "Reading", 0), (6, "Reading", 1), (8, "Reading", 2), (9, "Rounding", 0), (9.5, "Rounding", 1)]
    steps += [(30, "Rounding", 0), (31, "Rounding", 1), (40, COMPUTED_EACH_JOB, 0), (47, COMPUTED_EACH_JOB, 1)]
    for now[0], stage, step in steps:
        ready(stage, step, 2)
    assert ready.seconds == pytest.approx(3 + 0.5 + 1), "what lies between is something else"
    assert heard == [(stage, step, 2) for _, stage, step in steps]


def test_a_job_notes_them_apart_from_the_drawing(engine: Engine, tmp_path: Path) -> None:
    assert engine.submit(SPEC).wait(120).state == "done"
    (first,) = Peaks(tmp_path / "outputs").of("tiny-flux").values()
    assert first.first_s > 0 and first.seconds > 0
    assert engine.submit(SPEC).wait(120).state == "done"
    (again,) = Peaks(tmp_path / "outputs").of("tiny-flux").values()
    assert again.first_s == first.first_s, "it was in memory, and what it took before is remembered"
