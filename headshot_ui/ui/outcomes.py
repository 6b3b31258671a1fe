"""What is said about a finished job, by its kind."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.errors import HeadshotError
from headshot_ui.store import readable_bytes

if TYPE_CHECKING:
    from headshot_ui.jobs import Snapshot

#: On which tab the results of each kind of job are seen.
TAB_OF = {"prepare": "dataset", "train": "train", "generate": "generate", "headshots": "generate",
          "restore": "restore", "export": "generate", "download": ""}  # fmt: skip

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """One sentence, the folder with the results ("" where there is none), and the tab that shows them ("": none)."""

    text: str
    folder: str
    tab: str


def outcome_of(now: Snapshot) -> Outcome:
    """What a finished job says. A contact sheet is made beside the headshots of a whole job."""
    tab = TAB_OF.get(now.kind, "dataset")
    if now.state == "failed":
        return Outcome(now.error or "", "", tab)
    if now.state == "cancelled":
        return Outcome("Cancelled; what was finished is kept.", "", tab)
    text, folder = _TOLD.get(now.kind, _anything)(now.result)
    if now.kind == "download":  # what was moved aside, or could not be checked against anything published
        text = " ".join([text, *now.notes])
    return Outcome(text, str(folder) if folder else "", tab)


def count_of(number: int, what: str) -> str:
    """ "1 picture", "3 pictures"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _prepared(made: Any) -> tuple[str, Path | None]:
    used = sum(photo.verdict != "rejected" for photo in made.photos)
    left = len(made.photos) - used
    return f"{count_of(used, 'photo')} can be used" + (f", {left} left out." if left else "."), made.folder


def _trained(made: Any) -> tuple[str, Path | None]:
    return f"Learned in {count_of(made.steps, 'step')}.", made.run_dir


def _drawn(made: Any) -> tuple[str, Path | None]:
    measured = [picture.likeness for picture in made.pictures if picture.likeness is not None]
    text = f"{count_of(len(made.pictures), 'picture')} drawn"
    if measured:
        text += f"; {sum(likeness.matched for likeness in measured)} of {len(measured)} look like the person"
    return text + ".", made.folder


def _whole(made: Any) -> tuple[str, Path | None]:
    _save_sheet(made)
    if made.before is None or made.after is None:
        text = f"{count_of(len(made.generated.pictures), 'picture')}."
    else:
        text = (
            f"{made.after.matched} of {made.after.pictures} pictures look like {made.dataset.person}; "
            f"before training it was {made.before.matched} of {made.before.pictures}."
        )
    return text, made.generated.folder


def _save_sheet(made: Any) -> None:
    from headshot_ui.sheet import save_contact_sheet

    try:
        save_contact_sheet(made, f"Headshots of {made.dataset.person}")
    except HeadshotError as error:  # the pictures are there; the sheet is only an overview of them
        _log.warning("No contact sheet: %s", error)


def _restored(made: Any) -> tuple[str, Path | None]:
    skipped = sum(bool(picture.skipped) for picture in made.pictures)
    text = f"{count_of(len(made.pictures) - skipped, 'picture')} restored"
    text += f"; {skipped} without a face that could be repaired." if skipped else "."
    refused = getattr(made, "refused", ())
    if refused:
        more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
        text += f" Left out: {refused[0].name}{more}: {refused[0].reason}"
    return text, made.folder


def _exported(made: Any) -> tuple[str, Path | None]:
    return f"{count_of(len(made.files), 'file')} exported.", made.folder


def _downloaded(made: Any) -> tuple[str, Path | None]:
    bad = [str(check.path) for entry in made.entries for check in entry.checks if not check.ok]
    if bad:
        return f"Not as it should be: {', '.join(bad)}. Get it again under Models.", made.folder
    if all(entry.already for entry in made.entries):
        return "Everything is here already.", made.folder
    size = sum(entry.fetched_bytes for entry in made.entries)
    return f"{readable_bytes(size)} downloaded and checked." if size else "All files are good.", made.folder


def _anything(made: Any) -> tuple[str, Path | None]:
    return "Done.", getattr(made, "folder", None)


_TOLD: Mapping[str, Callable[[Any], tuple[str, Path | None]]] = {
    "prepare": _prepared,
    "train": _trained,
    "generate": _drawn,
    "headshots": _whole,
    "restore": _restored,
    "export": _exported,
    "download": _downloaded,
}
