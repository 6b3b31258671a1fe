"""A training with compiled blocks: the losses of an ordinary one, a cancel that leaves no trace, when it pays."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo

from headshot_ui import compiling
from headshot_ui.dataset.types import Dataset
from headshot_ui.errors import Cancelled
from headshot_ui.families.protocol import CompilingFigures, LoadedBase
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store
from headshot_ui.training.compiled import (
    COMPILED,
    COMPILING,
    FAILED,
    FIRST,
    LEAST,
    ORDINARY,
    READING,
    Case,
    Choice,
    StepSeconds,
    Watch,
    judge,
    work_of,
)
from headshot_ui.training.loop import Trainer
from headshot_ui.training.runner import train
from tests.compiled_here import as_on_a_card
from tests.training.conftest import Listener, trained_to_the_end
from tests.training.test_capture import FakeGraphs, with_graphs
from tests.training.test_loop import trainer_for

SPEC = TrainSpec(person="anna", base="tiny-sdxl", steps=3, rank=2, checkpoint_every=10, sample_every=100, seed=3)


@pytest.fixture
def always(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The same store where blocks are compiled, though there is no card here."""
    with as_on_a_card(monkeypatch, store.settings.outputs_dir):
        yield Store(dataclasses.replace(store.settings, compile="always"))


def test_it_learns_the_same_and_a_cancel_while_compiling_leaves_no_trace(
    store: Store, always: Store, loaded: LoadedBase, dataset: Dataset
) -> None:
    plain = train(SPEC, store, loaded, dataset, Listener())
    cancelling = Listener(cancel_at=1, cancel_in=compiling.STAGE)
    with pytest.raises(Cancelled):
        train(SPEC, always, loaded, dataset, cancelling)
    assert cancelling.steps(compiling.STAGE) == [0, 1] and cancelling.steps("Training") == [0]
    begun = {folder.name for folder in plain.run_dir.parent.iterdir()} - {plain.run_dir.name}
    again = dataclasses.replace(SPEC, run=begun.pop())
    listener = Listener()
    compiled = train(again, always, loaded, dataset, listener)
    assert listener.steps(compiling.STAGE)
    assert compiled.losses == pytest.approx(plain.losses, abs=1e-5)


def test_a_cancelled_start_goes_on_bit_equal_without_compiling(
    store: Store, always: Store, loaded: LoadedBase, dataset: Dataset
) -> None:
    plain = train(SPEC, store, loaded, dataset, Listener())
    with pytest.raises(Cancelled):
        train(SPEC, always, loaded, dataset, Listener(cancel_at=1, cancel_in=compiling.STAGE))
    begun = {folder.name for folder in plain.run_dir.parent.iterdir()} - {plain.run_dir.name}
    done = train(dataclasses.replace(SPEC, run=begun.pop()), store, loaded, dataset, Listener())
    assert done.losses == plain.losses


# --- does it pay? ---------------------------------------------------------------------------------
FIGURES = CompilingFigures(saved=0.1, cold_seconds=60.0, warm_seconds=10.0, cores=16)


def pays(known: dict[str, float], steps: int, sizes: int = 1, kept: bool = True, cores: int = 16) -> bool | None:
    found = judge(Case(steps, known, FIGURES, sizes, kept, cores))
    return None if found is None else found.compiles


def test_seconds_are_those_of_one_kind_of_work(loaded: LoadedBase, dataset: Dataset, store: Store) -> None:
    """Whatever changes them: size and number of sizes of photos, rank, how the base fits the card."""
    one = trainer_for(loaded, dataset)
    works = [work_of(one, store.settings), work_of(one, store.settings, "8 bit")]
    works.append(work_of(trainer_for(loaded, dataset, rank=3), store.settings))
    one.photos = [*one.photos, dataclasses.replace(one.photos[0], latents=torch.zeros(4, 32, 16))]
    works.append(work_of(one, store.settings))
    assert len(set(works)) == len(works) and "in 2 shapes" in works[-1]
    assert work_of(trainer_for(loaded, dataset), store.settings) == works[0]


def test_nothing_is_said_before_a_step_was_timed() -> None:
    assert pays({}, 10**9) is None and pays({COMPILING: 1.0}, 10**9) is None


