"""A set of headshots as a whole: its contact sheet and a zip of it. No gradio.

Both are made in the page's private folder: looking at a set writes nothing beside the pictures.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from headshot_ui.dataset.saved import load_dataset
from headshot_ui.errors import HeadshotError
from headshot_ui.sheet import FILE_NAME, save_set_sheet, sheet_shows
from headshot_ui.store import Store, atomic_file, check_free_space, told_plainly
from headshot_ui.ui.gallery import address, small_webp
from headshot_ui.ui.picture_sets import PictureSet, counted, find_set, find_sets, picture_id

SHEET_PX = 640  # of the small copy that the page shows
KEPT = 3  # sheets and zips; a zip may be large
NOTHING: dict[str, Any] = {"picture": "", "large": "", "text": ""}


def set_on_view(store: Store, person: str, set_id: str) -> PictureSet | None:
    """The set of that id, else the newest. Reads the rankings of all sets: ask once for everything said of a set."""
    return find_set(find_sets(store, person), set_id)


def set_key(shown: PictureSet | None) -> str:
    """Changes when the set on view, or what is in it, does; "" for no set."""
    return "" if shown is None else _key(shown)


def sheet_of(shown: PictureSet | None, store: Store, shown_dir: Path, person: str) -> Path | None:
    """The contact sheet of a set: that of a whole job beside the pictures, or one made now; None without a set.

    Raises StoreError when there is no room for it or a picture cannot be read.
    """
    if shown is None:
        return None
    names = [picture.path.name for picture in shown.pictures]
    saved = shown.folder / FILE_NAME
    made_before = saved if sheet_shows(saved, names) else None

    def make(path: Path) -> None:
        if made_before is not None:
            shutil.copyfile(made_before, path)
        else:
            with told_plainly(shown.folder, "read"):
                save_set_sheet(path, shown.pictures, _photos(store, person), f"Headshots of {person}")

    return _made(shown_dir / "sheets", f"{_key(shown)} {made_before}", f"{person}-contact-sheet.png", make)


def zip_of(shown: PictureSet | None, shown_dir: Path, person: str) -> Path | None:
    """A zip of all pictures of a set as they lie on disk, in the order of their rank; None without a set.

    Raises StoreError.
    """
    if shown is None:
        return None
    paths = [picture.path for picture in shown.pictures]

    def make(path: Path) -> None:
        with told_plainly(shown.folder, "read"):
            check_free_space(shown_dir, sum(each.stat().st_size for each in paths))
        with atomic_file(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            for number, each in enumerate(paths, start=1):  # the name begins with the place in the ranking
                archive.write(each, f"{number:03d}_{each.name}")

    return _made(shown_dir / "zips", _key(shown), f"{person}-{shown.id}.zip", make)


def sheet_values(sheet: Path | None, shown_dir: Path, person: str) -> dict[str, Any]:
    """Values of the small contact sheet that can be enlarged."""
    if sheet is None:
        return NOTHING
    small = small_webp(sheet, shown_dir, SHEET_PX)
    if small is None:
        return NOTHING
    return {"picture": address(small), "large": address(sheet), "text": f"Contact sheet of the headshots of {person}"}


def zip_label(shown: PictureSet | None) -> str:
    """ "Download all 16 pictures (zip)"."""
    number = 0 if shown is None else len(shown.pictures)
    return f"Download all {counted(number, 'picture')} (zip)" if number != 1 else "Download the picture (zip)"


def _photos(store: Store, person: str) -> list[Path]:
    """Crops of the person's photos; [] where there are none."""
    try:
        dataset = load_dataset(store.dataset_dir(person))
    except HeadshotError:
        return []
    return [dataset.folder / photo.crop for photo in dataset.photos if photo.crop]


def _key(shown: PictureSet) -> str:
    ids = " ".join(picture_id(picture.path) for picture in shown.pictures)
    return hashlib.sha256(f"{shown.folder} {shown.finished_s} {ids}".encode()).hexdigest()[:24]


def _made(folder: Path, key: str, name: str, make: Callable[[Path], None]) -> Path:
    """``folder/<key>/name``, made by ``make`` where it is not there yet; older ones are removed."""
    made = folder / hashlib.sha256(key.encode()).hexdigest()[:24] / name
    if made.is_file():
        return made
    with told_plainly(made, "made"):
        made.parent.mkdir(parents=True, exist_ok=True)
        unfinished = made.with_name(uuid.uuid4().hex)
        try:
            make(unfinished)
            os.replace(unfinished, made)
        finally:
            unfinished.unlink(missing_ok=True)
    with suppress(OSError):
        older = sorted(folder.iterdir(), key=lambda each: each.stat().st_mtime)
        for old in older[:-KEPT]:
            shutil.rmtree(old, ignore_errors=True)
    return made
