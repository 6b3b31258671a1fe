"""Families of base models, found by looking: every module here with a ``FAMILY`` is one.

Importing this package or a family loads no torch; only ``load_base`` does.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Mapping
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from headshot_ui.collecting import nothing_collected
from headshot_ui.errors import ModelError
from headshot_ui.families.bases import base_not_found, refiner_not_found
from headshot_ui.families.fits import LeastBytes
from headshot_ui.families.folders import id_of
from headshot_ui.families.lora_parts.origin import ForeignLora
from headshot_ui.families.protocol import Abilities, BaseInfo
from headshot_ui.memory import FilePart, part_files

if TYPE_CHECKING:
    from pathlib import Path

    from headshot_ui.families.fits import DenoiserWork, Fitting
    from headshot_ui.families.protocol import (
        Family,
        LoadedBase,
        LoadedRefiner,
        LoraFacts,
        LoraLayout,
        Misfit,
        OtherVae,
        RefinerFacts,
        RefinerInfo,
        Vocabulary,
    )
    from headshot_ui.settings import Settings


def collect_families(modules: Iterable[ModuleType]) -> dict[str, Family]:
    """The families of ``modules`` by id. Raises ValueError when two share an id."""
    found: dict[str, tuple[Family, str]] = {}
    for module in modules:
        family = getattr(module, "FAMILY", None)
        if family is None:
            continue
        if family.id in found:
            raise ValueError(f"{module.__name__} and {found[family.id][1]} both offer the family “{family.id}”")
        found[family.id] = (family, module.__name__)
    return {family_id: family for family_id, (family, _) in sorted(found.items())}


@cache
def all_families() -> dict[str, Family]:
    """Every family by its id."""
    names = [found.name for found in pkgutil.iter_modules(__path__) if not found.ispkg]
    return collect_families(importlib.import_module(f"{__name__}.{name}") for name in names)


def all_bases(settings: Settings) -> tuple[BaseInfo, ...]:
    """Every base model under ``settings.models_dir``, demo models first, then by title."""
    bases = [info for family in all_families().values() for info in family.bases(settings)]
    return tuple(sorted(bases, key=lambda info: (not info.demo, info.title, info.id)))


def find_base(base_id: str, settings: Settings) -> BaseInfo:
    """The base model of that id, or of the file or folder of that name.

    Raises ModelError, saying what it is instead or listing what there is.
    """
    bases = all_bases(settings)
    for wanted in (base_id, id_of(base_id)):
        for info in bases:
            if info.id == wanted:
                return info
    if any(info.id in (base_id, id_of(base_id)) for info in all_refiners(settings)):
        raise ModelError(f"“{base_id}” is a refiner, which finishes what a base model began: choose a base model.")
    raise _misfit(base_id, settings) or base_not_found(base_id, [info.id for info in bases], settings)


def all_misfits(settings: Settings) -> tuple[Misfit, ...]:
    """What was dropped into ``settings.models_dir`` and is a model for no family, by path."""
    models: tuple[BaseInfo | RefinerInfo, ...] = all_bases(settings) + all_refiners(settings)
    used = {info.checkpoint or info.folder for info in models}
    told = [misfit for family in all_families().values() for misfit in family.misfits(settings)]
    found = {misfit.path: misfit for misfit in sorted(told, key=lambda misfit: misfit.own)}
    return tuple(found[path] for path in sorted(found) if path not in used)


def _misfit(name: str, settings: Settings) -> ModelError | None:
    """Why what is called so is no model; None where nothing is."""
    called = {misfit.id: misfit for misfit in all_misfits(settings)}
    misfit = called.get(name) or called.get(id_of(name))
    return None if misfit is None else ModelError(misfit.reason)


def weight_places(info: BaseInfo | RefinerInfo) -> tuple[Path | FilePart, ...]:
    """Where the weights of a model are: its folder in diffusers layout, or parts of its checkpoint and borrowed."""
    if info.checkpoint is None:
        return (info.folder,)
    own = [FilePart(info.checkpoint, name, prefix) for name, prefix in info.checkpoint_parts]
    borrowed = info.borrowed if isinstance(info, BaseInfo) else ()
    return (*own, *(FilePart(file, part, "") for part in borrowed for file in part_files(info.folder, part)))


def check_base(info: BaseInfo) -> None:
    """See ``protocol.Family.check``; what can be read of it without weights is read too."""
    family = _family_of(info)
    family.check(info)
    family.vocabulary(info)


def abilities(info: BaseInfo) -> Abilities:
    """See ``protocol.Family.abilities``; a family that is not known is told when its base is loaded."""
    family = all_families().get(info.family)
    return Abilities() if family is None else family.abilities(info)


def is_trained(info: BaseInfo, tensor: str) -> bool:
    """See ``protocol.Family.is_trained``; of a family that is not known, what any other would."""
    known = all_families()
    asked = (known[info.family],) if info.family in known else known.values()
    return any(family.is_trained(tensor) for family in asked)


def layer_shapes(info: BaseInfo) -> Mapping[str, tuple[int, ...]] | None:
    """See ``protocol.Family.layer_shapes``; None of a family that is not known. Raises ModelError."""
    family = all_families().get(info.family)
    return None if family is None else family.layer_shapes(info)


def working_bytes(
    info: BaseInfo | RefinerInfo, pixels: int, batch: int, learning: str | None, item_bytes: int
) -> int | None:
    """See ``protocol.Family.working_bytes``; None for a refiner and an unknown family too. Raises ModelError."""
    family = all_families().get(info.family)
    if family is None or not isinstance(info, BaseInfo):
        return None
    return family.working_bytes(info, pixels, batch, learning, item_bytes)


def fitting(
    info: BaseInfo, work: DenoiserWork, settings: Settings, precision: str | None = None, under: int | None = None
) -> Fitting | None:
    """See ``protocol.Family.fitting``; None of an unknown family, which is told when its base is loaded."""
    family = all_families().get(info.family)
    return None if family is None else family.fitting(info, work, settings, precision, under)


def least_bytes(info: BaseInfo) -> Mapping[str, LeastBytes]:
    """See ``protocol.Family.least_bytes``; of an unknown family nothing."""
    family = all_families().get(info.family)
    return {} if family is None else family.least_bytes(info)


def load_base(info: BaseInfo, settings: Settings) -> LoadedBase:
    """Read a base model into memory. Raises ModelError naming the file that is missing or damaged.

    The first one of a process also imports its libraries.
    """
    with nothing_collected():
        return _family_of(info).load(info, settings)


def vocabulary(info: BaseInfo) -> Vocabulary:
    """What a base model can read, without loading its weights. Raises ModelError naming the file at fault."""
    return _family_of(info).vocabulary(info)


# --- LoRA files -------------------------------------------------------------------------------------
def lora_facts(path: Path) -> LoraFacts:
    """What is in a LoRA file, of whichever family. Raises ModelError, saying what it is, when no family takes it."""
    problems: list[ModelError] = []
    for family in all_families().values():
        try:
            return family.lora_facts(path)
        except ModelError as error:
            problems.append(error)
    # What is wrong with a file of a family's own tells more than that the others do not know it.
    own = [problem for problem in problems if not isinstance(problem, ForeignLora)]
    raise (own or problems or [ModelError(f"{path} is of no known family: update the program.")])[0]


def check_lora(path: Path, info: BaseInfo) -> None:
    """Raise ModelError unless every layer of the LoRA fits this base, of which no weights are loaded."""
    _family_of(info).check_lora(path, info)


def lora_layouts(info: BaseInfo) -> tuple[LoraLayout, ...]:
    """In which layouts LoRAs made for this base can be written, the most useful one first."""
    return _family_of(info).lora_layouts


def lora_in_layout(
    layout: str, source: Path, info: BaseInfo, facts: Mapping[str, str], title: str, dtype: str | None = None
) -> bytes:
    """See ``protocol.Family.lora_in_layout``."""
    return _family_of(info).lora_in_layout(layout, source, info, facts, title, dtype)


# --- refiners ---------------------------------------------------------------------------------------
def all_refiners(settings: Settings) -> tuple[RefinerInfo, ...]:
    """Every refiner under ``settings.models_dir``, demo models first, then by title."""
    refiners = [info for family in all_families().values() for info in family.refiners(settings)]
    return tuple(sorted(refiners, key=lambda info: (not info.demo, info.title, info.id)))


def refiners_for(base: BaseInfo, settings: Settings) -> tuple[RefinerInfo, ...]:
    """The refiners that say they are for this base: those that name it first, then those for any of its family."""
    fitting = [
        info
        for info in all_refiners(settings)
        if info.family == base.family and (not info.bases or base.id in info.bases)
    ]
    return tuple(sorted(fitting, key=lambda info: base.id not in info.bases))


def find_refiner(refiner_id: str | None, info: BaseInfo, settings: Settings) -> RefinerInfo:
    """The refiner of that id, or the first usable one made for this base.

    Raises ModelError saying what is missing, damaged or not made for this base.
    """
    fitting = refiners_for(info, settings)
    if refiner_id is not None:
        others = [other for other in all_refiners(settings) if other.id == refiner_id and other not in fitting]
        fitting = tuple(refiner for refiner in fitting if refiner.id == refiner_id)
        if others and not fitting:
            made_for = ", ".join(others[0].bases) or f"the family “{others[0].family}”"
            raise ModelError(
                f"The refiner “{refiner_id}” is for {made_for}, not for “{info.id}”: choose another, or none."
            )
    first_problem: ModelError | None = None
    for refiner in fitting:
        try:
            refiner_facts(refiner, info)
        except ModelError as error:
            first_problem = first_problem or error
        else:
            return refiner
    if refiner_id is not None and first_problem is None:
        if any(base.id in (refiner_id, id_of(refiner_id)) for base in all_bases(settings)):
            raise ModelError(f"“{refiner_id}” is a base model, not a refiner: choose a refiner, or none.")
        first_problem = _misfit(refiner_id, settings)
    raise first_problem or refiner_not_found(refiner_id, info, settings)


def load_refiner(info: RefinerInfo, settings: Settings) -> LoadedRefiner:
    """Read a refiner into memory. Raises ModelError naming the file that is missing or damaged."""
    with nothing_collected():
        return _family_of(info).load_refiner(info, settings)


def refiner_facts(info: RefinerInfo, base: BaseInfo) -> RefinerFacts:
    """See ``protocol.Family.refiner_facts``."""
    return _family_of(info).refiner_facts(info, base)


def other_vae(info: BaseInfo, settings: Settings) -> OtherVae | None:
    """See ``protocol.Family.other_vae``."""
    return _family_of(info).other_vae(info, settings)


def split_steps(base: BaseInfo, steps: int, switch: float) -> tuple[int, int]:
    """(steps of the base, steps of the refiner) when it takes over after the share ``switch`` of the schedule."""
    return _family_of(base).split_steps(base, steps, switch)


def _family_of(info: BaseInfo | RefinerInfo) -> Family:
    family = all_families().get(info.family)
    if family is None:
        known = ", ".join(all_families())
        raise ModelError(f"“{info.title}” is of the family “{info.family}”, which is unknown; known are: {known}.")
    return family
