"""Whether a request is refined, by which refiner and how; decided and checked before anything is loaded."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui import families
from headshot_ui.errors import ModelError, SpecError
from headshot_ui.families.protocol import BaseInfo, OtherVae, RefinerFacts, RefinerInfo
from headshot_ui.store import told_plainly

if TYPE_CHECKING:
    from headshot_ui.settings import Settings
    from headshot_ui.specs import GenerateSpec

OFF, ENSEMBLE, IMG2IMG = "off", "ensemble", "img2img"
#: What may be set for ``refiner_switch`` and ``refiner_strength``, in hundredths; the limits are GenerateSpec's.
_SWITCHES = range(5, 96)
_STRENGTHS = range(1, 101)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refining:
    """How the pictures of one request are refined."""

    way: str  # ENSEMBLE or IMG2IMG
    info: RefinerInfo
    facts: RefinerFacts
    switch: float
    strength: float
    base_steps: int  # per picture; at least 1
    refiner_steps: int  # per picture; at least 1


@dataclass(frozen=True)
class RefinerMark:
    """What is written into pictures about their refiner."""

    id: str
    sha256: str  # of its weights
    way: str


def choose_refining(spec: GenerateSpec, base: BaseInfo, settings: Settings) -> Refining | None:
    """How ``spec`` is refined, with the base's defaults where it says nothing; None: not at all.

    What was asked for and cannot be done raises ModelError (no refiner, a damaged one, one for another base) or
    SpecError (no step would be left for it). What is only the base's default is left out then, with a line in the log.
    """
    way, asked = wanted_way(spec, base)
    if way == OFF:
        return None
    try:
        return _refining(spec, base, settings, way)
    except (ModelError, SpecError) as error:
        if asked:
            raise
        _log.warning("Pictures of “%s” are not refined: %s", base.title, error)
        return None


def wanted_way(spec: GenerateSpec, base: BaseInfo) -> tuple[str, bool]:
    """(way, whether the request itself asks for refining rather than the base's defaults).

    Naming a refiner or a setting of one way is asking for it: it would otherwise be without effect.
    """
    if spec.refine is not None:
        return spec.refine, True
    if (spec.refiner_switch is None) != (spec.refiner_strength is None):
        return (ENSEMBLE if spec.refiner_strength is None else IMG2IMG), True
    default = base.defaults.refine
    if spec.refiner is None:
        return default, False
    return (ENSEMBLE if default == OFF else default), True


def _refining(spec: GenerateSpec, base: BaseInfo, settings: Settings, way: str) -> Refining:
    defaults = base.defaults
    steps = defaults.sampling_steps if spec.steps is None else spec.steps
    switch = defaults.refiner_switch if spec.refiner_switch is None else spec.refiner_switch
    strength = defaults.refiner_strength if spec.refiner_strength is None else spec.refiner_strength
    info = families.find_refiner(spec.refiner, base, settings)
    facts = families.refiner_facts(info, base)
    if way == ENSEMBLE:
        if not facts.same_schedule:
            raise ModelError(
                f"The refiner “{info.id}” counts its steps differently from “{base.title}” and cannot take over "
                f"half-way: choose “{IMG2IMG}”, or another refiner."
            )
        before, after = _ensemble_steps(base, steps, switch)
    else:
        before, after = steps, _img2img_steps(steps, strength)
    return Refining(way, info, facts, switch, strength, before, after)


def _ensemble_steps(base: BaseInfo, steps: int, switch: float) -> tuple[int, int]:
    split = families.split_steps(base, steps, switch)
    if min(split) > 0:
        return split
    who = "the base model" if split[0] == 0 else "the refiner"
    usable = [hundredths / 100 for hundredths in _SWITCHES if min(families.split_steps(base, steps, hundredths / 100))]
    advice = f"choose {min(usable, key=lambda other: abs(other - switch)):g} or " if usable else ""
    raise SpecError(
        "refiner_switch",
        f"With {_steps(steps)} and a switch at {switch:g}, {who} has nothing to draw: {advice}use more steps.",
    )


def _img2img_steps(steps: int, strength: float) -> int:
    """diffusers' own rounding, int(steps * strength)."""
    if int(steps * strength) >= 1:
        return min(int(steps * strength), steps)
    smallest = next(h / 100 for h in _STRENGTHS if int(steps * (h / 100)) >= 1)
    raise SpecError(
        "refiner_strength",
        f"With {_steps(steps)}, a strength of {strength:g} leaves the refiner nothing to draw: "
        f"choose at least {smallest:g}, or use more steps.",
    )


def _steps(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def mark_of(refining: Refining) -> RefinerMark:
    """What pictures say of their refiner. Reads its weights whole. Raises StoreError."""
    return RefinerMark(refining.info.id, weights_sha256(refining.facts), refining.way)


def weights_sha256(facts: RefinerFacts | OtherVae) -> str:
    """SHA-256 over the weight files in their order; they are read again only when they changed. Raises StoreError."""
    files = []
    for path in facts.weights:
        with told_plainly(path, "read"):
            state = path.stat()
        files.append((path, state.st_size, state.st_mtime_ns))
    return _sha256(tuple(files))


@lru_cache(maxsize=8)
def _sha256(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        with told_plainly(path, "read"), path.open("rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    return digest.hexdigest()
