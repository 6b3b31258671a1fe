"""Sets of headshots of one person as they lie on disk: found, narrowed down, described, deleted and brought back.

The browser names pictures by ``picture_id`` only, which is looked up among the person's own pictures; a path from
outside is never used.
"""

from __future__ import annotations

import hashlib
import math
import shutil
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from headshot_ui.errors import HeadshotError, SpecError, StoreError
from headshot_ui.generation.records import RANKING, Picture, pictures_of, still_there
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import Store, read_json, read_png_metadata, told_plainly

ALL, STARRED, BEST = "all", "starred", "best"
WHICH = (ALL, STARRED, BEST)
BEST_SHARE = 0.25
SETS_KEPT = 2048  # rankings in memory; one of 16 pictures takes about 15 kB
#: Deleted pictures wait here, beside their set, until the next deletion or the next start.
BIN = ".deleted"


@dataclass(frozen=True)
class PictureSet:
    """One request of headshots and what became of it."""

    folder: Path
    finished_s: float  # seconds since 1970
    state: str  # "done", "cancelled" or "failed"
    request: GenerateSpec | None  # None where it cannot be read any more
    pictures: tuple[Picture, ...]  # best first

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def caption(self) -> str:
        """“3 May 2026, 14:05 · 20 pictures”."""
        broken_off = "" if self.state == "done" else ", broken off"
        return f"{moment(self.finished_s)} · {counted(len(self.pictures), 'picture')}{broken_off}"


