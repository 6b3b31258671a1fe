"""A training whose step found too little graphics memory goes on in the next smaller way, from where it was.

How much a step takes is estimated before it was ever made. Where the estimate was too small for a card, more gradient
checkpointing is next, then whatever smaller way the base has; photos, noise, LoRA and optimizer stay as they were.
"""

from __future__ import annotations

import dataclasses

from headshot_ui.errors import MemoryBudgetError
from headshot_ui.families.fits import Fitting
from headshot_ui.less_memory import LEAST_LESS, make_room
from headshot_ui.specs import CHECKPOINTING
from headshot_ui.training.checkpoint import Checkpoint
from headshot_ui.training.fitting import work_of
from headshot_ui.training.loop import Trainer
from headshot_ui.training.plan import Plan


def in_less_memory(
    trainer: Trainer, state: Checkpoint, fitting: Fitting | None
) -> tuple[Trainer, Fitting | None] | None:
    """A new trainer in the next smaller way, at ``state``, and that way; None where there is none.

    ``fitting`` is the way that was too large. A run that has made steps keeps to its precision. The LoRA of the old
    trainer is off afterwards, and its ``capture`` gives ``state``. Raises what reading the base again raises.
    """
    plans = _with_more_checkpointing(trainer.plan)
    if fitting is not None:
        plans = plans or [trainer.plan]
    if not plans:
        return None
    loaded = trainer.loaded
    precision = None if fitting is None or state.step == 0 else fitting.precision
    under = None if fitting is None else fitting.vram_bytes - LEAST_LESS
    trainer.keep(state)
    trainer.let_go()
    loaded.use_loras(())
    make_room(trainer.parameters[0].device.type)
    for plan in plans:
        try:
            found = loaded.fit(work_of(plan), precision, under)
        except MemoryBudgetError:
            continue
        loaded.keep(frozenset({"denoiser"}))
        smaller = Trainer.start(loaded, plan, trainer.photos, trainer.class_items, trainer.empty)
        smaller.restore(state)
        smaller.keep(state)
        return smaller, found
    return None


def _with_more_checkpointing(plan: Plan) -> list[Plan]:
    """With each higher level; none where all blocks compute again already."""
    more = CHECKPOINTING[CHECKPOINTING.index(plan.gradient_checkpointing) + 1 :]
    return [dataclasses.replace(plan, gradient_checkpointing=level) for level in more]


def sentence(plan: Plan, step: int, fitting: Fitting | None) -> str:
    """What is told of it."""
    how = f"with {plan.gradient_checkpointing} gradient checkpointing"
    how += ", which takes longer and learns the same" if fitting is None else f": {fitting.sentence.rstrip('.')}"
    return f"The graphics memory ran out at step {step + 1}, so the training goes on from there {how}. Nothing is lost."
