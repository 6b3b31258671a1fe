"""The log file, and the one sentence a person reads when something breaks."""

from __future__ import annotations

import errno
import logging
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.card_words import explained, is_card_lost, is_cuda_error
from headshot_ui.errors import Cancelled, HeadshotError
from headshot_ui.graphics import installed_build, known_cards

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

FILE_BYTES = 1_000_000
FILES_KEPT = 3
NOTES_SHOWN = 20

#: Out of graphics memory told otherwise than by torch's own class: by Apple's GPUs, the driver and its libraries.
_GPU_MEMORY = ("MPS backend out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA error: out of memory",
               "CUDA driver error: out of memory", "CUDNN_STATUS_ALLOC_FAILED")  # fmt: skip

_package = logging.getLogger("headshot_ui")


class _SilentOnTrouble(RotatingFileHandler):
    """A log that cannot be written, on a full disk say, must not print tracebacks over what a person reads."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """The record is lost."""


def start_log(settings: Settings) -> Path | None:
    """Write everything the package logs to ``logs_dir/headshot_ui.log`` (1 MB, three older ones kept).

    Calling it again changes nothing. Returns the file, or None where it cannot be written: the program
    works without a log.
    """
    path = settings.logs_dir / "headshot_ui.log"
    if any(Path(handler.baseFilename) == path for handler in _file_handlers()):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = _SilentOnTrouble(path, maxBytes=FILE_BYTES, backupCount=FILES_KEPT, encoding="utf-8")
    except OSError as error:
        _package.warning("No log is written: %s", error)
        return None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(threadName)s %(name)s: %(message)s"))
    stop_log()
    _package.addHandler(handler)
    _package.setLevel(logging.INFO)
    return path


def stop_log() -> None:
    """Close the log file."""
    for handler in _file_handlers():
        _package.removeHandler(handler)
        handler.close()


def explain(error: BaseException) -> str:
    """One sentence: what happened and what to do; then a line for each note of the error (e.g. each bad photo).

    The traceback of anything unexpected goes to the log file, which the sentence names.
    """
    if isinstance(error, Cancelled):
        return "Cancelled; what was finished before is kept."
    if isinstance(error, HeadshotError):
        notes = getattr(error, "__notes__", [])
        if error.__cause__ is not None or notes:
            _package.info("Told as “%s”", error, exc_info=error)
        more = [f"and {len(notes) - NOTES_SHOWN} more"] if len(notes) > NOTES_SHOWN else []
        return "\n".join([str(error), *notes[:NOTES_SHOWN], *more])
    _package.error("Unexpected error", exc_info=error)
    return f"{_translated(error)} {_where()}"


def _translated(error: BaseException) -> str:
    if is_out_of_gpu_memory(error):
        return "The graphics memory ran out: close other programs that use it, or choose a smaller picture or rank;"
    if _is_out_of_main_memory(error):
        return "The memory of this computer ran out: close other programs, or choose a smaller picture or base model;"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "The disk is full: make room and start the job again, what was finished is kept;"
    if is_cuda_error(error):
        return f"{_of_the_card(error)};"
    return f"Something unexpected went wrong ({type(error).__name__}), and what was finished before is kept;"


def _of_the_card(error: BaseException) -> str:
    known = explained(error, known_cards(), installed_build())
    if known:
        return known.rstrip(".")
    if is_card_lost(error):
        return "The graphics card stopped working and cannot be used until the program is started again"
    return "The graphics card reported an error and may not be usable until the program is started again"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory of either kind ran out."""
    return is_out_of_gpu_memory(error) or _is_out_of_main_memory(error)


def is_out_of_gpu_memory(error: BaseException) -> bool:
    """Told by name, so that torch need not be imported: torch.OutOfMemoryError, or a plain RuntimeError."""
    named = any(kind.__name__ == "OutOfMemoryError" for kind in type(error).__mro__)
    return named or any(words in str(error) for words in _GPU_MEMORY)


def _is_out_of_main_memory(error: BaseException) -> bool:
    return isinstance(error, MemoryError) or "can't allocate memory" in str(error)


def _where() -> str:
    files = _file_handlers()
    return f"details are in {files[-1].baseFilename}." if files else "no log file could be written."


def _file_handlers() -> list[RotatingFileHandler]:
    return [handler for handler in _package.handlers if isinstance(handler, RotatingFileHandler)]
