"""The pictures of a person that were given a star.

    outputs/people/<name>/stars.json   {"format": 1, "stars": ["headshots/2026-01-02_10-11-12/001.png", …]}

Paths are relative to the person's folder with “/”, so that the folder can be moved to another computer.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from headshot_ui.errors import SpecError, StoreError
from headshot_ui.store import read_json, told_plainly, write_json_atomic

if TYPE_CHECKING:
    from headshot_ui.store import Store

FILE = "stars.json"
FORMAT = 1
PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp"})

_lock = threading.Lock()  # two clicks at once must not undo each other
_log = logging.getLogger(__name__)


def starred(store: Store, person: str) -> tuple[Path, ...]:
    """Pictures with a star, in the order they got it; those whose file is gone are left out. Raises SpecError."""
    folder = store.person_dir(person)
    paths = (folder / name for name in _read(folder))
    return tuple(path for path in paths if path.is_file())


def is_starred(store: Store, person: str, path: Path) -> bool:
    """Whether this picture has a star; False for anything outside the person's folder."""
    folder = store.person_dir(person)
    try:
        return _name_in(folder, path) in _read(folder)
    except SpecError:
        return False


def set_star(store: Store, person: str, path: Path, on: bool) -> tuple[Path, ...]:
    """Give a picture a star or take it; what has a star afterwards.

    Raises SpecError for anything that is no picture in the person's folder (a star can be taken from a picture
    that is gone) and StoreError when the stars cannot be written.
    """
    folder = store.person_dir(person)
    name = _name_in(folder, path)
    if on and not (path.is_file() and path.suffix.lower() in PICTURES):
        raise SpecError("pictures", f"{path} is no picture that is there: choose one of the person's pictures.")
    with _lock:
        before = _read(folder)
        names = [other for other in before if other != name] if not on else list(dict.fromkeys([*before, name]))
        if names != before:
            _keep_damaged(folder)
            write_json_atomic(folder / FILE, {"format": FORMAT, "stars": names})
    return starred(store, person)


def _name_in(folder: Path, path: Path) -> str:
    """The path relative to the person's folder. Raises SpecError when it leads out of it, also through a link."""
    try:
        return path.absolute().resolve().relative_to(folder.absolute().resolve()).as_posix()
    except (ValueError, OSError) as error:
        message = f"{path} is not in the folder {folder}: only pictures in it can have a star."
        raise SpecError("pictures", message) from error


def _read(folder: Path) -> list[str]:
    """Names with a star; none when there is no file or a damaged one, for stars are soon given again."""
    if not (folder / FILE).is_file():
        return []
    try:
        names = _names(read_json(folder / FILE))
    except (StoreError, ValueError):
        _log.warning("%s is damaged and counts as empty", folder / FILE)
        return []
    return [name for name in names if _is_inside(name)]


def _names(data: Any) -> list[str]:
    stars = data.get("stars") if isinstance(data, dict) else None
    if not isinstance(stars, list) or not all(isinstance(name, str) for name in stars):
        raise ValueError("no list of stars")
    return list(dict.fromkeys(stars))


def _is_inside(name: str) -> bool:
    parts = PurePosixPath(name).parts
    return bool(parts) and not name.startswith("/") and ".." not in parts and "\\" not in name and ":" not in name


def _keep_damaged(folder: Path) -> None:
    """Put a damaged file aside before it is written anew, should somebody want to look into it."""
    path = folder / FILE
    if not path.is_file():
        return
    try:
        _names(read_json(path))
    except (StoreError, ValueError):
        with told_plainly(path, "put aside"):
            path.replace(path.with_name("stars-damaged.json"))
