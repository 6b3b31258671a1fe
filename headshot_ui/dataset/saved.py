"""A prepared dataset on disk, and the changes a person makes to it.

    dataset/dataset.json   everything about the photos, also of those left out
    dataset/001.png        crop
    dataset/001.txt        its caption; may be edited by hand, and then counts

A photo that was left out although it shows a face keeps its crop, so that the person can take it in after all;
as ``PreparedPhoto`` it has none, for nothing else must use it.
"""

from __future__ import annotations

import codecs
import dataclasses
import shutil
import time
import uuid
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from headshot_ui.dataset.types import Dataset, Face, PreparedPhoto
from headshot_ui.errors import DatasetError, StoreError
from headshot_ui.store import Store, atomic_file, read_json, told_plainly, write_bytes_atomic, write_json_atomic

MANIFEST = "dataset.json"
FORMAT = 1
VERDICTS = ("train", "held_out", "rejected")
MOST_CAPTION = 500
LEFT_OUT = "Left out by hand."
LEFTOVER_AGE_S = 24 * 3600
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)  # as some Windows editors save text


# --- reading and writing ----------------------------------------------------------------------------
def load_dataset(folder: Path) -> Dataset:
    """The dataset in ``folder``; captions from the text files where they were edited.

    Raises DatasetError when nothing was prepared, StoreError when a file is missing or damaged.
    """
    _finish_swap(folder)
    if not (folder / MANIFEST).is_file():
        raise DatasetError(f"There are no prepared photos in {folder}: prepare the photos first.")
    data = read_json(folder / MANIFEST)
    try:
        photos = tuple(_seen(_with_edited_caption(photo_from_json(item), folder)) for item in data["photos"])
        dataset = Dataset(str(data["person"]), folder, int(data["size_px"]), str(data["trigger"]),
                          str(data["class_word"]), photos)  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise StoreError(f"{folder / MANIFEST} is damaged: prepare the photos again.") from error
    for photo in dataset.photos:
        if photo.crop and not (folder / photo.crop).is_file():
            raise StoreError(f"{folder / photo.crop} is missing: prepare the photos again.")
    return dataset


def prepared_base(store: Store, person: str) -> str:
    """The base model a person's photos were prepared for; "" where that is not known."""
    try:
        return str(read_json(store.dataset_dir(person) / MANIFEST)["spec"]["base"])
    except (StoreError, KeyError, TypeError):
        return ""


def save_dataset(dataset: Dataset) -> None:
    """Write captions and verdicts back to ``dataset.folder``; crops stay as they are. Raises StoreError."""
    manifest = dataset.folder / MANIFEST
    stored = stored_photos(dataset.folder)
    known = read_json(manifest) if manifest.is_file() else {}
    photos = []
    for photo in dataset.photos:
        whole = photo
        before = stored.get(photo.source)
        if photo.verdict == "rejected" and not photo.crop and before is not None and before.crop:
            whole = replace(before, verdict="rejected", reason=photo.reason, warnings=photo.warnings)
        photos.append(whole)
    for photo in photos:
        if photo.crop:
            write_bytes_atomic(dataset.folder / Path(photo.crop).with_suffix(".txt"), (photo.caption + "\n").encode())
    write_json_atomic(manifest, known | manifest_of(replace(dataset, photos=tuple(photos))))


def manifest_of(dataset: Dataset) -> dict[str, Any]:
    """JSON of a dataset, without its place on this disk."""
    data = dataclasses.asdict(dataset)
    del data["folder"]
    return {"format": FORMAT} | data


def photo_from_json(item: dict[str, Any]) -> PreparedPhoto:
    """Rebuild a photo. Raises KeyError, TypeError or ValueError for anything else."""
    face = item.get("face")
    if item["verdict"] not in VERDICTS:
        raise ValueError("unknown verdict")
    crop = str(item.get("crop", ""))
    if Path(crop).name != crop:
        raise ValueError("a crop outside its folder")
    return PreparedPhoto(
        source=str(item["source"]),
        verdict=item["verdict"],
        reason=str(item.get("reason", "")),
        warnings=tuple(item.get("warnings", ())),
        crop=crop,
        caption=str(item.get("caption", "")),
        face=None if face is None else _face(face),
        original_size=_pair(item.get("original_size", (0, 0))),
        crop_top_left=_pair(item.get("crop_top_left", (0, 0))),
    )


def _face(item: dict[str, Any]) -> Face:
    left, top, right, bottom = item["box"]
    return Face((left, top, right, bottom), tuple((x, y) for x, y in item["landmarks"]), float(item["score"]))


def _pair(values: Any) -> tuple[int, int]:
    first, second = values
    return int(first), int(second)


def _seen(photo: PreparedPhoto) -> PreparedPhoto:
    """As the rest of the program sees it: a photo that was left out has no crop."""
    if photo.verdict != "rejected":
        return photo
    return PreparedPhoto(photo.source, "rejected", photo.reason, photo.warnings)


