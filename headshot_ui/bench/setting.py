"""What a work is told before it measures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headshot_ui.settings import Settings


@dataclass(frozen=True)
class BenchSetting:
    """Where and how large to measure."""

    settings: Settings  # device, models folder, limits of memory
    size: str  # "full", or "tiny" for tests and machines without a GPU: never compared with goals
    repeats: int  # how often each way is timed
    folder: Path  # for files, removed afterwards; a fresh one for every work
    say: Callable[[str], None]  # progress, one line

    @property
    def full(self) -> bool:
        """Whether goals may be judged."""
        return self.size == "full"
