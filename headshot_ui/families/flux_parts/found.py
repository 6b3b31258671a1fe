"""FLUX.1 that somebody dropped into the models folder without describing it: diffusers folders and single files.

A single file is a base where a folder of FLUX.1 lies in the models folder too, which lends it text encoders, VAE and
tokenizers: dev and schnell have the same, so either does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import find_bases
from headshot_ui.families.flux_parts.configs import read_facts
from headshot_ui.families.flux_parts.files import TRANSFORMER
from headshot_ui.families.flux_parts.preflight import (
    BORROWED,
    check_folder,
    check_pipeline,
    fits,
    lent_shape,
    pipeline_name,
)
from headshot_ui.families.flux_parts.single_file import Single, look
from headshot_ui.families.flux_parts.sizes import Shape
from headshot_ui.families.folders import free_id, id_of, name_of, title_of
from headshot_ui.families.protocol import BaseDefaults, BaseInfo, Misfit
from headshot_ui.families.undescribed import INDEX, state_of, undescribed
from headshot_ui.wording import how_to_get

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

SIZE_PX = 1024  # no config of FLUX.1 says it; diffusers' pipeline has it as its default
#: As the model cards of FLUX.1-dev and FLUX.1-schnell say (schnell takes no guidance scale), and for training what
#: holds for both: a small LoRA, because the network is large.
DEV = BaseDefaults(sampling_steps=28, guidance_scale=3.5, rank=16, learning_rate=1e-4)
SCHNELL = BaseDefaults(sampling_steps=4, guidance_scale=1.0, rank=16, learning_rate=1e-4)
_DEV_LICENCE = "FLUX.1-dev Non-Commercial License, unless whoever made it says otherwise"
_SCHNELL_LICENCE = "Apache-2.0 if it is FLUX.1-schnell itself; else see where you got it"
_DEV_NOTE = " A LoRA that was trained on FLUX.1-dev has its licence: not for commercial use."
_SCHNELL_NOTE = " It draws in four steps and cannot be trained on: train on FLUX.1-dev."
_LENDER_ENTRY = "flux-encoders"  # of the catalogue of downloads


@dataclass(frozen=True)
class _Lender:
    """A folder with text encoders, VAE and tokenizers of FLUX.1, and the shape of the transformer they belong to."""

    folder: Path
    shape: Shape


@dataclass(frozen=True)
class _Found:
    """A folder or a file with anything called FLUX."""

    path: Path
    problem: str  # a whole sentence; "" for what can be drawn with
    damaged: bool = False
    quiet: bool = False
    lender: Path | None = None  # of a single file


def found_bases(family: str, described: Sequence[BaseInfo], settings: Settings) -> tuple[BaseInfo, ...]:
    """Base models that no ``base.json`` describes, by path; ``described`` are those that one does."""
    ids, found = {info.id for info in described}, []
    for one in _found(described, settings):
        if not one.problem:
            found.append(_base(one, family, free_id(one.path, ids)))
            ids.add(found[-1].id)
    return tuple(found)


def misfits(family: str, settings: Settings) -> tuple[Misfit, ...]:
    """Folders and files with another FLUX than this family draws with, a damaged one or half of one, by path."""
    return tuple(
        Misfit(one.path, id_of(name_of(one.path)), one.problem, one.damaged, one.quiet, own=True)
        for one in _found(find_bases(family, settings), settings)
        if one.problem
    )


def _base(found: _Found, family: str, id_: str) -> BaseInfo:
    path, lender = found.path, found.lender
    info = BaseInfo(
        id_, family, title_of(name_of(path)), lender or path, _DEV_LICENCE,
        f"Found as {path.name} in the models folder.", SIZE_PX, defaults=DEV,
    )  # fmt: skip
    note, single = info.note, look(path) if lender else None
    if lender is not None and single is not None:
        note = f"{note.removesuffix('.')}, drawn with the text encoders and the VAE of {name_of(lender)}."
        info = replace(info, checkpoint=path, checkpoint_parts=((TRANSFORMER, single.prefix),), borrowed=BORROWED)
    if read_facts(info).few_steps:
        return replace(info, licence=_SCHNELL_LICENCE, note=note + _SCHNELL_NOTE, defaults=SCHNELL)
    return replace(info, note=note + _DEV_NOTE)


# --- looking ------------------------------------------------------------------------------------------
def _found(described: Sequence[BaseInfo], settings: Settings) -> Iterator[_Found]:
    """Everything called FLUX that is not described, in the order of the paths."""
    places = list(undescribed(settings.models_dir))
    folders = [folder for folder, names in places if INDEX in names and _is_flux(folder)]
    lenders = [lender for folder in (*(info.folder for info in described), *folders) if (lender := _lender(folder))]
    for folder, names in places:
        if folder in folders:
            yield _in_folder(folder, any(lender.folder == folder for lender in lenders))
        elif INDEX not in names and "config.json" not in names:  # beside one, weights are a part of something
            for name in sorted(names):
                single = look(folder / name)
                if single is not None:
                    yield _in_file(folder / name, single, lenders, settings)


def _in_folder(folder: Path, lends: bool) -> _Found:
    problem = _problem(folder, state_of(folder))
    # What lends and has no transformer of its own lies there for a purpose.
    return _Found(folder, problem, damaged=bool(problem) and _draws_from_text(folder), quiet=lends)


def _in_file(path: Path, single: Single, lenders: Sequence[_Lender], settings: Settings) -> _Found:
    if single.told:
        return _Found(path, f"{path} is {single.told}.", single.damaged)
    fitting = [lender for lender in lenders if fits(single.shape, lender.shape)]
    if not fitting:
        return _Found(
            path,
            f"{path} is FLUX.1 without the text encoders, VAE and tokenizers it draws with, which are taken from a "
            f"folder of FLUX.1-dev or FLUX.1-schnell in diffusers layout, and {settings.models_dir} has none that "
            f"fits: {how_to_get(_LENDER_ENTRY)}.",
        )
    # One of the same kind has the same schedule too.
    best = min(fitting, key=lambda lender: (lender.shape.guidance != single.shape.guidance, lender.folder))
    return _Found(path, "", lender=best.folder)


def _is_flux(folder: Path) -> bool:
    try:
        return pipeline_name(folder).startswith("Flux")
    except ModelError:
        return False  # whatever it is


def _draws_from_text(folder: Path) -> bool:
    try:
        check_pipeline(folder)
    except ModelError:
        return False
    return True


def _lender(folder: Path) -> _Lender | None:
    """None for a folder that cannot lend."""
    shape = _lent(folder, state_of(folder))
    return None if shape is None else _Lender(folder, shape)


@lru_cache(maxsize=64)
def _lent(folder: Path, state: tuple[tuple[str, int, int], ...]) -> Shape | None:
    """The same while the ``state`` of the folder is."""
    try:
        check_folder(folder, BORROWED)
        return lent_shape(folder)
    except ModelError:
        return None


@lru_cache(maxsize=64)
def _problem(folder: Path, state: tuple[tuple[str, int, int], ...]) -> str:
    """The same while the ``state`` of the folder is."""
    try:
        check_folder(folder)
    except ModelError as error:
        return str(error)
    return ""
