"""Headshot looks as data files: what is worn, where, in which light. Never who is worn by it.

A preset is one JSON file. The shipped ones lie in ``headshot_ui/presets``; a person's own lie in
``outputs/presets`` and replace a shipped one of the same id.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.errors import StoreError

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

SLOTS = ("attire", "backdrop", "light", "framing", "expression")
THUMBNAILS = frozenset({".jpg", ".jpeg", ".png", ".webp"})
_SHIPPED = Path(__file__).resolve().parent.parent / "presets"
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
_ASPECT = re.compile(r"([1-9]\d?):([1-9]\d?)")


@dataclass(frozen=True)
class FamilyWords:
    """Words for models of one family that understand any text; models with a small vocabulary ignore them."""

    detail: str = ""  # put at the end of the prompt
    negative: str = ""  # negative prompt unless the person gives one


@dataclass(frozen=True)
class Preset:
    """One look."""

    id: str
    title: str
    category: str
    attire: str
    backdrop: str
    light: str
    framing: str
    expression: str
    aspect: str = "1:1"  # width:height
    thumbnail: str = ""  # file name beside the preset; it may be absent
    families: Mapping[str, FamilyWords] = field(default_factory=dict)

    @property
    def width_over_height(self) -> float:
        """The aspect as a number; 1.0 is square."""
        width, height = self.aspect.split(":")
        return int(width) / int(height)


def load_presets(settings: Settings | None = None) -> dict[str, Preset]:
    """All looks by id: the shipped ones in their order, then the person's own under ``outputs/presets``.

    Raises StoreError naming the file that cannot be used and what is wrong in it.
    """
    presets: dict[str, Preset] = {}
    for path in sorted(_SHIPPED.glob("*.json")):
        preset = read_preset(path)
        if preset.id in presets:
            raise StoreError(f"The preset {path} has the id “{preset.id}” of another one; give it its own.")
        presets[preset.id] = preset
    if settings is not None:
        for path in sorted((Path(settings.outputs_dir) / "presets").glob("*.json")):
            preset = read_preset(path)
            presets[preset.id] = preset
    return presets


def thumbnail_path(preset: Preset, settings: Settings | None = None) -> Path | None:
    """The small picture of a look: the person's own beside their presets, else the shipped one; None without one."""
    name = preset.thumbnail
    if not name or Path(name).name != name or "\\" in name or Path(name).suffix.lower() not in THUMBNAILS:
        return None
    folders = [Path(settings.outputs_dir) / "presets"] if settings is not None else []
    return next((path for folder in (*folders, _SHIPPED) if (path := folder / name).is_file()), None)


def read_preset(path: Path) -> Preset:
    """One preset file. Raises StoreError naming the file, what is wrong in it and what to do."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return _from_json(data)
    except OSError as error:
        raise StoreError(f"The preset file {path} cannot be read ({error.strerror}); check its permissions.") from error
    except ValueError as error:  # JSON and Unicode errors are ValueErrors too
        problem = "it is not valid JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else str(error)
        raise StoreError(f"The preset file {path} cannot be used: {problem}. Correct the file or remove it.") from error


def _from_json(data: Any) -> Preset:
    """Raises ValueError with half a sentence about what is wrong."""
    known = {"id", "title", "category", "slots", "aspect", "thumbnail", "families"}
    _check_keys(data, known, "the file")
    slots = data.get("slots")
    _check_keys(slots, set(SLOTS), "“slots”")
    families = data.get("families", {})
    _check_keys(families, set(families) if isinstance(families, dict) else set(), "“families”")
    preset = Preset(
        id=_text(data, "id"),
        title=_text(data, "title"),
        category=_text(data, "category"),
        **{slot: _slot(slots, slot) for slot in SLOTS},
        aspect=_text(data, "aspect", "1:1"),
        thumbnail=_text(data, "thumbnail", ""),
        families={name: _family_words(words) for name, words in families.items()},
    )
    if not _ID.fullmatch(preset.id):
        raise ValueError(f"“{preset.id}” is not an id of small letters, digits and -")
    if not _ASPECT.fullmatch(preset.aspect) or not 1 / 3 <= preset.width_over_height <= 3:
        raise ValueError(f"“aspect” is “{preset.aspect}”; write it like 1:1 or 4:5")
    return preset


def _check_keys(data: Any, known: set[str], where: str) -> None:
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be a JSON object in braces")
    for name in data:
        if name not in known:
            raise ValueError(f"“{name}” in {where} is not known")


def _text(data: dict[str, Any], name: str, default: str | None = None) -> str:
    value = data.get(name, default)
    if not isinstance(value, str) or (default is None and not value.strip()):
        raise ValueError(f"“{name}” is missing or is not text")
    return value.strip()


def _slot(slots: dict[str, Any], name: str) -> str:
    value = _text(slots, name)
    if "{" in value or "}" in value:
        raise ValueError(f"“{name}” must be plain words without braces")
    return value


def _family_words(words: Any) -> FamilyWords:
    _check_keys(words, {"detail", "negative"}, "“families”")
    return FamilyWords(detail=_text(words, "detail", ""), negative=_text(words, "negative", ""))
