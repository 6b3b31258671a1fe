"""The script that compares compiled blocks with ordinary ones runs at its smallest on the CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from headshot_ui.capture import Graphs

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "compiled_blocks.py"
SMALLEST = ["--size", "tiny", "--device", "cpu", "--side", "64", "--count", "2", "--backend", "aot_eager"]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_compiled_blocks", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "words", ["--model flux --work train --level full", "--model flux --work draw", "--model sdxl --work draw"]
)
def test_it_compares(script: Any, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    assert script.main([*words.split(), *SMALLEST, "--report", str(file)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(file.read_text(encoding="utf-8"))
    assert report["ordinary"]["seconds"] > 0 and report["compiled"]["compilations"] > 1
    assert report["compiled_again"]["compilations"] == report["compiled"]["compilations"]
    assert report["ordinary_differ_by"] == 0 and report["differ_by"] < 1e-3


@pytest.mark.parametrize("model", ["sdxl", "flux"])
def test_a_pass_that_is_recorded_is_found_again(script: Any, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a card passes are looked up by their model; here a fake records them."""

    class Fake:
        def __init__(self, step: Any, inputs: Any, **_: Any) -> None:
            self.step = step

        def replay(self, *inputs: Any) -> Any:
            return self.step(*inputs)

    made = script.MODELS[model]("tiny", 64, "none", "cpu", torch.float32)
    assert len({script.Pass(made), script.Pass(made)}) == 1
    recorded = Graphs("cpu", Fake)
    recorded._why_not = ""
    monkeypatch.setattr(script, "graphs", lambda device: nullcontext(recorded))
    figures, output = script.drawing(made, "cpu", 2)()
    assert figures["recorded"] and len(recorded) == 1 and output


def test_what_is_compiled_is_kept_where_it_is_said(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept: list[Path] = []
    monkeypatch.setattr(script.compiling, "keep_in", kept.append)
    words = ["--model", "flux", "--work", "draw", "--cache"]
    assert script.main([*words, str(tmp_path), *SMALLEST]) == 0
    assert kept == [tmp_path] and tmp_path.is_dir()