def test_by_what_was_measured_elsewhere_for_an_empty_folder_and_few_processors() -> None:
    assert pays({ORDINARY: 0.5}, 1201) and not pays({ORDINARY: 0.5}, 1199)
    assert not pays({ORDINARY: 0.5}, 1201, sizes=2) and pays({ORDINARY: 0.5}, 2401, sizes=2)
    assert not pays({ORDINARY: 0.5}, 1201, cores=8) and pays({ORDINARY: 0.5}, 2401, cores=8)
    assert not pays({ORDINARY: 0.5}, 1199, cores=64), "many processors are not trusted to be quicker"


def test_with_what_was_compiled_before_still_there() -> None:
    known = {ORDINARY: 0.5, COMPILING: 40.0}
    assert pays(known, 201) and not pays(known, 199) and not pays(known, 201, kept=False)
    assert pays(known, 801, kept=False) and not pays(known, 799, kept=False)
    assert pays({**known, READING: 5.0}, 101) and not pays({**known, READING: 5.0}, 99)
    assert not pays({ORDINARY: 0.5, READING: 5.0}, 101), "the folder is another work's"


def test_both_ways_timed_here_count_more_than_figures_from_elsewhere() -> None:
    known = {ORDINARY: 0.08, COMPILED: 0.06, COMPILING: 30.0}
    assert pays(known, 1501, kept=False) and not pays(known, 1499, kept=False)
    assert not pays({**known, COMPILED: 0.09}, 10**9)
    assert not pays({**known, FAILED: 1.0}, 10**9) and pays({**known, FAILED: 0.0}, 10**9)


def test_the_reason_is_one_sentence_with_its_seconds() -> None:
    found = judge(Case(2000, {ORDINARY: 0.5}, FIGURES, 1, False, 16))
    assert found is not None and found.why == (
        "Blocks are compiled: of the 2000 steps to come, 0.5 s each, that would save 100 s and take 60 s "
        "(by what was measured on another computer)."
    )


def test_notes_are_kept_and_a_damaged_file_is_forgotten(tmp_path: Path) -> None:
    notes = StepSeconds(tmp_path / "compiled.json")
    notes.note("work", {ORDINARY: 0.08})
    notes.note("work", {COMPILED: 0.06})
    assert notes.of("work") == {ORDINARY: 0.08, COMPILED: 0.06} and notes.of("other work") == {}
    notes.file.write_text("[1]")
    assert notes.of("work") == {}


def test_steps_while_memory_is_being_locked_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    settled = iter([True, False])
    monkeypatch.setattr("headshot_ui.training.compiled.pinned.settled", lambda: next(settled, True))
    watch = Watch(until_known=True)
    for number in range(FIRST + LEAST + 2):
        assert not watch.ends, number
        with watch.step():
            pass
    assert watch.ends and len(watch.seconds) == FIRST + LEAST


# --- in the middle of a training ------------------------------------------------------------------
SWITCH = 4  # steps before it is looked at again, in these tests
LONG = dataclasses.replace(SPEC, steps=2 * SWITCH + 3)


@pytest.fixture
def auto(always: Store) -> Store:
    return Store(dataclasses.replace(always.settings, compile="auto"))


@pytest.fixture
def took(monkeypatch: pytest.MonkeyPatch, loaded: LoadedBase) -> dict[str, float]:
    """Seconds that a step seems to take, by way; compiling seems to cost a hundredth of one, and is soon decided."""
    monkeypatch.setattr("headshot_ui.training.compiled.FIRST", SWITCH - 2)
    monkeypatch.setattr("headshot_ui.training.compiled.LEAST", 2)
    seconds = {ORDINARY: 1.0, COMPILED: 0.5}
    figures = CompilingFigures(saved=0.1, cold_seconds=0.01, warm_seconds=0.01, cores=1)
    monkeypatch.setattr(type(loaded), "compiling_figures", figures)
    begun = compiling.compiled
    now = [ORDINARY]

    @contextmanager
    def compiled(*given: Any, **named: Any) -> Iterator[Any]:
        with begun(*given, **named) as state:
            now[0] = COMPILED
            try:
                yield state
            finally:
                now[0] = ORDINARY

    @contextmanager
    def step(watch: Watch) -> Iterator[None]:
        yield
        watch.seconds.append(seconds[now[0]])

    monkeypatch.setattr(compiling, "compiled", compiled)
    monkeypatch.setattr(Watch, "step", step)
    return seconds


