"""A person's prepared photos as the page shows and changes them; no gradio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headshot_ui.dataset import edit
from headshot_ui.dataset.caption import FACING, turn
from headshot_ui.dataset.saved import MANIFEST, load_dataset, save_dataset, stored_photos, with_verdict
from headshot_ui.dataset.types import PreparedPhoto
from headshot_ui.errors import HeadshotError
from headshot_ui.store import Store
from headshot_ui.ui.outcomes import count_of
from headshot_ui.ui.thumbnails import data_uri

THUMBNAIL_PX, LARGE_PX = 200, 480
ENOUGH = 8  # photos to learn from; with fewer the likeness gets visibly worse
BLURRED_SHARE = 0.4
LABELS = {"train": "Used", "held_out": "Kept to measure likeness", "rejected": "Left out"}
PHOTO_SUFFIXES = frozenset({".jpg", ".jpeg", ".png"})


@dataclass(frozen=True)
class Changed:
    """What was true of a photo before the last change, so that it can be undone."""

    person: str
    source: str
    verdict: str
    reason: str
    caption: str
    said: str  # what was done, for the line beside the button


def state_of(store: Store, person: str) -> tuple[int, int]:
    """(number of the prepared set, moment of its last change in ns); (0, 0) where nothing was prepared.

    The first changes when photos are prepared anew, the second with every edit too.
    """
    folder = store.dataset_dir(person)
    try:
        return folder.stat().st_ino or 1, (folder / MANIFEST).stat().st_mtime_ns
    except OSError:
        return 0, 0


def photos_of(store: Store, person: str) -> tuple[PreparedPhoto, ...]:
    """All photos; those left out keep their crop here where they have one. Raises DatasetError and StoreError."""
    folder = store.dataset_dir(person)
    load_dataset(folder)  # tells what is missing or damaged
    return tuple(stored_photos(folder).values())


def kept_photos(store: Store, person: str) -> int:
    """How many photos of the person are kept from before."""
    try:
        return sum(path.suffix.lower() in PHOTO_SUFFIXES for path in store.photos_dir(person).iterdir())
    except OSError:
        return 0


def grid_values(store: Store, person: str, photos: Sequence[PreparedPhoto]) -> dict[str, Any]:
    """Values of the photo grid: those used first, then the held-out ones, then those left out."""
    folder = store.dataset_dir(person)
    order = sorted(photos, key=lambda photo: list(LABELS).index(photo.verdict))
    return {"photos": [_grid_entry(folder, photo) for photo in order], "count": count_text(photos),
            "advice": advice(photos)}  # fmt: skip


def _grid_entry(folder: Path, photo: PreparedPhoto) -> dict[str, str]:
    return {
        "name": photo.source,
        "picture": data_uri(folder / photo.crop, THUMBNAIL_PX) if photo.crop else "",
        "verdict": photo.verdict,
        "label": LABELS[photo.verdict],
        "reason": photo.reason or "; ".join(photo.warnings),
    }


def count_text(photos: Sequence[PreparedPhoto]) -> str:
    """ "9 used to learn, 2 kept to measure likeness, 1 left out"."""
    counts = {verdict: sum(photo.verdict == verdict for photo in photos) for verdict in LABELS}
    parts = [f"{count_of(counts['train'], 'photo')} to learn from"]
    parts += [f"{counts['held_out']} kept to measure likeness"] if counts["held_out"] else []
    parts += [f"{counts['rejected']} left out"] if counts["rejected"] else []
    return ", ".join(parts) + "."


def advice(photos: Sequence[PreparedPhoto]) -> str:
    """What would make the likeness better; "" when nothing obvious would."""
    used = [photo for photo in photos if photo.verdict == "train"]
    said = []
    if len(used) < ENOUGH:
        said.append(f"With only {count_of(len(used), 'photo')} the likeness will be weak; about twelve work well.")
    turns = [turn(photo.face) for photo in used if photo.face is not None]
    if len(turns) >= 4 and all(abs(each) <= FACING for each in turns):
        said.append("All photos look straight into the camera; add some turned a little to the left and right.")
    blurred = sum(any("blurred" in warning for warning in photo.warnings) for photo in used)
    if used and blurred / len(used) >= BLURRED_SHARE:
        said.append(f"{blurred} of {len(used)} are a little blurred; sharper ones show more of the face.")
    return " ".join(said)


def editor_values(store: Store, person: str, photo: PreparedPhoto) -> dict[str, str]:
    """Values of the editor's head: the picture large, what is thought of it."""
    path = store.dataset_dir(person) / photo.crop
    return {
        **_grid_entry(store.dataset_dir(person), photo),
        "picture": data_uri(path, LARGE_PX) if photo.crop else "",
        "fixed": "" if photo.crop else "It cannot be taken in.",
    }


def find(photos: Sequence[PreparedPhoto], source: str) -> PreparedPhoto | None:
    return next((photo for photo in photos if photo.source == source), None)


# --- changes ------------------------------------------------------------------------------------------
def change_caption(store: Store, person: str, source: str, text: str) -> Changed:
    """Give one photo another caption. Raises SpecError, DatasetError and StoreError."""
    photo = _photo(store, person, source)
    edit.set_caption(store.dataset_dir(person), photo.crop or source, text)
    return _changed(person, photo, "Caption saved.")


def change_verdict(store: Store, person: str, source: str, verdict: str) -> Changed:
    """Take one photo in ("train") or leave it out ("rejected"). Raises SpecError, DatasetError and StoreError."""
    photo = _photo(store, person, source)
    edit.set_verdict(store.dataset_dir(person), photo.crop or source, verdict)
    return _changed(person, photo, f"“{source}” is {'left out' if verdict == 'rejected' else 'used'}.")


def undo(store: Store, changed: Changed) -> None:
    """Bring one photo back to what it was. Raises SpecError, DatasetError and StoreError."""
    folder = store.dataset_dir(changed.person)
    photo = _photo(store, changed.person, changed.source)
    if changed.verdict == "rejected":  # with its own reason, which ``edit`` does not ask for
        save_dataset(with_verdict(load_dataset(folder), changed.source, "rejected", changed.reason))
        return
    edit.set_verdict(folder, photo.crop, changed.verdict)
    edit.set_caption(folder, photo.crop, changed.caption)


def _photo(store: Store, person: str, source: str) -> PreparedPhoto:
    photo = find(photos_of(store, person), source)
    if photo is None:
        raise HeadshotError(f"The photos of “{person}” changed meanwhile: choose the photo again.")
    return photo


def _changed(person: str, before: PreparedPhoto, said: str) -> Changed:
    return Changed(person, before.source, before.verdict, before.reason, before.caption, said)
