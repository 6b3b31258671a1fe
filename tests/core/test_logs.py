"""One sentence for the person, the traceback for the log file."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from headshot_ui import logs
from headshot_ui.errors import Cancelled, DatasetError, ModelError
from headshot_ui.logs import explain, start_log, stop_log
from headshot_ui.settings import Settings


@pytest.fixture
def log(settings: Settings) -> Iterator[Path]:
    path = start_log(settings)
    assert path is not None
    yield path
    stop_log()


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    try:
        raise error from cause
    except BaseException as caught:
        return caught


def out_of_memory_like_torch() -> RuntimeError:
    return type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory. Tried to allocate 2.00 GiB.")


def test_a_log_on_a_full_disk_prints_no_traceback(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full:
        def write(self, text: str) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        def tell(self) -> int:
            return 0

        def flush(self) -> None: ...

        def seek(self, *_: int) -> int:
            return 0

        def close(self) -> None: ...

    (handler,) = (h for h in logging.getLogger("headshot_ui").handlers if isinstance(h, logging.StreamHandler))
    monkeypatch.setattr(handler, "stream", Full())
    assert explain(raised(ModelError("It is damaged: get another."), cause=KeyError("x"))) == (
        "It is damaged: get another."
    )
    monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_our_own_errors_are_told_as_they_are(log: Path) -> None:
    assert explain(raised(ModelError("The base model is damaged: download it again."))) == (
        "The base model is damaged: download it again."
    )
    assert "Traceback" not in log.read_text("utf-8")


def test_what_lay_behind_our_own_error_is_in_the_log(log: Path) -> None:
    explain(raised(ModelError("The base model is damaged."), cause=KeyError("unet.weight")))
    assert "unet.weight" in log.read_text("utf-8")


def test_the_notes_of_an_error_follow_line_by_line_but_not_without_end(log: Path) -> None:
    error = DatasetError("None of the photos can be used: give others.")
    for number in range(logs.NOTES_SHOWN + 5):
        error.add_note(f"{number}.jpg: no face")
    lines = explain(raised(error)).split("\n")
    assert lines[:2] == [str(error), "0.jpg: no face"] and lines[-1] == "and 5 more"
    assert len(lines) == logs.NOTES_SHOWN + 2
    assert f"{logs.NOTES_SHOWN + 4}.jpg: no face" in log.read_text("utf-8")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ZeroDivisionError("division by zero"), "unexpected went wrong (ZeroDivisionError)"),
        (MemoryError(), "memory of this computer ran out"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "memory of this computer"),
        (out_of_memory_like_torch(), "graphics memory ran out"),
        (RuntimeError("MPS backend out of memory"), "graphics memory ran out"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk is full"),
        (RuntimeError("CUDA error: device-side assert triggered"), "until the program is started again"),
    ],
)
def test_foreign_errors_are_one_sentence_that_names_the_log(log: Path, error: Exception, words: str) -> None:
    sentence = explain(raised(error))
    assert words in sentence and str(log) in sentence and "\n" not in sentence
    text = log.read_text("utf-8")
    assert "Traceback" in text and "in raised" in text


def test_torchs_own_out_of_memory_error_is_known(log: Path) -> None:
    import torch

    assert "graphics memory ran out" in explain(raised(torch.OutOfMemoryError("x")))


def test_cancelled_is_no_error(log: Path) -> None:
    assert "kept" in explain(Cancelled()) and log.read_text("utf-8") == ""


def test_starting_twice_writes_once_and_a_new_place_takes_over(log: Path, settings: Settings, tmp_path: Path) -> None:
    assert start_log(settings) == log
    logging.getLogger("headshot_ui.jobs").info("hello")
    assert log.read_text("utf-8").count("hello") == 1
    elsewhere = start_log(Settings.from_environment(root=tmp_path / "b", environment={}))
    logging.getLogger("headshot_ui").info("moved")
    assert elsewhere is not None and "moved" in elsewhere.read_text("utf-8") and "moved" not in log.read_text("utf-8")


def test_the_log_does_not_grow_without_end(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(60):
        logging.getLogger("headshot_ui").info("%d %s", number, "x" * 100_000)
    files = sorted(log.parent.iterdir())
    assert len(files) == logs.FILES_KEPT + 1
    assert sum(file.stat().st_size for file in files) < (logs.FILES_KEPT + 1) * (logs.FILE_BYTES + 200_000)


def test_without_a_place_for_the_log_the_program_still_speaks(tmp_path: Path) -> None:
    stop_log()
    (tmp_path / "outputs").write_text("a file where the folder should be")
    assert start_log(Settings.from_environment(root=tmp_path, environment={})) is None
    assert "no log file could be written" in explain(raised(ValueError("x")))
