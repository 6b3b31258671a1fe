"""A start when everything is there, help before it is, and the way to the tests."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import time

import pytest

from tests.setup.conftest import ROOT

POSIX = pytest.mark.skipif(os.name == "nt", reason="the environment's Python is faked by a shell script")


def start(*arguments, cwd=ROOT, **environment):
    return subprocess.run(
        [sys.executable, str(ROOT / "app.py"), *arguments],
        cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@POSIX
def test_a_start_costs_little_when_all_is_there(ready):
    python = ready()
    python.write_text("#!/bin/sh\nexit 7\n")
    seconds = []
    for _ in range(10):
        begin = time.perf_counter()
        done = start("doctor")
        seconds.append(time.perf_counter() - begin)
        assert done.returncode == 7, done.stderr
    assert min(seconds) < 0.3


@POSIX
def test_it_goes_on_inside_with_arguments_folder_and_exit_code(ready, tmp_path):
    python = ready()
    python.write_text('#!/bin/sh\nfor a in "$@"; do echo "<$a>"; done\npwd; echo "$PYTHONPATH"; exit 5\n')
    done = start("prepare", "my photos", "--person", "anna", cwd=tmp_path)
    assert done.returncode == 5 and done.stderr == ""
    *arguments, folder, path = done.stdout.splitlines()
    assert arguments == ["<-P>", "<-m>", "<headshot_ui>", "<prepare>", "<my photos>", "<--person>", "<anna>"]
    assert (folder, path) == (str(tmp_path), str(ROOT))


def test_on_windows_it_waits_for_a_child(app, monkeypatch):
    monkeypatch.setattr(app, "WINDOWS", True)
    monkeypatch.setattr(app, "VENV_PYTHON", sys.executable)
    monkeypatch.setattr(app.signal, "signal", lambda *_: None)
    monkeypatch.setenv("PYTHONPATH", "")
    assert app.go_inside(["-c", "raise SystemExit(9)"]) == 9


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["demo", "--help"], ["test", "--help"]])
def test_help_needs_no_set_up(venv, arguments):
    done = start(*arguments)
    assert done.returncode == 0 and not venv.exists()
    assert all(word in done.stdout for word in ("demo", "headshots", "doctor", "test", "HEADSHOT_UI_VENV"))


def test_an_incomplete_copy_is_told(app, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(app, "LOCK", str(tmp_path / "requirements.txt"))
    assert app.main(["demo"]) == 1
    assert "requirements.txt is missing" in capsys.readouterr().err


def test_a_damaged_stamp_counts_as_none(app, ready, venv):
    ready()
    assert app.is_ready(True)
    unfinished = (venv / "headshot_ui.json").read_text().replace('"ready"', '"installing"')
    for damage in ("", "{", "[1]", '"x"', '{"state": "ready"}', unfinished):
        (venv / "headshot_ui.json").write_text(damage)
        assert not app.is_ready(False)


def test_line_endings_of_a_checkout_do_not_change_the_lock(app, tmp_path):
    (tmp_path / "unix").write_bytes(b"a==1\nb==2\n")
    (tmp_path / "windows").write_bytes(b"a==1\r\nb==2\r\n")
    assert app.digest(str(tmp_path / "unix")) == app.digest(str(tmp_path / "windows"))


def test_old_pythons_can_read_app_py():
    """They must get as far as to say that they are too old."""
    ast.parse((ROOT / "app.py").read_text(encoding="utf-8"), feature_version=(3, 6))


def test_app_py_needs_only_the_standard_library():
    tree = ast.parse((ROOT / "app.py").read_text(encoding="utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(str(node.module).split(".")[0])
    assert names <= sys.stdlib_module_names


# --- the tests' own way ---------------------------------------------------------------------------------------------


@POSIX
@pytest.mark.parametrize(
    ("options", "code", "closing"),
    [([], 0, "1 passed, 1 deselected"), (["--slow"], 1, "1 failed, 1 passed"), (["--slow", "-k", "quick"], 0, "1 pas")],
)
def test_test_runs_pytest_and_returns_its_code(ready, tmp_path, options, code, closing):
    ready()
    file = tmp_path / "test_two.py"
    file.write_text(
        "import pytest\ndef test_quick(): pass\n@pytest.mark.slow\ndef test_long(): raise AssertionError\n"
    )
    done = start("test", *options, "-p", "no:cacheprovider", str(file), cwd=tmp_path)
    assert done.returncode == code, done.stdout + done.stderr
    assert closing in done.stdout.splitlines()[-1]


@POSIX
def test_tests_are_found_from_any_folder(ready, tmp_path):
    ready()
    done = start("test", "--collect-only", "-q", "tests/setup/test_locks.py", cwd=tmp_path)
    assert done.returncode == 0 and "test_every_line_is_exact" in done.stdout, done.stderr
