"""Going on where a training ended: one file with all that it needs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tools.demo_models.common import Average, Clock, say


def save_checkpoint(
    path: Path, model: nn.Module, average: Average, optimizer: torch.optim.Optimizer, clock: Clock, **more: Any
) -> None:
    """Everything needed to go on, written whole or not at all. ``more`` is kept beside it."""
    state = {
        "model": model.state_dict(),
        "mean": average.mean,
        "average_steps": average.steps,
        "optimizer": optimizer.state_dict(),
        "elapsed": clock.elapsed(),
        "steps": clock.steps,
        "samples": clock.samples,
        **more,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def resume(
    path: Path, model: nn.Module, average: Average, optimizer: torch.optim.Optimizer, device: torch.device, name: str
) -> dict[str, Any]:
    """Put a checkpoint back and return it: seconds ("elapsed"), "steps", "samples" and what was kept beside; zeros if
    there is none."""
    if not path.is_file():
        return {"elapsed": 0.0, "steps": 0, "samples": 0}
    state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    average.steps = state["average_steps"]
    for key, value in state["mean"].items():
        average.mean[key].copy_(value)
    say(f"[{name}] resumed at step {state['steps']}, {state['elapsed']:.0f} s")
    return state
