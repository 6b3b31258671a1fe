"""What a person changed by hand, carried over when the photos are prepared again.

``dataset.json`` holds under "prepared" what the program itself made of every photo: its caption, whether it used the
photo, and digests of the file and of its copy without notes. What differs from that was changed by hand. A photo is
known again by its content; by its name only where the former dataset has no digests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headshot_ui.dataset.saved import LEFT_OUT, MANIFEST, stored_photos
from headshot_ui.dataset.types import PreparedPhoto
from headshot_ui.errors import StoreError
from headshot_ui.store import read_json

PREPARED = "prepared"
CAPTION_KEPT = "caption kept as it was written by hand"
TAKEN_IN = "taken in by hand"


@dataclass(frozen=True)
class Automatic:
    """What the program made of one photo, before anybody changed it."""

    caption: str
    used: bool
    digests: tuple[str, ...] = ()  # SHA-256, hexadecimal
    noted: bool = False  # the caption came from a text beside the photo

    def to_json(self) -> dict[str, Any]:
        """For "prepared" in ``dataset.json``."""
        return {"caption": self.caption, "used": self.used, "digests": list(self.digests)}


@dataclass(frozen=True)
class _ByHand:
    """What was changed about one photo of the former dataset."""

    measured: str | None  # the program's own caption; None where it was not kept
    caption: str = ""  # "" when nobody changed it
    left_out: str = ""  # the reason shown; "" unless left out by hand
    taken_in: bool = False


@dataclass(frozen=True)
class Edits:
    """Everything changed by hand in a former dataset."""

    trigger: str = ""
    class_word: str = ""
    by_digest: Mapping[str, _ByHand] = field(default_factory=dict)
    by_name: Mapping[str, _ByHand] = field(default_factory=dict)

    def carried_over(self, photo: PreparedPhoto, automatic: Automatic, trigger: str, class_word: str) -> PreparedPhoto:
        """``photo`` of the new dataset with the changes made to it before; a kept caption is said in its warnings.

        A text beside the photo that is new or was changed since wins over a caption edited in the dataset.
        """
        known = next((self.by_digest[digest] for digest in automatic.digests if digest in self.by_digest), None)
        known = known or self.by_name.get(photo.source)
        if known is None or not photo.crop:
            return photo
        if known.left_out and photo.verdict != "rejected":
            photo = replace(photo, verdict="rejected", reason=known.left_out)
        elif known.taken_in and photo.verdict == "rejected":
            photo = replace(photo, verdict="train", reason="", warnings=(*photo.warnings, TAKEN_IN))
        new_note = automatic.noted and known.measured is not None
        new_note = new_note and automatic.caption != self._renamed(known.measured or "", trigger, class_word)
        if known.caption and not new_note:
            caption = self._renamed(known.caption, trigger, class_word)
            photo = replace(photo, caption=caption, warnings=(*photo.warnings, CAPTION_KEPT))
        return photo

    def _renamed(self, caption: str, trigger: str, class_word: str) -> str:
        """The caption with today's words for the person."""
        pairs = ((f"{self.trigger} {self.class_word}", f"{trigger} {class_word}"), (self.trigger, trigger))
        for old, new in pairs:
            if old != new and old.strip():
                caption, count = re.subn(rf"\b{re.escape(old)}\b", new, caption, flags=re.IGNORECASE)
                if count:
                    break
        return caption


def edits_in(folder: Path) -> Edits:
    """What was changed by hand in the dataset of ``folder``; nothing when there is none or it is damaged.

    Raises StoreError for a caption that cannot be read as text: an edit is never passed over in silence.
    """
    photos = stored_photos(folder)
    if not photos:
        return Edits()
    data: dict[str, Any] = {}
    with suppress(StoreError):
        data = read_json(folder / MANIFEST)
    before = data.get(PREPARED)
    before = before if isinstance(before, dict) else {}
    first = {item["source"]: str(item.get("caption", "")) for item in data.get("photos", ())}
    by_digest: dict[str, _ByHand] = {}
    by_name: dict[str, _ByHand] = {}
    for source, photo in photos.items():
        known = _automatic(before.get(source))
        change = _changed(photo, known, first.get(source, photo.caption))
        if known is None or not known.digests:
            by_name[source] = change
        else:
            by_digest |= dict.fromkeys(known.digests, change)
    return Edits(str(data.get("trigger", "")), str(data.get("class_word", "")), by_digest, by_name)


def _changed(photo: PreparedPhoto, known: Automatic | None, manifest_caption: str) -> _ByHand:
    """Datasets of earlier versions tell only of text files that were edited, and of photos left out by hand."""
    measured = manifest_caption if known is None else known.caption
    caption = photo.caption if photo.caption != measured else ""
    used = photo.verdict != "rejected"
    was_used = known.used if known is not None else used or photo.reason == LEFT_OUT
    left_out = (photo.reason or LEFT_OUT) if was_used and not used else ""
    return _ByHand(None if known is None else measured, caption, left_out, used and not was_used)


def _automatic(item: Any) -> Automatic | None:
    try:
        return Automatic(str(item["caption"]), bool(item["used"]), tuple(map(str, item.get("digests", ()))))
    except (KeyError, TypeError, AttributeError):
        return None


def prepared_json(photos: Sequence[tuple[str, Automatic]]) -> dict[str, Any]:
    """(name, what was made of it) of every photo with a crop, for the new ``dataset.json``."""
    return {PREPARED: {source: automatic.to_json() for source, automatic in photos}}
