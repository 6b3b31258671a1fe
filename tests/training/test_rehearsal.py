"""What is looked at beforehand is what comes, and looking changes nothing."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from headshot_ui.dataset.types import Dataset
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.training.computing import LossInputs
from headshot_ui.training.loop import Trainer
from headshot_ui.training.rehearsal import upcoming
from tests.training.test_loop import trainer_for


def came(trainer: Trainer, monkeypatch: pytest.MonkeyPatch, steps: int) -> list[LossInputs]:
    """What the loss is given in so many steps."""
    seen: list[LossInputs] = []
    loss = trainer.loaded.loss

    def watched(inputs: LossInputs) -> torch.Tensor:
        seen.append(dict(inputs))
        return loss(inputs)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.loaded, "loss", watched)
        for _ in range(steps):
            trainer.run_step()
    return seen


def same(mine: Sequence[LossInputs], theirs: Sequence[LossInputs]) -> bool:
    return len(mine) == len(theirs) and all(
        a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
        for a, b in zip(mine, theirs, strict=True)
    )


def test_the_steps_to_come(loaded: LoadedBase, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_for(loaded, dataset, batch_size=2, gradient_accumulation=2, caption_dropout=0.5)
    before = list(upcoming(trainer, 3))
    assert len(before) == 6 and not same(before[:2], before[2:4])
    assert same(before, list(upcoming(trainer, 3)))
    next(iter(upcoming(trainer, 3)))  # left in the middle
    assert same(came(trainer, monkeypatch, 2), before[:4])
    assert trainer.drawn is not None  # the third step's are ready already
    assert same(list(upcoming(trainer, 1)), before[4:])
    assert same(list(upcoming(trainer, 2))[:2], before[4:])
    assert same(came(trainer, monkeypatch, 1), before[4:])
    assert list(upcoming(trainer, 0)) == []
