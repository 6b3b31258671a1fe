"""The parts of benchmarks/everything.py: run one after another, kept, not run twice, each known to its program."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from headshot_ui import cli

ROOT = Path(__file__).parents[2]


@pytest.fixture
def everything(monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_everything", ROOT / "benchmarks" / "everything.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module


def test_a_second_call_goes_on_where_the_first_one_stopped(everything, tmp_path, capsys):
    counted = "import sys; open(sys.argv[1], 'a').write('x'); print('told')"
    good = everything.Part("good", 60, ("-c", counted, "{report}"))
    bad = everything.Part("bad", 60, ("-c", "raise SystemExit(3)"))
    slow = everything.Part("slow", 1, ("-c", "import time; print('begun', flush=True); time.sleep(60)"))
    arguments = ["--out", str(tmp_path / "out"), "--models", str(tmp_path)]
    assert everything.main(arguments, (good, bad, slow)) == 1
    told = capsys.readouterr().out
    assert "good: done after" in told and "bad: failed with code 3" in told and "slow: stopped, out of time" in told
    assert (tmp_path / "out" / "slow.txt").read_text() == "begun\n"
    assert everything.main([*arguments, "--only", "good"], (good, bad, slow)) == 0
    assert "good: done before" in capsys.readouterr().out
    assert (tmp_path / "out" / "good.json").read_text() == "x"
    assert json.loads((tmp_path / "out" / "bad.end.json").read_text())["code"] == 3


def test_nothing_is_begun_without_time(everything, tmp_path, capsys):
    part = everything.Part("part", 60, ("-c", ""))
    assert everything.main(["--out", str(tmp_path), "--models", str(tmp_path), "--minutes", "0"], (part,)) == 1
    assert capsys.readouterr().out == "part: no time left\n"


def test_every_program_knows_its_options(everything, monkeypatch):
    """Only the options are read: what a part does is tested where the program is."""
    for part in everything.PARTS:
        if part.arguments[0] == "-m":
            continue
        text = (ROOT / part.arguments[0]).read_text(encoding="utf-8")
        for option in (each for each in part.arguments if each.startswith("--")):
            assert f'"{option}"' in text, f"{part.name}: {option}"


def test_what_is_compared_is_what_was_published(everything):
    """Of dropped modulation and the ordinary way, figures are of one side."""
    (part,) = [part for part in everything.PARTS if part.name == "flux-compare"]
    published = json.loads((ROOT / "benchmarks" / "results" / "flux-compare-h200.json").read_text(encoding="utf-8"))
    assert part.arguments[part.arguments.index("--side") + 1] == str(published["side"])


def test_the_command_line_knows_the_options_of_commands(everything):
    commands = [part.arguments for part in everything.PARTS if part.arguments[:2] == ("-m", "headshot_ui")]
    assert sum("--compile" in arguments for arguments in commands) == 4
    for arguments in commands:
        read = cli.build_parser().parse_args([each.format(report="r", models="m") for each in arguments[2:]])
        assert getattr(read, "compile", "never") == ("always" if "--compile" in arguments else "never")
