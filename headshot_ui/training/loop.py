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

from headshot_ui.errors import HeadshotError
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.training.cache import Embeds, Item, make_batch
from headshot_ui.training.checkpoint import Checkpoint
from headshot_ui.training.optimizers import fitting_state, make_optimizer
from headshot_ui.training.order import PhotoOrder
from headshot_ui.training.plan import Plan, learning_rate_at

MAX_GRADIENT_NORM = 1.0  # as in the published recipe
SMOOTHED_OVER = 25
#: Overflowing attempts in a row after which training has come apart: the scale has then gone from 2^16 to below 1/16.
MOST_SKIPPED = 20

ClassItems = Mapping[tuple[int, ...], Sequence[Item]]


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
    step: int = 0
    losses: list[float] = field(default_factory=list)

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
        return cls(
            loaded, plan, photos, class_items, empty, generator, parameters, optimizer, order, class_order, scaler
        )

    def run_step(self) -> float:
        """One optimizer step over ``gradient_accumulation`` micro-batches; its mean loss.

        Raises HeadshotError, before anything changes, when the loss is no number or gradients keep overflowing.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.step, self.plan.learning_rate)
        for _ in range(MOST_SKIPPED):
            loss, fits = self._gradients()
            if fits:
                self.optimizer.step()
                self.optimizer.zero_grad()
                self.step += 1
                self.losses.append(loss)
                return loss
            self.optimizer.zero_grad()
            if not self.scaler.is_enabled() or not math.isfinite(loss):  # a smaller scale cannot mend the loss itself
                raise HeadshotError(self._came_apart("the loss is no number any more"))
        raise HeadshotError(self._came_apart(f"the gradients overflowed {MOST_SKIPPED} times in a row"))

    def _gradients(self) -> tuple[float, bool]:
        """The mean loss of an attempt, and whether its gradients, clipped and no longer scaled, are numbers."""
        count = self.plan.gradient_accumulation
        losses = [self._accumulate(1 / count) for _ in range(count)]
        loss = math.fsum(tensor.item() for tensor in losses) / count
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        self.scaler.update()
        return loss, math.isfinite(loss) and math.isfinite(norm.item())

    def _came_apart(self, why: str) -> str:
        else_ = ", or compute in bfloat16 or float32 (HEADSHOT_UI_DTYPE)" if self.scaler.is_enabled() else ""
        return (
            f"Training came apart at step {self.step + 1} ({why}): start a new run with a lower learning rate than "
            f"{self.plan.learning_rate:g}{else_}; the last checkpoint is kept."
        )

    def _accumulate(self, share: float) -> torch.Tensor:
        plan = self.plan
        items = [self.photos[index] for index in self.order.next_batch(plan.batch_size)]
        dropped = (torch.rand(len(items), generator=self.generator) < plan.caption_dropout).tolist()
        prior = self._class_items(items)
        batch = make_batch([*items, *prior], [*dropped, *[False] * len(prior)], self.empty, self.parameters[0].device)
        loss = self.loaded.training_loss(batch, self.generator, plan.min_snr_gamma, len(prior), plan.prior_weight)
        self.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

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
    def capture(self) -> Checkpoint:
        """The whole state between two steps."""
        return Checkpoint(
            step=self.step,
            losses=tuple(self.losses),
            lora=self.loaded.trainable_lora_state(),
            optimizer=self.optimizer.state_dict(),
            generator=self.generator.get_state(),
            waiting=tuple(self.order.waiting),
            class_waiting=tuple(self.class_order.waiting) if self.class_order else (),
            scaler=self.scaler.state_dict(),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a captured state, exactly."""
        self.loaded.set_trainable_lora_state(checkpoint.lora)
        self.optimizer.load_state_dict(fitting_state(self.optimizer, checkpoint.optimizer))
        if checkpoint.scaler:  # none where the run began in another number format, or before there was one
            self.scaler.load_state_dict(dict(checkpoint.scaler))
        self.generator.set_state(checkpoint.generator)
        self.order.waiting = list(checkpoint.waiting)
        if self.class_order:
            self.class_order.waiting = list(checkpoint.class_waiting)
        self.step, self.losses = checkpoint.step, list(checkpoint.losses)
