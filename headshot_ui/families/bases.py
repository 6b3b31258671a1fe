"""``base.json``: what a person is told about a base model, beside its weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.errors import ModelError
from headshot_ui.families.protocol import BaseDefaults, BaseInfo

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

BASE_FILE = "base.json"


def find_bases(family: str, settings: Settings) -> tuple[BaseInfo, ...]:
    """Base models of one family under ``settings.models_dir``, by path; damaged ``base.json`` are left out."""
    found = []
    for path in _base_files(settings):
        try:
            info = read_base(path)
        except ModelError:
            continue  # told by damaged_base_files: one bad folder must not hide the good ones
        if info.family == family:
            found.append(info)
    return tuple(found)


def damaged_base_files(settings: Settings) -> tuple[Path, ...]:
    """Every ``base.json`` that cannot be read."""
    damaged = []
    for path in _base_files(settings):
        try:
            read_base(path)
        except ModelError:
            damaged.append(path)
    return tuple(damaged)


def read_base(path: Path) -> BaseInfo:
    """Read one ``base.json``. Raises ModelError saying what is wrong with it."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: install this base model again.") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is damaged: install this base model again.")
    defaults = _checked(BaseDefaults, data.pop("defaults", {}), path)
    fields = _checked(BaseInfo, data, path)
    try:
        return BaseInfo(**{**fields, "folder": path.parent, "defaults": BaseDefaults(**defaults)})
    except TypeError as error:
        raise ModelError(f"{path} lacks an entry ({error}): install this base model again.") from error


def _checked(kind: type, data: Any, path: Path) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(kind)} - {"folder"}
    if not isinstance(data, dict):
        raise ModelError(f"{path} is damaged: install this base model again.")
    unknown = sorted(set(data) - known)
    if unknown:
        raise ModelError(f"{path} has an entry “{unknown[0]}” that this version does not know: update the program.")
    return data


def _base_files(settings: Settings) -> list[Path]:
    return sorted(settings.models_dir.rglob(BASE_FILE)) if settings.models_dir.is_dir() else []
