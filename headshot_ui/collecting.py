"""Python's collector of garbage at rest, where everything that is made stays.

It looks for objects that only refer to each other, through all there are, whenever many were made. Importing the
libraries of models makes a million, of which six thousand are garbage: a quarter of the time that takes is looking.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def nothing_collected() -> Iterator[None]:
    """Look for no garbage in the block; afterwards as before."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
