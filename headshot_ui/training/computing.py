"""What one optimizer step computes on the device. Nothing here looks at a value before the end of a step.

That is what lets a card record a step and repeat it (see ``capture``): a step that must not count, because its
gradients are no numbers, is made of no effect by the optimizer's kernel itself, and told afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from headshot_ui.families.protocol import LoadedBase

MAX_GRADIENT_NORM = 1.0  # as in the published recipe

LossInputs = Mapping[str, torch.Tensor]  # see LoadedBase.loss_inputs


@dataclass(frozen=True)
class Attempt:
    """What came of one try at a step."""

    loss: float  # mean over its micro-batches
    fits: bool  # loss and gradients were numbers, and the LoRA has changed


@dataclass(frozen=True)
class Computing:
    """The parts of a step: gradients of each micro-batch, then one change of the LoRA."""

    loaded: LoadedBase
    parameters: Sequence[torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # does nothing unless the base computes in float16
    micro_batches: int

    def gradients(self, inputs: LossInputs) -> torch.Tensor:
        """Add the gradients of one micro-batch, which is on the device, to those there; its loss, a scalar."""
        loss = self.loaded.loss(inputs)
        self.scaler.scale(loss / self.micro_batches).backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def update(self) -> torch.Tensor:
        """One step of the optimizer; the norm of the gradients, a scalar. Without effect if that is no number."""
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, MAX_GRADIENT_NORM)
        self.scaler.update()
        if steps_on_its_own(self.optimizer):
            self.optimizer.found_inf = (~torch.isfinite(norm)).float()  # type: ignore[attr-defined]
            self.optimizer.step()
        elif math.isfinite(norm.item()):
            self.optimizer.step()
        return norm


def steps_on_its_own(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer's own kernel leaves everything as it is where ``found_inf`` is 1."""
    return bool(optimizer.defaults.get("fused"))


def eager_attempt(computing: Computing, batches: Sequence[LossInputs], meanwhile: Callable[[], None]) -> Attempt:
    """One step, kernel after kernel, from inputs on the CPU; ``meanwhile`` is called before waiting for the result."""
    device = computing.parameters[0].device
    losses = [computing.gradients(on_device(batch, device)) for batch in batches]
    norm = computing.update()
    computing.optimizer.zero_grad()
    return read_attempt([*losses, norm], meanwhile)


def on_device(inputs: LossInputs, device: torch.device) -> dict[str, torch.Tensor]:
    """Copies on the device; the processor does not wait for those from page-locked memory."""
    return {name: tensor.to(device, non_blocking=True) for name, tensor in inputs.items()}


def read_attempt(results: Sequence[torch.Tensor], meanwhile: Callable[[], None]) -> Attempt:
    """Losses of the micro-batches and, last, the norm of the gradients, read in one go."""
    together = torch.stack(list(results))
    meanwhile()
    *losses, norm = together.tolist()
    loss = math.fsum(losses) / len(losses)
    return Attempt(loss, math.isfinite(loss) and math.isfinite(norm))
