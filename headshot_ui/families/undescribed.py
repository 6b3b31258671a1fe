"""Models that somebody dropped into the models folder without describing them; each family says which are its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from headshot_ui.families.bases import BASE_FILE, REFINER_FILE, WAITING
from headshot_ui.families.folders import model_folders

INDEX = "model_index.json"  # what says that a folder is in diffusers layout
#: What says that a folder is described.
_DESCRIPTIONS = {name + ending for name in (BASE_FILE, REFINER_FILE) for ending in ("", WAITING)}
#: Known by its name.
_DEMO = "demo"


def undescribed(top: Path, others: Collection[str] = ()) -> Iterator[tuple[Path, frozenset[str]]]:
    """Folders in the order of their paths, with the names of their files; those in diffusers layout have ``INDEX``.

    Nothing at or below a folder that has ``base.json`` or ``refiner.json`` is looked at, nothing below one in
    diffusers layout, and nothing in the demo's folder or those below ``top`` that are called as in ``others``.
    """
    claimed = [top / name for name in (_DEMO, *others)]
    for folder, names in model_folders(top):
        if any(folder.is_relative_to(other) for other in claimed):
            continue
        if names & _DESCRIPTIONS:
            claimed.append(folder)
            continue
        if INDEX in names:
            claimed.append(folder)
        yield folder, names


def state_of(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Changes when a file of a folder, or of one right below it, does."""
    files = (path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file())
    return tuple(sorted((str(path), (state := path.stat()).st_size, state.st_mtime_ns) for path in files))
