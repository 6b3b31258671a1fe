from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def venv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where HEADSHOT_UI_VENV points; nothing is there yet."""
    folder = tmp_path / "an environment"
    monkeypatch.setenv("HEADSHOT_UI_VENV", str(folder))
    return folder


@pytest.fixture
def app(venv: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """app.py as a module: no network, no GPU driver, a large disk; ``run`` only notes commands in ``app.commands``.

    ``app.fails(command)`` decides which command fails.
    """
    spec = importlib.util.spec_from_file_location("app_under_test", ROOT / "app.py")
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.real_run, module.real_answers = module.run, module.answers
    module.commands, module.fails = [], lambda command: False

    def run(command: list[str], failure: str, guard: object) -> None:
        module.commands.append(command)
        if module.fails(command):
            raise module.Stop(f"{failure}: as the test wants it.")
        if command[1:3] == ["-m", "venv"]:
            make_environment(venv)

    monkeypatch.setattr(module, "run", run)
    monkeypatch.setattr(module, "cache_options", lambda: [])
    monkeypatch.setattr(module, "answers", lambda url, timeout_s=5: False)
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: SimpleNamespace(free=100 * module.GB))
    return module


def make_environment(folder: Path) -> Path:
    """What ``python -m venv`` leaves, as far as a start looks at it; its Python is this one."""
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    python.parent.mkdir(parents=True, exist_ok=True)
    (folder / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).parent}\n")
    if os.name == "nt":
        python.write_bytes(b"")
    else:
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
    return python


@pytest.fixture
def ready(app: Any, venv: Path) -> Callable[[], Path]:
    """Make an environment that is complete, stamp and all."""

    def make(**changes: object) -> Path:
        python = make_environment(venv)
        locks = {"requirements": app.digest(app.LOCK), "tests": app.digest(app.TEST_LOCK)}
        app.write_stamp({**locks, "state": "ready", "python": app.present_python(), **changes})
        return python

    return make
