"""The script that measures FLUX.1 under a cap runs at its smallest on the CPU, every way of the plan."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from headshot_ui.families.flux_parts.fitting import Fit

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "flux_fitting.py"
SMALLEST = ["--cap", "1", "--size", "tiny", "--device", "cpu", "--side", "64", "--steps", "3"]


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_flux_fitting", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        patch.setattr(sys, "path", list(sys.path))
        spec.loader.exec_module(module)
        yield module


def test_it_measures_and_compares(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(SMALLEST) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["way"] == "16 bit" and report["learning"]["last_loss"] > 0 and report["drawing"]
    assert script.main([*SMALLEST, "--compare"]) == 0
    compared = json.loads(capsys.readouterr().out)["compare"]
    assert compared["outputs_differ_by"] == 0 == compared["last_losses_differ_by"]


def test_the_smallest_way_learns_what_8_bit_learns(script: Any) -> None:
    config = script.SIZES["tiny"]
    steps = [script.random_inputs(config, 64, 8, seed, "cpu", torch.bfloat16) for seed in range(3)]
    losses = []
    for streamed in (0, 6):
        fit = Fit(True, True, streamed, 8, 0, 0, False)
        ready = script.made_to_fit(config, fit, steps, "cpu", torch.bfloat16)
        assert (ready.streamed is not None) == bool(streamed) and ready.rows is not None
        learned = script.learn(ready, steps, "cpu")
        losses.append((learned["first_loss"], learned["last_loss"]))
        assert script.draw(ready, steps, "cpu", fast="int8")["seconds_per_step"] > 0
    assert losses[0] == losses[1]
