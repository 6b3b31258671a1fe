"""The plan of a stage with a base that is made to fit a card: what it takes then, and the sentence that says how.

Of other bases, and without a card, a plan stays as it is.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from headshot_ui.errors import HeadshotError
from headshot_ui.families import fitting
from headshot_ui.families.fits import DenoiserWork
from headshot_ui.memory import CONTEXT_BYTES
from headshot_ui.store import Store

#: Bytes a second that come from the disk and are made to fit, until it was measured: half of what a usual NVMe reads.
READ_PER_S = 10**9

if TYPE_CHECKING:
    from headshot_ui.amounts import Known, StagePlan
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.specs import GenerateSpec, TrainSpec
    from headshot_ui.training.plan import Plan


def training_made_to_fit(made: StagePlan, info: BaseInfo, full: Plan, spec: TrainSpec, known: Known) -> StagePlan:
    """Of a training as it will run, ``full``. Raises MemoryBudgetError with one sentence where nothing fits."""
    from headshot_ui.training.fitting import work_of

    return _made_to_fit(made, info, work_of(full), known, *_begun(spec, known))


def drawing_made_to_fit(
    made: StagePlan, info: BaseInfo, size: tuple[int, int], at_once: int, spec: GenerateSpec, known: Known
) -> StagePlan:
    """Of ``at_once`` pictures of a (width, height). Raises MemoryBudgetError with one sentence where nothing fits."""
    steps = spec.steps or info.defaults.sampling_steps
    work = DenoiserWork(None, *size, at_once, steps, info.defaults.rank if spec.lora else 0)
    return _made_to_fit(made, info, work, known)


def _begun(spec: TrainSpec, known: Known) -> tuple[str | None, int | None]:
    """Of a run that is gone on with, the precision that it keeps to and the bytes of the card that were enough."""
    from headshot_ui.runs import find_run
    from headshot_ui.training.fitting import PRECISION, enough_bytes

    if spec.run:
        with suppress(HeadshotError):  # told when it is gone on with
            facts = find_run(Store(known.settings), spec.person, spec.run).facts
            return str(facts.get(PRECISION, "")), enough_bytes(facts, known.settings)
    return None, None


def _made_to_fit(
    made: StagePlan,
    info: BaseInfo,
    work: DenoiserWork,
    known: Known,
    precision: str | None = None,
    under: int | None = None,
) -> StagePlan:
    found = fitting(info, work, known.settings, precision, under) if known.device == "cuda" else None
    if found is None:
        return made
    read = sum(turn.weight_bytes for turn in made.turns if turn.name in ("text encoders", "denoiser"))
    takes = {"text encoders": found.text_vram_bytes, "denoiser": found.vram_bytes}
    turns = tuple(
        replace(turn, weight_bytes=takes[turn.name] - CONTEXT_BYTES, working_bytes=0) if turn.name in takes
        else replace(turn, weight_bytes=turn.weight_bytes + found.staying_bytes)
        for turn in made.turns
    )  # fmt: skip
    return replace(
        made, size=f"{made.size}, {found.title}", turns=turns, notes=(found.sentence,),
        first_s=read / READ_PER_S, every_block=found.every_block,
    )  # fmt: skip
