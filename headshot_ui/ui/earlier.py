"""Headshots of earlier days, found again on disk; no torch, no gradio."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from headshot_ui.errors import StoreError
from headshot_ui.generation.records import RANKING, Picture, read_ranking
from headshot_ui.store import Store

SHOWN = 12


@dataclass(frozen=True)
class Earlier:
    """One finished request: a folder of ranked pictures, best first, and when it was finished."""

    person: str
    folder: Path
    finished_s: float  # seconds since 1970
    pictures: tuple[Picture, ...]

    @property
    def caption(self) -> str:
        """“anna · 3 May 2026 · 20 pictures”."""
        count = len(self.pictures)
        return f"{self.person} · {self.day} · {count} picture{'' if count == 1 else 's'}"

    @property
    def day(self) -> str:
        when = time.localtime(self.finished_s)
        return f"{when.tm_mday} {time.strftime('%b %Y', when)}"


def find_earlier(store: Store, most: int = SHOWN) -> tuple[Earlier, ...]:
    """The newest ``most`` sets of headshots of everybody, newest first; what is damaged or empty is left out."""
    rankings: list[tuple[float, str, Path]] = []
    for person in store.people():
        for path in store.headshots_dir(person).glob(f"*/{RANKING}"):
            try:
                rankings.append((path.stat().st_mtime, person, path.parent))
            except OSError:  # removed since the folder was listed
                continue
    found: list[Earlier] = []
    for finished_s, person, folder in sorted(rankings, reverse=True):
        if len(found) == most:
            break
        try:
            pictures = read_ranking(folder)
        except StoreError:
            continue
        if pictures:
            found.append(Earlier(person, folder, finished_s, pictures))
    return tuple(found)
