"""Files read from the disk before they are needed, so that the system has them in memory when they are.

Weights are mapped, not read: a denoiser of 5 GB would come from the disk only on its way to the card, while everything
waits. A thread reads it while captions and photos are encoded. It keeps nothing itself.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

AT_A_TIME = 2**23

_NAME = "reading-ahead"


def begin(files: Sequence[Path]) -> Callable[[], None]:
    """Have a thread read these files in their order; what is returned ends it, within a few milliseconds."""
    ended = threading.Event()
    threading.Thread(target=read_through, args=(files, ended), name=_NAME, daemon=True).start()
    return ended.set


def read_through(files: Sequence[Path], ended: threading.Event) -> int:
    """Read until the last file's end, or until ``ended`` is set; how many bytes that were.

    A file that cannot be read is passed over: whoever needs it will say so.
    """
    buffer, count = bytearray(AT_A_TIME), 0
    for path in files:
        try:
            with path.open("rb", buffering=0) as file:
                while not ended.is_set() and (read := file.readinto(buffer)):
                    count += read
        except OSError:
            continue
    return count
