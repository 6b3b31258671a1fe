"""What lies in the models folder without having been downloaded by this program: a favourite checkpoint, say."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui import families
from headshot_ui.downloads.catalogue import load_catalogue
from headshot_ui.families.folders import model_folders

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo, RefinerInfo
    from headshot_ui.settings import Settings

#: A file that was changed so lately is perhaps still being copied.
_SETTLED_S = 3.0


@dataclass(frozen=True)
class OwnModel:
    """A base model or refiner that can be chosen, or, with a ``problem``, what cannot be used as one."""

    id: str  # as after --base; what a person would call it
    title: str
    path: Path  # its file or folder
    note: str
    problem: str = ""  # one sentence: what it is, and what to do


def own_models(settings: Settings) -> tuple[OwnModel, ...]:
    """Bases, then refiners, then what is neither. Neither the demo's, nor those of the catalogue."""
    catalogue = load_catalogue().values()
    downloaded = {Path(settings.models_dir, file.place) for entry in catalogue for file in entry.files}
    models: tuple[BaseInfo | RefinerInfo, ...] = (*families.all_bases(settings), *families.all_refiners(settings))
    usable = [
        OwnModel(info.id, info.title, info.checkpoint or info.folder, info.note)
        for info in models
        if not info.demo and not _holds(info.checkpoint or info.folder, downloaded)
    ]
    unusable = [
        OwnModel(misfit.id, misfit.path.name, misfit.path, "", misfit.reason)
        for misfit in families.all_misfits(settings)
        if not misfit.quiet and not _holds(misfit.path, downloaded)
    ]
    return (*usable, *unusable)


def folder_mark(settings: Settings) -> int:
    """Another number when something in the models folder comes, goes or has been changed; takes milliseconds.

    A file that is being copied counts once it has not grown for a few seconds.
    """
    now = time.time()
    state: list[tuple[str, int, int]] = []
    for folder, names in model_folders(settings.models_dir):
        for name in names:
            try:
                file = (folder / name).stat()
            except OSError:  # gone meanwhile
                continue
            if not 0 <= now - file.st_mtime < _SETTLED_S:
                state.append((str(folder / name), file.st_size, file.st_mtime_ns))
    return hash(tuple(sorted(state)))


def _holds(place: Path, files: Collection[Path]) -> bool:
    return any(file == place or place in file.parents for file in files)
