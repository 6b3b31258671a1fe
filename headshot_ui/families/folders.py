"""Which folders there are under the models folder, and what a model found there is called."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path

#: Endings of names that are no part of a model's name.
_ENDINGS = (".safetensors", ".ckpt", ".pt", ".bin", ".gguf")


def model_folders(top: Path) -> Iterator[tuple[Path, frozenset[str]]]:
    """Every folder at and below ``top`` with the names of its files, in the order of their paths.

    Links to folders are followed, each folder is visited once; what is hidden (".cache") is left out.
    """
    seen: set[str] = set()
    for place, folders, files in os.walk(top, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(place), frozenset(name for name in files if not name.startswith("."))


def id_of(name: str) -> str:
    """What a file or folder is called on a command line: "RealVisXL V5.0.safetensors" → "realvisxl-v5.0"."""
    return re.sub(r"[^\w.]+", "-", _stem(name).lower()).strip("-.") or "model"


def title_of(name: str) -> str:
    """The same for people: "RealVisXL_V5.0.safetensors" → "RealVisXL V5.0"."""
    return _stem(name).replace("_", " ").strip() or "Model"


def name_of(path: Path) -> str:
    """The name that says most: of a folder in the hub's own cache, that of the repository."""
    for part in reversed(path.parts):
        if part.startswith("models--"):
            return part.split("--")[-1]
    return path.name


def free_id(path: Path, taken: Collection[str]) -> str:
    """An id for a file or folder that no other model has, the same at every start while the others stay."""
    name = id_of(name_of(path))
    longer = f"{id_of(path.parent.name)}-{name}"
    if name not in taken:
        return name
    if longer not in taken:
        return longer
    return next(numbered for n in range(2, 10**6) if (numbered := f"{name}-{n}") not in taken)


def _stem(name: str) -> str:
    ending = next((ending for ending in _ENDINGS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]
