"""What is said about a set of headshots as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headshot_ui.generation.records import Picture


def matched(pictures: Sequence[Picture], person: str) -> str:
    """How many look like the person, in one sentence; only how many there are where nothing was measured."""
    measured = [picture.likeness for picture in pictures if picture.likeness is not None]
    if not measured:
        return f"{len(pictures)} picture{'' if len(pictures) == 1 else 's'}."
    return f"{sum(likeness.matched for likeness in measured)} of {len(measured)} pictures look like {person}."
