"""What a training asks of a base model's memory, for the plan and for the training itself; imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from headshot_ui.families.fits import DenoiserWork, Fitting
from headshot_ui.memory import card_bytes
from headshot_ui.training.plan import Plan

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

#: Among the facts of a run: see ``families.protocol.Fitting``.
PRECISION = "precision"
#: Likewise, of a run in which graphics memory ran out: the way that it found then, and the card that was too small.
ENOUGH = "enough_memory"
#: Steps that a base is told of at once: what it computes for each may take megabytes of main memory.
LOOK_AHEAD = 256


def work_of(plan: Plan) -> DenoiserWork:
    """The denoiser's work in a training."""
    told_at_once = (min(LOOK_AHEAD, plan.steps) + 1) * plan.gradient_accumulation
    return DenoiserWork(
        learning=plan.gradient_checkpointing,
        width=plan.size_px,
        height=plan.size_px,
        batch=plan.batch_size * (2 if plan.prior_preservation else 1),
        steps=told_at_once,
        rank=plan.rank,
    )


def enough_fact(fitting: Fitting, settings: Settings) -> dict[str, Any]:
    """What is noted under ``ENOUGH``."""
    return {"title": fitting.title, "vram_bytes": fitting.vram_bytes, "card_bytes": card_bytes(settings)}


def enough_bytes(facts: Mapping[str, Any], settings: Settings) -> int | None:
    """What a run that goes on may plan with of the card, because more was too much for one of this size; else None."""
    noted = facts.get(ENOUGH)
    if not isinstance(noted, Mapping):
        return None
    then, now = noted.get("card_bytes"), card_bytes(settings)
    larger = then is not None and now is not None and now > then
    return None if larger else int(noted["vram_bytes"])
