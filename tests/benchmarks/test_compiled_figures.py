"""What families say compiling costs and saves is what was measured, or less favourable."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headshot_ui.families.flux_parts import blocks
from headshot_ui.families.requests import CompilingFigures
from headshot_ui.families.sdxl_parts import trained_blocks

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "compiled-h200.json"


@pytest.mark.parametrize(
    ("figures", "steps", "firsts"),
    [
        (trained_blocks.COMPILING, [("alone", "sdxl-train")], ["sdxl-train"]),
        (
            blocks.COMPILING,
            [("alone", "flux-train-512"), ("beside_another_training", "flux-train-1024-full")],
            ["flux-train-512", "flux-train-1024-full"],
        ),
    ],
    ids=["sdxl", "flux"],
)
def test_figures_are_those_that_were_kept(
    figures: CompilingFigures, steps: list[tuple[str, str]], firsts: list[str]
) -> None:
    kept: dict[str, Any] = json.loads(RESULTS.read_text("utf-8"))
    for part, name in steps:
        report = kept[part][name]
        of = report.get("seconds_shared_at_times") or {way: report[way]["seconds"] for way in WAYS}
        share = 1 - of["compiled"] / of.get("ordinary", of["ordinary_again"])
        assert share - 0.025 < figures.saved < share + 0.002
    cold = [kept["beside_another_training"][name]["compiled"]["first_seconds"] for name in firsts]
    warm = [kept["beside_another_training"][name]["compiled_again"]["first_seconds"] for name in firsts]
    assert 0.95 * max(cold) < figures.cold_seconds < 1.1 * max(cold)
    assert max(warm) < figures.warm_seconds < 1.1 * max(warm)
    assert figures.cores == 16


WAYS = ("ordinary", "compiled", "compiled_again", "ordinary_again")
