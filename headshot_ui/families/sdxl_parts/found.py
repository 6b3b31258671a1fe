"""Models that somebody dropped into the models folder without describing them: diffusers folders and checkpoints.

A folder with ``base.json`` or ``refiner.json`` is described (see ``families.bases``); nothing below it is looked at.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.errors import ModelError
from headshot_ui.families.folders import free_id, id_of, name_of, title_of
from headshot_ui.families.protocol import BaseDefaults, BaseInfo, Misfit, RefinerInfo
from headshot_ui.families.sdxl_parts.files import SAFE_VAE, published
from headshot_ui.families.sdxl_parts.kinds import (
    BASE,
    BASE_PARTS,
    DAMAGED,
    OTHER,
    PART,
    PICKLES,
    REFINER,
    REFINER_PARTS,
    UNFINISHED,
    Kind,
    kind_of,
)
from headshot_ui.families.sdxl_parts.preflight import check_base, check_pipeline
from headshot_ui.families.sdxl_parts.refiner_files import check_refiner_files
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.families.undescribed import INDEX, state_of, undescribed

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

LICENCE = "see where you got it"
#: What distilled models are called; they draw in a few steps with hardly any guidance, and are spoiled by more.
_FEW_STEPS = re.compile(r"lightning|turbo|hyper|lcm|dmd", re.IGNORECASE)
FEW_STEPS = BaseDefaults(sampling_steps=8, guidance_scale=2.0)


def found_bases(family: str, taken: Collection[str], settings: Settings) -> tuple[BaseInfo, ...]:
    """Base models that no ``base.json`` describes, by path; ``taken`` are ids that others have."""
    ids, found = set(taken), []
    for path, kind in _undescribed(settings):
        if kind.name == BASE:
            found.append(_base(path, family, free_id(path, ids)))
            ids.add(found[-1].id)
    return tuple(found)


def found_refiners(family: str, taken: Collection[str], settings: Settings) -> tuple[RefinerInfo, ...]:
    """The same for refiners; they are for any base of the family."""
    ids, found = set(taken), []
    for path, kind in _undescribed(settings):
        if kind.name == REFINER:
            found.append(_refiner(path, family, free_id(path, ids)))
            ids.add(found[-1].id)
    return tuple(found)


def misfits(settings: Settings) -> tuple[Misfit, ...]:
    """What was dropped there and is neither, by path."""
    return tuple(_misfit(path, kind) for path, kind in _undescribed(settings) if kind.name not in (BASE, REFINER))


def _misfit(path: Path, kind: Kind) -> Misfit:
    reason = kind.told if path.is_dir() else f"{path} is {kind.told}."
    # The name that a download had before it was interrupted.
    name = path.with_suffix("") if path.suffix.lower() in UNFINISHED else path
    quiet = kind.name == PART or path.parent.name.lower().startswith("lora")
    return Misfit(path, id_of(name_of(name)), reason, kind.name == DAMAGED, quiet)


def _base(path: Path, family: str, id_: str) -> BaseInfo:
    few = bool(_FEW_STEPS.search(name_of(path)))
    hurry = " It is made for few steps and little guidance: better train on a model without that." if few else ""
    whole = path.is_dir()
    folder = path if whole else published(BASE)
    return BaseInfo(
        id_, family, title_of(name_of(path)), folder, LICENCE, f"Found as {path.name} in the models folder.{hurry}",
        _size_px(folder), defaults=FEW_STEPS if few else BaseDefaults(),
        checkpoint=None if whole else path, checkpoint_parts=() if whole else BASE_PARTS,
    )  # fmt: skip


def _size_px(folder: Path) -> int:
    """What the configs say of the side of a picture. Raises ModelError for a damaged one."""
    cells = read_json_file(folder / "unet" / "config.json").get("sample_size")
    channels = read_json_file(folder / "vae" / "config.json").get("block_out_channels")
    known = isinstance(cells, int) and isinstance(channels, list)
    return cells * 2 ** (len(channels) - 1) if known else 1024  # type: ignore[arg-type]


def _refiner(path: Path, family: str, id_: str) -> RefinerInfo:
    whole = path.is_dir()
    return RefinerInfo(
        id_, family, title_of(name_of(path)), path if whole else published(REFINER), LICENCE,
        f"Found as {path.name} in the models folder.",
        checkpoint=None if whole else path, checkpoint_parts=() if whole else REFINER_PARTS,
    )  # fmt: skip


# --- looking ------------------------------------------------------------------------------------------
def _undescribed(settings: Settings) -> Iterator[tuple[Path, Kind]]:
    """Folders in diffusers layout and single files, with what they are, in the order of their paths."""
    for folder, names in undescribed(settings.models_dir, [SAFE_VAE]):
        if INDEX in names:
            yield folder, _folder_kind(folder, state_of(folder))
        elif "config.json" not in names:  # beside one, weights are a single part of something
            for name in sorted(names):
                if name.lower().endswith((".safetensors", ".gguf", *PICKLES, *UNFINISHED)):
                    yield folder / name, kind_of(folder / name)


@lru_cache(maxsize=64)
def _folder_kind(folder: Path, state: tuple[tuple[str, int, int], ...]) -> Kind:
    """What a folder in diffusers layout is, told in a whole sentence; the same while its ``state`` is."""
    try:
        check_pipeline(folder)
    except ModelError as error:
        return Kind(OTHER, str(error))
    try:
        encoder = read_json_file(folder / INDEX).get("text_encoder")
        if not (isinstance(encoder, list) and encoder and encoder[0]):
            check_refiner_files(_refiner(folder, "", ""))
            return Kind(REFINER)
        check_base(_base(folder, "", ""))
    except ModelError as error:
        return Kind(DAMAGED, str(error))
    return Kind(BASE)
