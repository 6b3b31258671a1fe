"""What a training asks of a base model's memory, for the plan and for the training itself; imports no torch."""

from __future__ import annotations

from headshot_ui.families.fits import DenoiserWork
from headshot_ui.training.plan import Plan

#: Among the facts of a run: see ``families.protocol.Fitting``.
PRECISION = "precision"
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
