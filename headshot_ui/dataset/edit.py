"""Changes a person makes to single prepared photos, each written at once and whole.

Photos are named by their crop ("003.png") or by their own name; one that was left out before it had a crop is only
known by its name, and cannot be used.
"""

from __future__ import annotations

import threading
from pathlib import Path

from headshot_ui.dataset.saved import (
    VERDICTS,
    load_dataset,
    save_dataset,
    stored_photos,
    with_caption,
    with_verdict,
)
from headshot_ui.dataset.types import Dataset, PreparedPhoto
from headshot_ui.errors import DatasetError, SpecError

LONGEST_CAPTION = 300  # characters; text encoders read about 75 words

_lock = threading.Lock()  # two changes at once must not undo each other


def set_caption(folder: Path, crop: str, text: str) -> Dataset:
    """Give one photo in use another caption; the dataset as it is now.

    Raises SpecError for a caption of 0 or more than 300 characters or an unknown or left-out photo, DatasetError
    when nothing is prepared in ``folder``, StoreError when it cannot be read or written.
    """
    text = " ".join(text.split())
    with _lock:
        dataset = load_dataset(folder)
        if not text:
            least = f"{dataset.trigger} {dataset.class_word}"
            raise SpecError("caption", f"The caption is empty: write at least “{least}”.")
        if len(text) > LONGEST_CAPTION:
            message = f"The caption has {len(text)} characters: shorten it to {LONGEST_CAPTION}."
            raise SpecError("caption", message)
        source = _photo(dataset, crop).source
        try:
            changed = with_caption(dataset, source, text)
        except DatasetError as error:
            raise SpecError("caption", str(error)) from error
        save_dataset(changed)
        return load_dataset(folder)


def set_verdict(folder: Path, crop: str, verdict: str) -> Dataset:
    """Use one photo for training ("train"), keep it to measure likeness ("held_out") or leave it out ("rejected").

    Leaving out can be undone: the crop is kept. At least one photo to learn from must remain. Raises SpecError when
    it must not be changed so, saying why, and as ``set_caption``.
    """
    if verdict not in VERDICTS:
        raise SpecError("verdict", f"“{verdict}” is no verdict: use one of {', '.join(VERDICTS)}.")
    with _lock:
        dataset = load_dataset(folder)
        source = _photo(dataset, crop).source
        try:
            changed = with_verdict(dataset, source, verdict)
        except DatasetError as error:
            raise SpecError("verdict", str(error)) from error
        save_dataset(changed)
        return load_dataset(folder)


def crop_path(folder: Path, source: str) -> Path | None:
    """The crop of a photo, also of one that was left out; None where there is none. Raises StoreError."""
    photo = stored_photos(folder).get(source)
    if photo is None or not photo.crop:
        return None
    path = folder / photo.crop
    return path if path.is_file() else None


def _photo(dataset: Dataset, name: str) -> PreparedPhoto:
    """By crop, also that of a photo left out, else by the photo's own name."""
    sources = {photo.crop: source for source, photo in stored_photos(dataset.folder).items() if photo.crop}
    source = sources.get(name, name)
    for photo in dataset.photos:
        if photo.source == source:
            return photo
    message = f"There is no photo “{name}” among the prepared ones of {dataset.person}: choose another."
    raise SpecError("crop", message)
