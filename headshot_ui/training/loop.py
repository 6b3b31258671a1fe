"""The loop itself: one optimizer step after the other. It names no family, no job and no path.

A base that computes in float16 loses gradients that are too small for it. There the loss is scaled up before and the
gradients down after going backward (``torch.amp.GradScaler``). Where a gradient overflows, that attempt is skipped and
the scale halved; it is no step: learning rate, count of steps and losses are as if it had not been tried, only other
photos and noise come next.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from headshot_ui.errors import Cancelled, HeadshotError
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.training.cache import Embeds, Item, make_batch
from headshot_ui.training.capture import CapturedSteps, can_record, cuda_recorder
from headshot_ui.training.checkpoint import Checkpoint
from headshot_ui.training.computing import Attempt, Computing, LossInputs, eager_attempt
from headshot_ui.training.optimizers import fitting_state, make_optimizer, set_learning_rate
from headshot_ui.training.order import PhotoOrder
from headshot_ui.training.plan import Plan, learning_rate_at

SMOOTHED_OVER = 25
#: Overflowing attempts in a row after which training has come apart: the scale has then gone from 2^16 to below 1/16.
MOST_SKIPPED = 20

ClassItems = Mapping[tuple[int, ...], Sequence[Item]]


@dataclass(frozen=True)
class Position:
    """How far everything random has come: from here on the same photos and the same noise follow."""

    generator: torch.Tensor  # state of the run's generator
    waiting: tuple[int, ...]
    class_waiting: tuple[int, ...]


@dataclass
class Trainer:
    """A LoRA in training. Everything random comes from ``generator``, in a fixed order."""

    loaded: LoadedBase
    plan: Plan
    photos: Sequence[Item]
    class_items: ClassItems  # empty without prior preservation
    empty: Embeds
    generator: torch.Generator
    parameters: list[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    order: PhotoOrder
    class_order: PhotoOrder | None
    scaler: torch.amp.GradScaler  # does nothing unless the base computes in float16
    captured: CapturedSteps | None = None  # where steps can be recorded
    drawn: tuple[list[LossInputs], Position] | None = None  # inputs of the next attempt, and where they began
    prepared_until: int = 0  # the step before which the base is told of those to come again; see ``rehearsal``
    step: int = 0
    losses: list[float] = field(default_factory=list)
    kept: Checkpoint | None = None  # what ``capture`` gives until a step was made (see ``keep``)

    @classmethod
    def start(
        cls, loaded: LoadedBase, plan: Plan, photos: Sequence[Item], class_items: ClassItems, empty: Embeds
    ) -> Trainer:
        """Put a fresh LoRA on the model and get ready for the first step."""
        generator = torch.Generator().manual_seed(plan.seed)
        parameters = loaded.add_trainable_lora(plan.rank, plan.alpha, plan.seed)
        loaded.checkpoint_gradients(plan.gradient_checkpointing)
        optimizer = make_optimizer(plan.optimizer, parameters, plan.learning_rate)
        order = PhotoOrder([item.shape for item in photos], generator)
        count = min(len(items) for items in class_items.values()) if class_items else 0
        class_order = PhotoOrder([0] * count, generator) if count else None
        scaler = torch.amp.GradScaler(parameters[0].device.type, enabled=loaded.scales_loss)
        trainer = cls(
            loaded, plan, photos, class_items, empty, generator, parameters, optimizer, order, class_order, scaler
        )
        if can_record(trainer.computing):
            trainer.captured = CapturedSteps(trainer.computing, cuda_recorder)
        return trainer

    @property
    def computing(self) -> Computing:
        """What a step computes on the device."""
        return Computing(self.loaded, self.parameters, self.optimizer, self.scaler, self.plan.gradient_accumulation)

    def run_step(self) -> float:
        """One optimizer step over ``gradient_accumulation`` micro-batches; its mean loss.

        Raises HeadshotError, before anything changes, when the loss is no number or gradients keep overflowing.
        """
        set_learning_rate(self.optimizer, learning_rate_at(self.step, self.plan.learning_rate))
        for _ in range(MOST_SKIPPED):
            attempt = self._attempt()
            if attempt.fits:
                self.step += 1
                self.kept = None
                self.losses.append(attempt.loss)
                return attempt.loss
            if not self.scaler.is_enabled() or not math.isfinite(attempt.loss):  # a smaller scale cannot mend that
                raise HeadshotError(self._came_apart("the loss is no number any more"))
        raise HeadshotError(self._came_apart(f"the gradients overflowed {MOST_SKIPPED} times in a row"))

    def _attempt(self) -> Attempt:
        """One try at a step. While the card computes, what the next one takes is made ready.

        Memory may run out in it, and a cancel may come out of it while blocks are being compiled: then it is as if it
        had not been tried, and whoever tries again does so with the same photos and noise.
        """
        drawn = self.drawn or self._draw()
        batches, self.drawn = drawn[0], None

        def make_ready() -> None:
            self.drawn = self._draw()

        try:
            if self.captured is not None:
                return self.captured.attempt(batches, make_ready)
            return eager_attempt(self.computing, batches, make_ready)
        except (RuntimeError, Cancelled):
            self.drawn = drawn
            self.optimizer.zero_grad()
            raise

    def let_go(self) -> None:
        """The model is about to be moved or used for something else: free what only the next steps would need."""
        if self.captured is not None:
            self.captured.forget()

    def begin_anew(self) -> None:
        """Steps are computed another way from now on: what was recorded is no use any more, nor what was set up for
        it. LoRA, optimizer and everything random stay as they are."""
        if self.captured is not None:
            self.captured.forget()
            self.captured = CapturedSteps(self.captured.computing, self.captured.new_recorder)

    def _came_apart(self, why: str) -> str:
        else_ = ", or compute in bfloat16 or float32 (HEADSHOT_UI_DTYPE)" if self.scaler.is_enabled() else ""
        return (
            f"Training came apart at step {self.step + 1} ({why}): start a new run with a lower learning rate than "
            f"{self.plan.learning_rate:g}{else_}; the last checkpoint is kept."
        )

    # --- photos and noise --------------------------------------------------------------------------
    def _draw(self) -> tuple[list[LossInputs], Position]:
        before = self._position()
        return [self._inputs() for _ in range(self.plan.gradient_accumulation)], before

    def _position(self) -> Position:
        class_waiting = tuple(self.class_order.waiting) if self.class_order else ()
        return Position(self.generator.get_state(), tuple(self.order.waiting), class_waiting)

    def _inputs(self) -> LossInputs:
        """Of one micro-batch: photos in their order, captions dropped by chance, noise and timesteps."""
        plan = self.plan
        items = [self.photos[index] for index in self.order.next_batch(plan.batch_size)]
        dropped = (torch.rand(len(items), generator=self.generator) < plan.caption_dropout).tolist()
        prior = self._class_items(items)
        batch = make_batch([*items, *prior], [*dropped, *[False] * len(prior)], self.empty)
        inputs = self.loaded.loss_inputs(batch, self.generator, plan.min_snr_gamma, len(prior), plan.prior_weight)
        if self.parameters[0].device.type != "cuda":
            return inputs
        return {name: tensor.pin_memory() for name, tensor in inputs.items()}

    def _class_items(self, items: Sequence[Item]) -> list[Item]:
        """As many class pictures as photos, of the same shape."""
        if self.class_order is None:
            return []
        return [self.class_items[items[0].shape][index] for index in self.class_order.next_batch(len(items))]

    def metrics(self) -> dict[str, float]:
        """Figures of the last step for the person who watches."""
        recent = self.losses[-SMOOTHED_OVER:]
        rate = learning_rate_at(self.step - 1, self.plan.learning_rate)
        return {"loss": recent[-1], "loss_smoothed": math.fsum(recent) / len(recent), "learning_rate": rate}

    # --- to and from checkpoints -------------------------------------------------------------------
    def keep(self, state: Checkpoint) -> None:
        """The state it has. An optimizer is not whole when its first step breaks off, nor a LoRA that was taken off."""
        self.kept = state

    def capture(self) -> Checkpoint:
        """The whole state between two steps."""
        if self.kept is not None:
            return self.kept
        position = self._position() if self.drawn is None else self.drawn[1]
        return Checkpoint(
            step=self.step,
            losses=tuple(self.losses),
            lora=self.loaded.trainable_lora_state(),
            optimizer=self.optimizer.state_dict(),
            generator=position.generator,
            waiting=position.waiting,
            class_waiting=position.class_waiting,
            scaler=self.scaler.state_dict(),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a captured state, exactly."""
        self.drawn, self.prepared_until = None, 0
        self.loaded.set_trainable_lora_state(checkpoint.lora)
        self.optimizer.load_state_dict(fitting_state(self.optimizer, checkpoint.optimizer))
        if checkpoint.scaler:  # none where the run began in another number format, or before there was one
            self.scaler.load_state_dict(dict(checkpoint.scaler))
        self.generator.set_state(checkpoint.generator)
        self.order.waiting = list(checkpoint.waiting)
        if self.class_order:
            self.class_order.waiting = list(checkpoint.class_waiting)
        self.step, self.losses = checkpoint.step, list(checkpoint.losses)