def counted(number: int, what: str) -> str:
    """ "1 picture", "3 pictures"."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def moment(seconds: float) -> str:
    """Seconds since 1970 as “3 May 2026, 14:05”, local time."""
    when = time.localtime(seconds)
    return f"{when.tm_mday} {time.strftime('%b %Y, %H:%M', when)}"


def picture_id(path: Path) -> str:
    """What a picture is called in the browser: the same as long as it stays where it is."""
    return hashlib.sha256(str(path).encode()).hexdigest()[:16]


# --- finding ------------------------------------------------------------------------------------------
def sets_mark(store: Store, person: str) -> tuple[Any, ...]:
    """Small and comparable; changes when a set comes or goes. Deleting one picture changes nothing here."""
    if not person:
        return ()
    marks = []
    for ranking in store.headshots_dir(person).glob(f"*/{RANKING}"):
        with suppress(OSError):  # removed since the folder was listed
            marks.append((ranking.parent.name, ranking.stat().st_mtime_ns))
    return tuple(sorted(marks))


def find_sets(store: Store, person: str) -> tuple[PictureSet, ...]:
    """All sets of a person that have pictures, newest first; damaged ones are left out."""
    if not person:
        return ()
    found = (read_set(ranking.parent) for ranking in store.headshots_dir(person).glob(f"*/{RANKING}"))
    return tuple(sorted((each for each in found if each and each.pictures), key=_age, reverse=True))


def _age(each: PictureSet) -> tuple[float, str]:
    return each.finished_s, each.id


def read_set(folder: Path) -> PictureSet | None:
    """One set, or None where it cannot be read."""
    try:
        now = (folder / RANKING).stat()
        written = _written(folder, now.st_mtime_ns, now.st_ino, now.st_size)
    except (StoreError, OSError):
        return None
    return replace(written, pictures=still_there(folder, written.pictures))


@lru_cache(maxsize=SETS_KEPT)
def _written(folder: Path, changed_ns: int, _inode: int, _size: int) -> PictureSet:
    """A set as its ranking describes it, read once: every click looks at all sets of the person. Raises StoreError.

    All of the key but the folder changes when the ranking is written anew.
    """
    data = read_json(folder / RANKING)
    pictures = pictures_of(folder, data)
    return PictureSet(folder, changed_ns / 1e9, str(data.get("state", "done")), _request(data.get("request")), pictures)


def _request(data: Any) -> GenerateSpec | None:
    try:
        return GenerateSpec.from_json(data)
    except (SpecError, AttributeError, TypeError):
        return None


def find_set(sets: Sequence[PictureSet], set_id: str | None) -> PictureSet | None:
    """The set of that id, else the newest; None where there is none."""
    return next((each for each in sets if each.id == set_id), sets[0] if sets else None)


def find_picture(pictures: Sequence[Picture], wanted: str | None) -> Picture | None:
    """The picture of that id, else the first; None where there is none."""
    named = (picture for picture in pictures if picture_id(picture.path) == wanted)
    return next(named, pictures[0] if pictures else None)


# --- narrowing down ------------------------------------------------------------------------------------
def narrowed(pictures: Sequence[Picture], which: str, starred: Collection[Path]) -> tuple[Picture, ...]:
    """All of a set, its starred pictures, or its best: the first quarter of those that can be used."""
    if which == STARRED:
        return tuple(picture for picture in pictures if picture.path in starred)
    if which != BEST:
        return tuple(pictures)
    usable = [picture for picture in pictures if picture.likeness is not None and not picture.likeness.reason]
    return tuple(usable[: math.ceil(BEST_SHARE * len(usable))])


# --- telling -------------------------------------------------------------------------------------------
def likeness_words(picture: Picture) -> str:
    """ "87 %", "not ranked: no face was found" or ""."""
    if picture.likeness is None:
        return ""
    if picture.likeness.reason:
        return f"not ranked: {picture.likeness.reason}"
    return f"{picture.likeness.percent:.0f} %"


def facts_of(picture: Picture, pictures_of_set: int) -> list[dict[str, str]]:
    """What is known about one picture, as name and value, for people."""
    data = _metadata(picture.path)
    request = data.get("request") or {}
    rank = f"{picture.rank} of {pictures_of_set}" if picture.rank else ""
    facts = [
        ("Likeness", likeness_words(picture) or "not measured"),
        ("Rank", rank),
        ("Look", picture.title),
        ("Seed", str(picture.seed)),
        ("Refiner", refined_words(picture)),
        ("Size", _size(data)),
        ("LoRA", _lora(data)),
        ("Steps", _number(request.get("steps"))),
        ("Guidance", _number(request.get("guidance_scale"))),
        ("Prompt", picture.prompt),
        ("File", picture.path.name),
    ]
    return [{"name": name, "value": value} for name, value in facts if value]


def _metadata(path: Path) -> dict[str, Any]:
    try:
        return read_png_metadata(path)
    except StoreError:
        return {}


def refined_words(picture: Picture) -> str:
    """Whether the refiner finished the picture; "" where nobody asked for it."""
    if picture.why_not_refined:
        return f"kept without it: {picture.why_not_refined}"
    return "finished by the refiner" if picture.refined else ""


def _size(data: dict[str, Any]) -> str:
    planned = data.get("picture") or {}
    return f"{planned['width']} × {planned['height']} pixels" if {"width", "height"} <= set(planned) else ""


def _lora(data: dict[str, Any]) -> str:
    lora = data.get("lora")
    if not isinstance(lora, dict):
        return "none" if data else ""
    return f"{Path(str(lora.get('name', ''))).name}, strength {_number(lora.get('scale', 1.0))}"


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, int | float) else ""


# --- the request behind a picture ------------------------------------------------------------------------
def settings_of(picture: Picture) -> GenerateSpec:
    """The whole request that drew the picture, from its own PNG, narrowed to its look and seed. Raises StoreError."""
    data = read_png_metadata(picture.path)
    try:
        spec = GenerateSpec.from_json(data["request"])
        presets = (picture.preset,) if picture.preset else ()
        return GenerateSpec.from_json(
            {**spec.to_json(), "presets": presets, "prompt": "" if presets else spec.prompt, "seed": picture.seed,
             "keep_best": None}
        )  # fmt: skip
    except (KeyError, HeadshotError, AttributeError) as error:
        raise StoreError(
            f"{picture.path.name} does not say how it was made; choose a picture made by this program."
        ) from error


# --- deleting --------------------------------------------------------------------------------------------
def delete_picture(store: Store, person: str, path: Path) -> Path:
    """Put a picture aside; where it lies now. What was put aside before is gone for good. Raises StoreError."""
    empty_bins(store, person)
    aside = path.parent / BIN / path.name
    with told_plainly(path, "deleted"):
        aside.parent.mkdir(exist_ok=True)
        path.replace(aside)
    return aside


def undelete_picture(aside: Path) -> Path:
    """Bring a picture back to its set; where it lies again. Raises StoreError when it is gone for good."""
    path = aside.parent.parent / aside.name
    with told_plainly(aside, "brought back"):
        aside.replace(path)
    with suppress(OSError):
        aside.parent.rmdir()
    return path


def empty_bins(store: Store, person: str) -> None:
    """Remove for good what was put aside."""
    for parent in (store.headshots_dir(person), store.restored_dir(person)):
        for folder in parent.glob(f"*/{BIN}"):
            shutil.rmtree(folder, ignore_errors=True)
