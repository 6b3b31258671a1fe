"""Scaling the loss in float16: overflows are skipped, counted as no step, and resumed exactly."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from headshot_ui.dataset.types import Dataset
from headshot_ui.errors import HeadshotError
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.training.checkpoint import load_checkpoint, save_checkpoint
from headshot_ui.training.computing import Computing, LossInputs
from headshot_ui.training.loop import MOST_SKIPPED, Trainer
from tests.training.test_loop import trainer_for


def scaled(loaded: LoadedBase, dataset: Dataset, scale: float = 2.0**10) -> Trainer:
    trainer = trainer_for(loaded, dataset)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    return trainer


def overflow(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Have the gradients of the next attempts be infinite while the loss stays a number."""
    real, left = Computing.gradients, [times]

    def gradients(computing: Computing, inputs: LossInputs) -> torch.Tensor:
        loss = real(computing, inputs)
        if left[0]:
            left[0] -= 1
            computing.parameters[0].grad.fill_(float("inf"))
        return loss

    monkeypatch.setattr(Computing, "gradients", gradients)


def test_scaled_and_plain_training_agree(loaded: LoadedBase, dataset: Dataset) -> None:
    states = []
    for make in (trainer_for, scaled):
        trainer = make(loaded, dataset)
        trainer.run_step()
        states.append(trainer.loaded.trainable_lora_state())
    assert all(torch.allclose(states[0][name], states[1][name], atol=1e-6) for name in states[0])


def test_an_overflow_is_no_step_and_halves_the_scale(
    loaded: LoadedBase, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = scaled(loaded, dataset)
    overflow(trainer, monkeypatch, 2)
    trainer.run_step()
    assert (trainer.step, len(trainer.losses)) == (1, 1) and trainer.scaler.get_scale() == 2.0**8
    assert all(torch.isfinite(tensor).all() for tensor in trainer.loaded.trainable_lora_state().values())


def test_many_overflows_in_a_row_are_told(
    loaded: LoadedBase, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = scaled(loaded, dataset)
    overflow(trainer, monkeypatch, MOST_SKIPPED)
    with pytest.raises(HeadshotError, match="overflowed 20 times in a row.*bfloat16 or float32"):
        trainer.run_step()
    assert trainer.step == 0


def test_a_resumed_run_has_the_scale_it_had(
    loaded: LoadedBase, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trainer = scaled(loaded, dataset)
    overflow(trainer, monkeypatch, 1)
    trainer.run_step()
    saved = load_checkpoint(save_checkpoint(tmp_path, trainer.capture()))
    trainer.run_step()
    expected = trainer.loaded.trainable_lora_state()
    again = scaled(loaded, dataset, scale=4.0)
    again.restore(saved)
    assert again.scaler.get_scale() == 2.0**9
    again.run_step()
    assert all(torch.equal(again.loaded.trainable_lora_state()[name], expected[name]) for name in expected)


def test_a_checkpoint_of_before_has_no_scale_and_loads(loaded: LoadedBase, dataset: Dataset) -> None:
    trainer = scaled(loaded, dataset)
    trainer.restore(dataclasses.replace(trainer.capture(), scaler={}))
    assert trainer.scaler.get_scale() == 2.0**10
