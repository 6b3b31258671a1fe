"""One program at a time works in an outputs folder: two engines would fight for the device and its memory.

The operating system holds the lock and drops it when the process ends, however it ends, so that a crash leaves
nothing to clean up. What stands in the file only serves the sentence that a second start is told.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from headshot_ui.errors import StoreError
from headshot_ui.store import told_plainly

FILE_NAME = ".in-use"
PAGE = "page"
#: Windows keeps others from reading a locked byte, so the byte that is locked lies far behind the text.
_LOCKED_BYTE = 2**20
_HELD = {errno.EACCES, errno.EAGAIN, errno.EWOULDBLOCK, errno.EDEADLK}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holder:
    """Who works in the folder: "page" or the name of a command, its process, and the page's address ("" if none)."""

    what: str
    pid: int
    address: str = ""


@contextmanager
def hold(outputs_dir: Path, what: str) -> Iterator[Callable[[str], None]]:
    """Keep other programs out of ``outputs_dir`` during the block.

    ``what`` is ``PAGE`` or the name of a command. Gives a function that notes the page's address for the sentence
    others are told. Raises StoreError, naming who works there, when the folder is in use or cannot be written.
    """
    path = outputs_dir / FILE_NAME
    with told_plainly(path, "written"):
        outputs_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _lock(descriptor):
            raise StoreError(_in_use(_read(path), outputs_dir))

        def note(address: str) -> None:
            _write(descriptor, json.dumps(asdict(Holder(what, os.getpid(), address))))

        note("")
        try:
            yield note
        finally:
            _write(descriptor, "")
    finally:
        os.close(descriptor)  # gives the lock back


def check_free(outputs_dir: Path, what: str) -> None:
    """Raise StoreError as ``hold`` would, to say so before people are asked for anything."""
    with hold(outputs_dir, what):
        pass


def _in_use(holder: Holder | None, folder: Path) -> str:
    if holder is None:
        return f"Another program is at work in {folder}: wait until it has ended, then start again."
    if holder.what == PAGE:
        where = f" at {holder.address}" if holder.address else ""
        return (
            f"The page is already open{where} (process {holder.pid}) and works in {folder}: "
            "do it there, or close the page with Ctrl-C and start again."
        )
    return (
        f"The command “{holder.what}” (process {holder.pid}) is at work in {folder}: "
        "wait until it has ended, then start again."
    )


def _lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            return False
        _log.warning("This disk cannot lock files (%s): nothing keeps two programs apart", error)
    return True


def _write(descriptor: int, text: str) -> None:
    with suppress(OSError):  # a full disk: the lock counts, the text is a courtesy
        os.ftruncate(descriptor, 0)
        os.lseek(descriptor, 0, os.SEEK_SET)
        os.write(descriptor, text.encode())


def _read(path: Path) -> Holder | None:
    try:
        return Holder(**json.loads(path.read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None
