"""The script that compares compiled blocks with ordinary ones runs at its smallest on the CPU."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

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
