"""Recorded steps are the steps that would have been computed one kernel after the other."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from headshot_ui import families
from headshot_ui.dataset.types import Dataset
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.settings import Settings
from headshot_ui.specs import CHECKPOINTING
from headshot_ui.training.capture import CapturedSteps, can_record
from headshot_ui.training.computing import Computing
from headshot_ui.training.loop import Trainer
from tests.training.conftest import make_dataset
from tests.training.test_loop import trainer_for


@dataclass
class FakeGraphs:
    """Records like a card: while recording nothing happens, and a repeat does what was recorded, in the same places."""

    parameters: Sequence[torch.nn.Parameter] = ()
    fail_at: int | None = None  # of the recordings made
    recorded: int = 0
    repeated: int = 0
    recorders: int = 0
    recording: list[str] = field(default_factory=list)

    def new_recorder(self) -> Callable[..., Any]:
        self.recorders += 1
        return self.record

    def record(self, function: Callable[[], list[torch.Tensor]]) -> tuple[Any, list[torch.Tensor]]:
        if self.recorded == self.fail_at:
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.recorded += 1
        results: list[torch.Tensor] = []
        return FakeGraph(self, function, results, [parameter.grad for parameter in self.parameters]), results


@dataclass
class FakeGraph:
    graphs: FakeGraphs
    function: Callable[[], list[torch.Tensor]]
    results: list[torch.Tensor]
    gradients: Sequence[torch.Tensor | None]

    def replay(self) -> None:
        self.graphs.repeated += 1
        for parameter, gradient in zip(self.graphs.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        self.results[:] = self.function()
        for parameter in self.graphs.parameters:
            parameter.grad = None


def with_graphs(trainer: Trainer, graphs: FakeGraphs) -> Trainer:
    graphs.parameters = trainer.parameters
    trainer.captured = CapturedSteps(trainer.computing, graphs.new_recorder)
    return trainer


@pytest.fixture
def two_shapes(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "two", ((64, 64), (64, 64), (64, 48), (64, 48)))


def steps(trainer: Trainer, count: int) -> tuple[list[float], dict[str, torch.Tensor]]:
    return [trainer.run_step() for _ in range(count)], trainer.loaded.trainable_lora_state()


@pytest.mark.parametrize("accumulation", [1, 3])
def test_recorded_steps_are_those_of_the_ordinary_way(
    accumulation: int, loaded: LoadedBase, two_shapes: Dataset
) -> None:
    changes = {"batch_size": 1, "gradient_accumulation": accumulation}
    losses, lora = steps(trainer_for(loaded, two_shapes, **changes), 8)
    graphs = FakeGraphs()
    again, recorded = steps(with_graphs(trainer_for(loaded, two_shapes, **changes), graphs), 8)
    assert again == losses and all(torch.equal(recorded[name], lora[name]) for name in lora)
    assert graphs.recorded == (2 if accumulation == 1 else 3), "one per shape, and one for the change of the LoRA"
    assert graphs.repeated >= 4


@pytest.mark.parametrize("accumulation", [1, 3])
def test_an_optimizer_that_cannot_be_recorded_steps_on_its_own(
    accumulation: int, loaded: LoadedBase, two_shapes: Dataset
) -> None:
    changes = {"batch_size": 1, "gradient_accumulation": accumulation}

    def plain(trainer: Trainer) -> Trainer:
        trainer.optimizer = torch.optim.AdamW(trainer.parameters, lr=0.0)
        return trainer

    losses, lora = steps(plain(trainer_for(loaded, two_shapes, **changes)), 8)
    graphs = FakeGraphs()
    again, recorded = steps(with_graphs(plain(trainer_for(loaded, two_shapes, **changes)), graphs), 8)
    assert again == losses and all(torch.equal(recorded[name], lora[name]) for name in lora)
    assert graphs.recorded == 2, "one per shape"


def test_the_first_step_of_a_shape_is_not_recorded(loaded: LoadedBase, dataset: Dataset) -> None:
    graphs = FakeGraphs()
    trainer = with_graphs(trainer_for(loaded, dataset), graphs)
    seen = []
    for _ in range(3):
        trainer.run_step()
        seen.append((graphs.recorded, graphs.repeated))
    assert seen == [(0, 0), (1, 1), (1, 2)]


def test_while_memory_is_being_locked_nothing_is_recorded(
    loaded: LoadedBase, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled = iter((False, True))
    monkeypatch.setattr("headshot_ui.training.capture.pinned.settled", lambda: next(settled, True))
    graphs = FakeGraphs()
    trainer = with_graphs(trainer_for(loaded, dataset), graphs)
    seen = []
    for _ in range(4):
        trainer.run_step()
        seen.append((graphs.recorded, graphs.repeated))
    assert seen == [(0, 0), (0, 0), (1, 1), (1, 2)], "the first step of a shape does not ask"


def test_what_was_recorded_is_forgotten_before_the_model_moves(loaded: LoadedBase, dataset: Dataset) -> None:
    graphs = FakeGraphs()
    trainer = with_graphs(trainer_for(loaded, dataset), graphs)
    steps(trainer, 3)
    trainer.let_go()
    assert trainer.captured is not None and not trainer.captured.recordings
    steps(trainer, 1)
    assert (graphs.recorded, graphs.recorders) == (2, 2), "recorded anew, in memory of its own"


@pytest.mark.parametrize("fail_at", [0, 1])
def test_where_recording_fails_training_goes_on(
    fail_at: int, loaded: LoadedBase, two_shapes: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    losses, lora = steps(trainer_for(loaded, two_shapes, batch_size=1), 8)
    graphs = FakeGraphs(fail_at=fail_at)
    trainer = with_graphs(trainer_for(loaded, two_shapes, batch_size=1), graphs)
    with caplog.at_level(logging.WARNING, "headshot_ui.training.capture"):
        again, eager = steps(trainer, 8)
    assert again == losses and all(torch.equal(eager[name], lora[name]) for name in lora)
    assert graphs.recorded == fail_at and "cannot be recorded: CUDA out of memory" in caplog.text


def test_what_the_next_step_takes_is_ready_before_the_result_is_waited_for(
    loaded: LoadedBase, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    events = []
    real = Computing.update

    def update(computing: Computing) -> torch.Tensor:
        events.append("computed")
        return real(computing)

    trainer = trainer_for(loaded, dataset)
    draw = trainer._draw

    def drawn() -> Any:
        events.append("drawn")
        return draw()

    monkeypatch.setattr(Computing, "update", update)
    monkeypatch.setattr(trainer, "_draw", drawn)
    steps(trainer, 2)
    assert events == ["drawn", "computed", "drawn", "computed", "drawn"]


def test_a_checkpoint_between_does_not_know_what_was_drawn_ahead(loaded: LoadedBase, two_shapes: Dataset) -> None:
    trainer = trainer_for(loaded, two_shapes, batch_size=1)
    steps(trainer, 3)
    saved = copy.deepcopy(trainer.capture())  # as on disk: the optimizer goes on with its own
    expected, _ = steps(trainer, 3)
    again = trainer_for(loaded, two_shapes, batch_size=1)
    again.restore(saved)
    assert steps(again, 3)[0] == expected


def test_steps_on_the_processor_are_not_recorded(loaded: LoadedBase, dataset: Dataset) -> None:
    trainer = trainer_for(loaded, dataset)
    assert not can_record(trainer.computing) and trainer.captured is None


# --- on a card ----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def on_card(models_dir: Path) -> LoadedBase:
    settings = Settings.from_environment(models_dir=models_dir, device="cuda", dtype="float32")
    return families.load_base(families.find_base("tiny-sdxl", settings), settings)


def eager(trainer: Trainer) -> Trainer:
    trainer.captured = None
    return trainer


@pytest.mark.gpu
@pytest.mark.parametrize("accumulation", [1, 3])
@pytest.mark.parametrize("checkpointing", CHECKPOINTING)
def test_on_a_card_recorded_and_ordinary_steps_agree(
    accumulation: int, checkpointing: str, on_card: LoadedBase, two_shapes: Dataset
) -> None:
    changes = {"batch_size": 1, "gradient_accumulation": accumulation, "gradient_checkpointing": checkpointing}
    losses, lora = steps(eager(trainer_for(on_card, two_shapes, **changes)), 12)
    trainer = trainer_for(on_card, two_shapes, **changes)
    again, recorded = steps(trainer, 12)
    assert trainer.captured is not None and len(trainer.captured.recordings) == 2
    assert again == pytest.approx(losses, rel=1e-3)  # sums on a card come in another order each time
    first, second = (torch.cat([state[name].flatten() for name in lora]) for state in (lora, recorded))
    assert (first - second).norm() < 0.01 * first.norm()


@pytest.mark.gpu
def test_on_a_card_weights_may_move_between(on_card: LoadedBase, two_shapes: Dataset) -> None:
    def moving(trainer: Trainer) -> Sequence[float]:
        losses = steps(trainer, 6)[0]
        trainer.let_go()
        on_card.keep(frozenset({"vae"}))
        taken = torch.full((2**26,), float("nan"), device="cuda")  # over the places that were free meanwhile
        on_card.keep(frozenset({"denoiser"}))
        del taken
        return losses + steps(trainer, 6)[0]

    expected = moving(eager(trainer_for(on_card, two_shapes, batch_size=1)))
    assert moving(trainer_for(on_card, two_shapes, batch_size=1)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.gpu
def test_on_a_card_an_overflow_in_float16_is_no_step(models_dir: Path, two_shapes: Dataset) -> None:
    settings = Settings.from_environment(models_dir=models_dir, device="cuda", dtype="float16")
    base = families.load_base(families.find_base("tiny-sdxl", settings), settings)
    trainer = trainer_for(base, two_shapes, batch_size=1)
    steps(trainer, 6)
    state = base.trainable_lora_state()
    trainer.scaler._scale.fill_(2.0**60)  # in place, where the recordings read it
    trainer.drawn = None
    attempt = trainer._attempt()
    assert not attempt.fits
    assert all(torch.equal(base.trainable_lora_state()[name], state[name]) for name in state)
    assert trainer.scaler.get_scale() == 2.0**59


@pytest.mark.gpu
def test_on_a_card_the_learning_rate_of_each_step_counts(on_card: LoadedBase, two_shapes: Dataset) -> None:
    trainer = trainer_for(on_card, two_shapes, batch_size=1)
    steps(trainer, 11)
    state = on_card.trainable_lora_state()
    trainer.plan = trainer.plan.__class__(**{**vars(trainer.plan), "learning_rate": 0.0})
    steps(trainer, 2)
    assert all(torch.equal(on_card.trainable_lora_state()[name], state[name]) for name in state)
