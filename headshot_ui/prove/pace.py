"""How long a proof still takes, judged by what its checks have cost so far."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from headshot_ui.prove.findings import Check

if TYPE_CHECKING:
    from headshot_ui.prove.plan import Amounts

#: What a check costs beside computing: reading weights, moving them, writing files.
BESIDE = 10.0
#: Passes of the denoiser that one training step costs for each photo: forward, and backward twice as much.
TRAINING = 3.0
_PICTURES = {"pictures": 1.0, "lora": 1.0, "lora-off": 1.0, "strength-0": 1.0, "refiner-ensemble": 1.0,
             "refiner-img2img": 1.5}  # fmt: skip


def cost(check_id: str, amounts: Amounts, batch_size: int) -> float:
    """In passes of the denoiser, roughly."""
    fixed = amounts.fixed_items * amounts.fixed_draws
    drawing = 2 * amounts.pictures * amounts.sampling_steps  # twice for guidance
    passes = _PICTURES.get(check_id, 0.0) * drawing
    if check_id == "training":
        passes = TRAINING * amounts.train_steps * batch_size + fixed
    elif check_id == "loss":
        passes = fixed
    return BESIDE + passes


def seconds_left(
    checks: Sequence[Check], done: int, elapsed_s: float, amounts: Amounts, batch_size: int
) -> float | None:
    """For the checks from number ``done`` (0-based) on; None before any has been done."""
    costs = [cost(check.id, amounts, batch_size) for check in checks]
    spent = sum(costs[:done])
    return elapsed_s * sum(costs[done:]) / spent if spent else None
