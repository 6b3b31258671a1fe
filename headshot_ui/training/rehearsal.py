"""What the steps to come will be given, looked at beforehand: some bases can prepare for timesteps they know."""

from __future__ import annotations

from collections.abc import Generator

from headshot_ui.training.computing import LossInputs
from headshot_ui.training.fitting import LOOK_AHEAD
from headshot_ui.training.loop import Trainer


def look_ahead(trainer: Trainer) -> None:
    """Let the base prepare for the next steps, unless it is prepared for the next one.

    One more is told of than that: while a step computes, the inputs of the next one are made.
    """
    if trainer.step < trainer.prepared_until:
        return
    steps = min(LOOK_AHEAD, trainer.plan.steps - trainer.step)
    coming = upcoming(trainer, steps + 1)
    try:
        trainer.loaded.prepare_for(coming)
    finally:
        coming.close()
    trainer.prepared_until = trainer.step + steps


def upcoming(trainer: Trainer, steps: int) -> Generator[LossInputs, None, None]:
    """The inputs of every micro-batch of the next ``steps`` steps, one after the other, exactly as they will come.

    When the iterator ends or is closed, photos and everything random are where they were. Attempts skipped because
    gradients overflowed, which is for float16 only, take inputs that are not among these.
    """
    position = trainer._position()
    try:
        left = steps
        if trainer.drawn is not None and left:
            yield from trainer.drawn[0]
            left -= 1
        for _ in range(left):
            yield from trainer._draw()[0]
    finally:
        trainer.generator.set_state(position.generator)
        trainer.order.waiting = list(position.waiting)
        if trainer.class_order is not None:
            trainer.class_order.waiting = list(position.class_waiting)
