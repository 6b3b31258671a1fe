"""A job's progress in a terminal: one live line, or a line every few seconds where output goes to a file."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from headshot_ui.wording import format_seconds as format_seconds

if TYPE_CHECKING:
    from headshot_ui.jobs import Snapshot

SECONDS_BETWEEN_LINES = 5.0


def progress_text(snapshot: Snapshot) -> str:
    """Stage, step of total, time left and loss in one line; what is unknown is left out."""
    parts = [snapshot.stage or ("Waiting" if snapshot.state == "queued" else "Starting")]
    if snapshot.total:
        parts.append(f"{snapshot.step}/{snapshot.total}")
    loss = snapshot.metrics.get("loss") if snapshot.metrics else None
    if isinstance(loss, (int, float)):
        parts.append(f"loss {loss:.4f}")
    if snapshot.eta_s is not None:
        parts.append(f"{format_seconds(snapshot.eta_s)} left")
    return "  ".join(parts)


class ProgressPrinter:
    """Writes snapshots to ``stream``; call ``show`` as often as you like and ``finish`` once."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._live = stream.isatty()
        self._stage: str | None = None
        self._shown_at = float("-inf")
        self._width = 0

    def show(self, snapshot: Snapshot) -> None:
        """Show the newest state: at once on a terminal or for a new stage, else every few seconds."""
        text = progress_text(snapshot)
        if self._live:
            self._rewrite(text)
            return
        now = self._clock()
        if snapshot.stage != self._stage or now - self._shown_at >= SECONDS_BETWEEN_LINES:
            self._stage, self._shown_at = snapshot.stage, now
            print(text, file=self._stream, flush=True)

    def say(self, line: str) -> None:
        """One whole line that stays, between the moving ones."""
        self.finish()
        print(line, file=self._stream, flush=True)

    def finish(self) -> None:
        """Take the live line away, so that what follows starts on a clean line."""
        if self._live and self._width:
            self._stream.write("\r" + " " * self._width + "\r")
            self._stream.flush()
            self._width = 0

    def _rewrite(self, text: str) -> None:
        text = text[: shutil.get_terminal_size().columns - 1]  # a wrapped line could not be rewritten
        self._stream.write("\r" + text.ljust(self._width))
        self._stream.flush()
        self._width = len(text)
