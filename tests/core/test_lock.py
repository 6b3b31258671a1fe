"""One program at a time in an outputs folder; a crash leaves nothing that keeps the next one out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from headshot_ui import lock
from headshot_ui.errors import StoreError
from headshot_ui.lock import FILE_NAME, PAGE, check_free, hold

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from headshot_ui.lock import hold
with hold(Path(sys.argv[1]), sys.argv[2]) as note:
    note(sys.argv[3])
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path, what: str, address: str = "") -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder), what, address],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def test_a_second_program_is_told_where_the_page_is(tmp_path):
    other = holder(tmp_path, PAGE, "http://127.0.0.1:7860/")
    try:
        with pytest.raises(StoreError) as refused, hold(tmp_path, "train"):
            pass
        assert f"already open at http://127.0.0.1:7860/ (process {other.pid})" in str(refused.value)
        with hold(tmp_path / "elsewhere", "train"):
            pass
    finally:
        other.communicate()
    check_free(tmp_path, PAGE)


def test_a_second_program_is_told_which_command_is_at_work(tmp_path):
    other = holder(tmp_path, "train")
    try:
        with pytest.raises(StoreError, match=f"“train” \\(process {other.pid}\\).*wait"):
            check_free(tmp_path, PAGE)
    finally:
        other.communicate()


def test_a_killed_program_keeps_nobody_out(tmp_path):
    other = holder(tmp_path, PAGE, "http://127.0.0.1:7860/")
    other.kill()
    other.communicate()
    assert (tmp_path / FILE_NAME).read_text()  # it could not tidy up
    with hold(tmp_path, "train"):
        assert "train" in (tmp_path / FILE_NAME).read_text()
    assert (tmp_path / FILE_NAME).read_text() == ""


def test_the_lock_is_given_back_after_an_error_and_held_only_once_here_too(tmp_path):
    with pytest.raises(ZeroDivisionError), hold(tmp_path, "train"):
        with pytest.raises(StoreError), hold(tmp_path, "generate"):
            pass
        assert "train" in (tmp_path / FILE_NAME).read_text()
        raise ZeroDivisionError
    check_free(tmp_path, "generate")


def test_an_unreadable_note_still_keeps_others_out(tmp_path):
    with hold(tmp_path, "train"):
        (tmp_path / FILE_NAME).write_text("{")
        with pytest.raises(StoreError, match="Another program is at work"), hold(tmp_path, "generate"):
            pass


def test_a_disk_that_cannot_lock_stops_nobody(tmp_path, monkeypatch):
    if os.name == "nt":
        monkeypatch.setattr("msvcrt.locking", _cannot)
    else:
        monkeypatch.setattr("fcntl.flock", _cannot)
    with hold(tmp_path, "train"), hold(tmp_path, "generate"):
        pass


def _cannot(*_: object) -> None:
    raise OSError(lock.errno.ENOSYS, "Function not implemented")
