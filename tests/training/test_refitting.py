"""When graphics memory runs out in a step: the training goes on in a smaller way and ends as if it never had."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headshot_ui.dataset.types import Dataset
from headshot_ui.errors import Cancelled
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.runs import load_run
from headshot_ui.specs import FULL, NONE, PARTIAL, TrainSpec
from headshot_ui.store import Store
from headshot_ui.training.loop import Trainer
from headshot_ui.training.runner import train
from tests.training.conftest import Listener, trained_to_the_end

SPEC = TrainSpec(person="anna", base="tiny-sdxl", steps=4, rank=2, checkpoint_every=2, sample_every=100, seed=3,
                 caption_dropout=0.5, gradient_checkpointing=NONE)  # fmt: skip
#: Of the 4 losses that are computed without an error; one more for each that is tried again.
FIRST, THIRD = 1, 3


@pytest.fixture
def runs_out(loaded: LoadedBase, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Has memory run out in these calls of the loss, counted from 1; returns what counts them."""

    def at(*calls: int) -> list[int]:
        made = [0]
        loss = type(loaded).loss

        def short(inputs: Any) -> torch.Tensor:
            made[0] += 1
            found: torch.Tensor = loss(loaded, inputs)
            if made[0] in calls:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 136.00 MiB.")
            return found

        monkeypatch.setattr(loaded, "loss", short)
        return made

    return at


@pytest.mark.parametrize(
    ("calls", "level", "said"),
    [
        ((FIRST,), PARTIAL, ["at step 1, so the training goes on from there with partial gradient checkpointing"]),
        ((THIRD,), PARTIAL, ["at step 3, so"]),
        (
            (THIRD, THIRD + 1),
            FULL,
            ["with partial", "at step 3, so the training goes on from there with full gradient"],
        ),
    ],
)
def test_it_ends_as_if_memory_had_been_enough(
    calls: tuple[int, ...],
    level: str,
    said: list[str],
    store: Store,
    loaded: LoadedBase,
    dataset: Dataset,
    runs_out: Callable[..., list[int]],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    elsewhere = Store(replace(store.settings, outputs_dir=tmp_path / "elsewhere"))
    wanted = trained_to_the_end(SPEC, elsewhere, loaded, dataset)
    made, listener = runs_out(*calls), Listener()
    done = train(SPEC, store, loaded, dataset, listener)
    assert made == [4 + len(calls)] and done.losses == wanted[0]
    found = trained_bytes(done.lora_path)
    assert found == wanted[1]
    run = load_run(done.run_dir)
    assert run.state == "done" and run.spec.gradient_checkpointing == level
    assert len(listener.notes) == len(said) and all(map(str.__contains__, listener.notes, said))
    assert "found too little graphics memory" in caplog.text and "OutOfMemoryError" in caplog.text
    assert listener.steps("Training") == [0, 1, 2, 3, 4]


def trained_bytes(path: Path) -> dict[str, bytes]:
    from safetensors.torch import load_file

    return {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def test_an_optimizer_that_broke_off_in_its_first_step_begins_anew(
    store: Store, loaded: LoadedBase, dataset: Dataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    elsewhere = Store(replace(store.settings, outputs_dir=tmp_path / "elsewhere"))
    wanted = trained_to_the_end(SPEC, elsewhere, loaded, dataset)
    zeros, left = torch.zeros_like, [3]

    def short(*args: Any, **more: Any) -> torch.Tensor:
        left[0] -= sys._getframe(1).f_code.co_filename.endswith("adam.py")
        if left[0] == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return zeros(*args, **more)

    monkeypatch.setattr(torch, "zeros_like", short)
    assert trained_to_the_end(SPEC, store, loaded, dataset) == wanted and left[0] < 0


def test_where_there_is_no_smaller_way_the_error_is_told(
    store: Store, loaded: LoadedBase, dataset: Dataset, runs_out: Callable[..., list[int]]
) -> None:
    runs_out(FIRST)
    with pytest.raises(torch.OutOfMemoryError, match="136"):
        train(replace(SPEC, gradient_checkpointing=FULL), store, loaded, dataset, Listener())
    assert load_run(next(store.settings.outputs_dir.rglob("run.json")).parent).state == "failed"


def test_other_errors_are_not_mistaken_for_it(
    store: Store, loaded: LoadedBase, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(inputs: Any) -> torch.Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    monkeypatch.setattr(loaded, "loss", wrong)
    with pytest.raises(RuntimeError, match="mat1"):
        train(SPEC, store, loaded, dataset, Listener())


def test_a_cancel_on_the_way_to_the_smaller_way_loses_nothing(
    store: Store,
    loaded: LoadedBase,
    dataset: Dataset,
    runs_out: Callable[..., list[int]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    elsewhere = Store(replace(store.settings, outputs_dir=tmp_path / "elsewhere"))
    wanted = trained_to_the_end(SPEC, elsewhere, loaded, dataset)
    runs_out(THIRD + 1)
    start = Trainer.start.__func__  # type: ignore[attr-defined]
    begun: list[int] = []

    def cancelled(cls: Any, *args: Any) -> Trainer:
        begun.append(1)
        if len(begun) == 2:  # the one in the smaller way
            raise Cancelled
        made: Trainer = start(cls, *args)
        return made

    monkeypatch.setattr(Trainer, "start", classmethod(cancelled))
    with pytest.raises(Cancelled):
        train(SPEC, store, loaded, dataset, Listener())
    folder = next(store.settings.outputs_dir.rglob("checkpoints")).parent
    assert load_run(folder).step == 3 and load_run(folder).state == "cancelled"
    done = train(replace(SPEC, run=folder.name), store, loaded, dataset, Listener())
    assert done.losses == wanted[0] and trained_bytes(done.lora_path) == wanted[1]