def _with_edited_caption(photo: PreparedPhoto, folder: Path) -> PreparedPhoto:
    """Raises StoreError for a text file that is there but no text: an edit is never passed over in silence."""
    if not photo.crop:
        return photo
    path = (folder / photo.crop).with_suffix(".txt")
    if not path.is_file():
        return photo
    with told_plainly(path, "read"):
        data = path.read_bytes()
    try:
        text = " ".join(data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig").split())
    except UnicodeDecodeError as error:
        raise StoreError(f"The caption {path} cannot be read as text: save it as UTF-8.") from error
    return replace(photo, caption=text) if text else photo


def stored_photos(folder: Path) -> dict[str, PreparedPhoto]:
    """Photos by name as the manifest holds them, crops of left-out ones included; {} when there is none to be read.

    Raises StoreError for a caption that cannot be read as text.
    """
    photos: list[PreparedPhoto] = []
    with suppress(StoreError, KeyError, TypeError, ValueError, AttributeError):
        photos = [photo_from_json(item) for item in read_json(folder / MANIFEST)["photos"]]
    return {photo.source: _with_edited_caption(photo, folder) for photo in photos}


# --- changes ----------------------------------------------------------------------------------------
def with_caption(dataset: Dataset, source: str, text: str) -> Dataset:
    """The dataset with another caption for one photo; ``save_dataset`` keeps it.

    Raises DatasetError when the photo is not used, or the caption is empty or too long.
    """
    text = " ".join(text.split())
    photo = find_photo(dataset, source)
    if not photo.crop:
        raise DatasetError(f"“{source}” was left out, so it has no caption: take it in first.")
    if not text:
        least = f"{dataset.trigger} {dataset.class_word}"
        raise DatasetError(f"The caption of “{source}” is empty: write at least “{least}”.")
    if len(text) > MOST_CAPTION:
        raise DatasetError(f"The caption of “{source}” has {len(text)} characters: shorten it to {MOST_CAPTION}.")
    return _exchange(dataset, replace(photo, caption=text))


def with_verdict(dataset: Dataset, source: str, verdict: str, reason: str = LEFT_OUT) -> Dataset:
    """The dataset with one photo used for training, held out or left out; ``save_dataset`` keeps it.

    Raises DatasetError for a photo without a usable face, or when nothing would be left to learn from.
    """
    if verdict not in VERDICTS:
        raise DatasetError(f"“{verdict}” is no verdict: use one of {', '.join(VERDICTS)}.")
    photo = find_photo(dataset, source)
    if verdict == "rejected":
        changed = PreparedPhoto(source, "rejected", photo.reason or reason, photo.warnings)
    else:
        whole = photo if photo.crop else stored_photos(dataset.folder).get(source, photo)
        if not whole.crop:
            raise DatasetError(f"“{source}” cannot be used: {photo.reason[:1].lower()}{photo.reason[1:]}")
        changed = replace(whole, verdict=verdict, reason="")
    result = _exchange(dataset, changed)
    if not any(photo.verdict == "train" for photo in result.photos):
        raise DatasetError(f"“{source}” is the last photo to learn from: take another in before leaving it out.")
    return result


def find_photo(dataset: Dataset, source: str) -> PreparedPhoto:
    """The photo of that name. Raises DatasetError when there is none."""
    for photo in dataset.photos:
        if photo.source == source:
            return photo
    raise DatasetError(f"There is no photo “{source}” among the prepared ones of {dataset.person}.")


def _exchange(dataset: Dataset, changed: PreparedPhoto) -> Dataset:
    return replace(dataset, photos=tuple(changed if p.source == changed.source else p for p in dataset.photos))


# --- taking it away ---------------------------------------------------------------------------------
def export_zip(dataset: Dataset, target: Path) -> Path:
    """Crops and captions of all photos in use as a zip archive, for other trainers. Raises StoreError."""
    with atomic_file(target) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        for photo in dataset.photos:
            if photo.crop:
                folder = "held-out/" if photo.verdict == "held_out" else ""
                archive.write(dataset.folder / photo.crop, folder + photo.crop)
                archive.writestr(folder + Path(photo.crop).with_suffix(".txt").name, photo.caption + "\n")
    return target


# --- changing over from one dataset to the next -----------------------------------------------------
def staging_folder(folder: Path) -> Path:
    """A new folder beside ``folder`` in which the next dataset is made. Raises StoreError."""
    _remove_leftovers(folder)
    staged = folder.with_name(f".{folder.name}-new-{uuid.uuid4().hex[:8]}")
    with told_plainly(staged, "made"):
        staged.mkdir(parents=True)
    return staged


def _remove_leftovers(folder: Path) -> None:
    """Remove what a crash left beside ``folder`` more than a day ago; younger ones may be in use."""
    _finish_swap(folder)
    for leftover in folder.parent.glob(f".{folder.name}-*-*"):
        with suppress(OSError):
            if time.time() - leftover.stat().st_mtime > LEFTOVER_AGE_S:
                shutil.rmtree(leftover, ignore_errors=True)


def swap_in(staged: Path, folder: Path) -> None:
    """Put ``staged`` in the place of ``folder``. Whatever happens, one of the two is whole. Raises StoreError."""
    old = folder.with_name(f".{folder.name}-old-{uuid.uuid4().hex[:8]}")
    with told_plainly(folder, "replaced"):
        if folder.exists():
            folder.replace(old)
        try:
            staged.replace(folder)
        except OSError:
            if old.exists():
                old.replace(folder)
            raise
    shutil.rmtree(old, ignore_errors=True)


def _finish_swap(folder: Path) -> None:
    """After a crash between the two steps of ``swap_in`` the former dataset is put back."""
    if folder.exists():
        return
    for old in sorted(folder.parent.glob(f".{folder.name}-old-*")):
        with suppress(OSError):
            old.replace(folder)
            return
