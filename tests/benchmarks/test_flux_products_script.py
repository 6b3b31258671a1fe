"""The script that times products in 8 bit runs at its smallest on the CPU, where they are imitated."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "flux_products.py"


@pytest.fixture(scope="module")
def script() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_flux_products", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)
        patch.setattr(sys, "path", list(sys.path))
        spec.loader.exec_module(module)
        yield module


def test_every_way_is_timed_and_compared(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert script.main(["--size", "tiny", "--device", "cpu", "--side", "64", "--repeats", "1"]) == 0
    report = json.loads(capsys.readouterr().out)
    ways = report["ways"]
    eight = ["weights in 8 bit", "weights in 8 bit, float8", "weights in 8 bit, int8"]
    assert list(ways) == ["16 bit", "float8", "int8", *eight]
    for way, found in ways.items():
        assert found["step_ms"] == pytest.approx(19 * found["double_ms"] + 38 * found["single_ms"])
        assert (found["off_by"] == 0) == (way == "16 bit") and found["double_ms"] > 0
    assert ways["float8"]["off_by"] > ways["int8"]["off_by"], "it truly multiplies so"
    assert isinstance(report["pays"], bool)


def test_numbers_that_are_wrong_are_a_failure(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = script.fast_products.product
    monkeypatch.setattr(script.fast_products, "product", lambda *given: -3 * wrong(*given))
    assert script.main(["--size", "tiny", "--device", "cpu", "--side", "64", "--repeats", "1"]) == 1
    assert torch.get_default_dtype() == torch.float32