def notes_of(store: Store) -> dict[str, float]:
    (found,) = json.loads((store.settings.outputs_dir / "compiled.json").read_text("utf-8")).values()
    return found  # type: ignore[no-any-return]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.name == "headshot_ui.training.compiled"]


def test_it_begins_ordinary_and_goes_on_compiled_with_the_same_losses(
    store: Store, auto: Store, took: dict[str, float], loaded: LoadedBase, dataset: Dataset, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    elsewhere = Store(dataclasses.replace(store.settings, outputs_dir=tmp_path / "elsewhere", compile="never"))
    plain, listener = train(LONG, elsewhere, loaded, dataset, Listener()), Listener()
    with caplog.at_level(logging.INFO):
        done = train(LONG, auto, loaded, dataset, listener)
    assert done.losses[:SWITCH] == plain.losses[:SWITCH], "bit for bit before"
    assert done.losses[SWITCH:] != plain.losses[SWITCH:], "nothing was compiled"
    assert done.losses == pytest.approx(plain.losses, abs=1e-5)
    last = listener.heard.index(("Training", SWITCH, LONG.steps))
    stages = [stage for stage, _, _ in listener.heard]
    assert compiling.STAGE not in stages[:last] and stages[last + 1] == compiling.STAGE
    assert told(caplog) == [
        f"Blocks are compiled: of the {LONG.steps - SWITCH} steps to come, 1 s each, that would save 1 s and take 0 s "
        "(by what was measured on another computer)."
    ]
    assert notes_of(auto)[ORDINARY] == 1.0 and notes_of(auto)[COMPILED] == 0.5 and COMPILING in notes_of(auto)
    # The next one knows, and compiles from its first step.
    caplog.clear()
    with caplog.at_level(logging.INFO):
        again = train(dataclasses.replace(LONG, seed=4), auto, loaded, dataset, listener := Listener())
    assert len(told(caplog)) == 1 and "both ways were timed here" in told(caplog)[0] and again.steps == LONG.steps


def test_where_it_does_not_pay_nothing_changes(
    store: Store, auto: Store, took: dict[str, float], loaded: LoadedBase, dataset: Dataset, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    took[ORDINARY] = 1e-5
    elsewhere = Store(dataclasses.replace(store.settings, outputs_dir=tmp_path / "elsewhere", compile="never"))
    plain = train(LONG, elsewhere, loaded, dataset, Listener())
    with caplog.at_level(logging.INFO):
        done = train(LONG, auto, loaded, dataset, listener := Listener())
    assert done.losses == plain.losses and not listener.steps(compiling.STAGE)
    assert len(told(caplog)) == 1 and told(caplog)[0].startswith("Blocks are not compiled: of the")


def test_under_a_limit_of_main_memory_it_is_not_done(
    auto: Store, took: dict[str, float], loaded: LoadedBase, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_for(loaded, dataset)
    limited = dataclasses.replace(auto.settings, ram_limit_bytes=12 * 2**30)
    with caplog.at_level(logging.INFO):
        choice = Choice.of(trainer, limited)
    assert (choice.compiles, choice.asks) == (False, False) and "main memory is limited" in told(caplog)[0]
    assert Choice.of(trainer, auto.settings).asks


def test_compiled_steps_that_are_no_quicker_are_left_again(
    auto: Store, took: dict[str, float], loaded: LoadedBase, dataset: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    took[COMPILED] = 1.5
    with caplog.at_level(logging.INFO):
        done = train(LONG, auto, loaded, dataset, listener := Listener())
    assert done.steps == LONG.steps and listener.steps(compiling.STAGE)
    assert told(caplog)[1:] == [
        "Blocks are not compiled any more: a step takes 1.5 s with compiled ones and took 1 s before."
    ]
    assert notes_of(auto)[COMPILED] == 1.5


def test_what_is_recorded_is_recorded_anew_after_an_ordinary_step(
    auto: Store, took: dict[str, float], loaded: LoadedBase, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is compiled while a card records would be lost: the first compiled step is not recorded."""
    graphs, start, seen = FakeGraphs(), Trainer.start.__func__, []  # type: ignore[attr-defined]

    def recording(cls: Any, *given: Any) -> Trainer:
        return with_graphs(start(cls, *given), graphs)

    def listen(stage: str, step: int, *_: Any, **__: Any) -> None:
        if stage == "Training":
            seen.append(graphs.recorded)

    monkeypatch.setattr(Trainer, "start", classmethod(recording))
    train(LONG, auto, loaded, dataset, listen)
    assert seen[2 : SWITCH + 3] == [1] * (SWITCH - 1) + [1, 2]
    assert seen[-1] == 2


def test_a_run_is_gone_on_with_across_the_change(
    store: Store, auto: Store, took: dict[str, float], loaded: LoadedBase, dataset: Dataset, tmp_path: Path
) -> None:
    elsewhere = Store(dataclasses.replace(store.settings, outputs_dir=tmp_path / "elsewhere", compile="never"))
    plain, _ = trained_to_the_end(LONG, elsewhere, loaded, dataset)
    for number, stopped in enumerate((SWITCH - 1, SWITCH + 2)):
        torch._dynamo.reset()
        here = Store(dataclasses.replace(auto.settings, outputs_dir=tmp_path / f"stopped-{number}"))
        losses, _ = trained_to_the_end(LONG, here, loaded, dataset, cancel_at=stopped)
        assert losses == pytest.approx(plain, abs=1e-5), stopped
        assert len(losses) == LONG.steps


def test_a_cancel_while_it_compiles_in_the_middle_leaves_no_trace(
    store: Store, auto: Store, took: dict[str, float], loaded: LoadedBase, dataset: Dataset, tmp_path: Path
) -> None:
    elsewhere = Store(dataclasses.replace(store.settings, outputs_dir=tmp_path / "elsewhere", compile="never"))
    plain, _ = trained_to_the_end(LONG, elsewhere, loaded, dataset)
    with pytest.raises(Cancelled):
        train(LONG, auto, loaded, dataset, Listener(cancel_at=1, cancel_in=compiling.STAGE))
    run = next(auto.settings.outputs_dir.rglob("checkpoints")).parent.name
    never = Store(dataclasses.replace(auto.settings, compile="never"))
    done = train(dataclasses.replace(LONG, run=run), never, loaded, dataset, Listener())
    assert done.losses == plain


def test_memory_that_runs_out_with_compiled_blocks_brings_ordinary_ones_back(
    store: Store, auto: Store, took: dict[str, float], loaded: LoadedBase, dataset: Dataset, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    elsewhere = Store(dataclasses.replace(store.settings, outputs_dir=tmp_path / "elsewhere", compile="never"))
    plain, _ = trained_to_the_end(LONG, elsewhere, loaded, dataset)
    made, loss = [0], type(loaded).loss

    def short(inputs: Any) -> torch.Tensor:
        made[0] += 1
        found: torch.Tensor = loss(loaded, inputs)
        if made[0] == SWITCH + 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 136.00 MiB.")
        return found

    monkeypatch.setattr(loaded, "loss", short)
    with caplog.at_level(logging.INFO):
        done = train(LONG, auto, loaded, dataset, listener := Listener())
    assert done.losses == plain and not listener.notes, "with as much gradient checkpointing as before"
    assert f"ran out at step {SWITCH + 1} with compiled blocks" in told(caplog)[1]
    assert notes_of(auto)[FAILED] == 1.0


# --- the setting ----------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("asked", "pays", "expected"),
    [("never", True, False), ("auto", False, False), ("auto", True, True), ("always", False, True)],
)
def test_the_setting_decides(store: Store, always: Store, asked: Any, pays: bool, expected: bool) -> None:
    settings = dataclasses.replace(store.settings, compile=asked)
    assert compiling.wanted(settings, pays) is expected


def test_without_a_card_it_is_not_done(store: Store) -> None:
    assert not compiling.wanted(dataclasses.replace(store.settings, compile="always"))
