"""A whole training in every way of fitting: the same LoRA and samples, stopped or not, and a run keeps to its way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from headshot_ui import families
from headshot_ui.errors import Cancelled, MemoryBudgetError
from headshot_ui.families.fits import DenoiserWork
from headshot_ui.families.flux_parts.choosing import Chosen, OfLoras
from headshot_ui.families.flux_parts.fitting import Fit
from headshot_ui.families.flux_parts.loaded import LoadedFlux
from headshot_ui.families.protocol import BaseInfo, DenoiseRequest, DenoiseStep
from headshot_ui.generation.runner import generate
from headshot_ui.less_memory import LEAST_LESS
from headshot_ui.runs import load_run
from headshot_ui.settings import Settings
from headshot_ui.specs import FULL, NONE, PARTIAL, GenerateSpec, TrainSpec
from headshot_ui.store import Store
from headshot_ui.training import fitting, rehearsal
from headshot_ui.training.runner import train
from tests.generation.fakes import Reports
from tests.training.conftest import Listener, make_dataset

TRAIN = TrainSpec("anna", "tiny-flux", steps=4, rank=2, batch_size=1, checkpoint_every=2, sample_every=2, seed=3,
                  caption_dropout=0.5, learning_rate=0.02, gradient_checkpointing=FULL)  # fmt: skip
DROPPED = Fit(False, True, 0, 3, 0, 0, False)
WAYS = {
    "ordinary": None,
    "dropped": DROPPED,
    "streamed": replace(DROPPED, streamed=2),
    "8 bit": replace(DROPPED, eight_bit=True),
    "8 bit streamed": replace(DROPPED, eight_bit=True, streamed=3),
}


@dataclass
class Machine:
    """Finds this way, or a smaller one for a smaller card, and remembers what it was asked for."""

    way: Fit | None = None
    smaller: Fit | None = None
    refuses: str | None = None  # a level of checkpointing with which nothing fits
    asked: tuple[DenoiserWork, str | None, OfLoras] | None = None
    under: int | None = None  # what was asked for last
    asked_again: bool = False  # for a run that found its way before, of which nothing more is to be saved

    def __call__(
        self,
        info: BaseInfo,
        work: DenoiserWork,
        settings: Settings,
        precision: str | None,
        loras: OfLoras,
        under: int | None,
    ) -> Chosen | None:
        self.asked = work, precision, loras
        if work.learning == self.refuses:
            raise MemoryBudgetError("FLUX.1 needs more.")
        self.under = under
        if under is not None:
            least = 0 if self.asked_again else -LEAST_LESS
            assert self.smaller is not None and under == least, "half a GiB less than what the other way takes"
            return Chosen(self.smaller, streams_text=self.smaller.streamed > 0)
        return None if self.way is None else Chosen(self.way, streams_text=self.way.streamed > 0)


@pytest.fixture(scope="module")
def machine() -> Machine:
    return Machine()


@pytest.fixture(scope="module")
def base(settings: Settings, machine: Machine) -> LoadedFlux:
    return LoadedFlux.read(families.find_base("tiny-flux", settings), settings, machine)


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rehearsal, "LOOK_AHEAD", 2)


@dataclass(frozen=True)
class Ended:
    losses: tuple[float, ...]
    lora: Mapping[str, bytes]
    samples: Mapping[str, bytes]
    folder: Path


@pytest.fixture(scope="module")
def trained(base: LoadedFlux, machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Trains in a way, once unless it is to be stopped at a step and gone on with."""
    folder = tmp_path_factory.mktemp("training")
    dataset = make_dataset(folder / "dataset", ((64, 64),) * 3)
    kept: dict[str, Ended] = {}

    def train_in(name: str, cancel_at: int | None = None, go_on: str | None = None) -> Ended:
        if cancel_at is None and name in kept:
            return kept[name]
        outputs = folder / f"{name} {cancel_at}"
        store, spec = Store(replace(base._source.settings, outputs_dir=outputs)), TRAIN
        machine.way = WAYS[name]
        if cancel_at is not None:
            with pytest.raises(Cancelled):
                train(spec, store, base, dataset, Listener(cancel_at=cancel_at))
            base.use_loras(())
            machine.way = WAYS[go_on or name]
            spec = replace(spec, run=next(outputs.rglob("checkpoints")).parent.name)
        done = train(spec, store, base, dataset, Listener())
        lora = {key: tensor.numpy().tobytes() for key, tensor in load_file(done.lora_path).items()}
        samples = {path.name: path.read_bytes() for path in sorted((done.run_dir / "samples").glob("*.png"))}
        ended = Ended(done.losses, lora, samples, done.run_dir)
        if cancel_at is None:
            kept[name] = ended
        return ended

    yield train_in
    base.release()


@pytest.mark.parametrize("name", ["dropped", "streamed"])
def test_the_same_is_learned(trained: Any, name: str) -> None:
    wanted, found = trained("ordinary"), trained(name)
    assert len(found.losses) == 4 and found.losses == wanted.losses
    assert found.lora == wanted.lora and found.samples == wanted.samples
    assert len(set(found.samples.values())) == 2, "samples change as it learns"
    assert load_run(found.folder).facts["precision"] == "" and "precision" not in load_run(wanted.folder).facts


def test_in_8_bit_nearly(trained: Any) -> None:
    wanted, found = trained("ordinary"), trained("8 bit")
    assert found.losses == pytest.approx(wanted.losses, rel=0.02) and found.losses != wanted.losses
    travelling = trained("8 bit streamed")
    assert travelling.losses == found.losses and travelling.lora == found.lora
    assert travelling.samples == found.samples != wanted.samples
    assert load_run(found.folder).facts["precision"] == "8 bit"


@pytest.mark.parametrize(("name", "other"), [("dropped", "dropped"), ("8 bit", "8 bit streamed")])
def test_a_stopped_training_ends_as_one_that_was_not(
    trained: Any, base: LoadedFlux, machine: Machine, name: str, other: str
) -> None:
    """It goes on in the same way, or in another one of the same numbers, in the middle of what was prepared for."""
    whole = trained(name)
    base._shelf.frugal = name != other  # and where main memory is short, so that parts are read again
    stopped = trained(name, 3, other)
    assert bool(base._shelf.modules("text")) == (name == other)
    assert stopped.losses == whole.losses and stopped.lora == whole.lora
    assert machine.asked == (
        DenoiserWork(FULL, 64, 64, 1, 5, rank=2), "8 bit" if "8" in name else "", OfLoras(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("name", "smaller", "call", "precision"),
    [
        ("dropped", "streamed", 3, ""),  # the same numbers
        ("8 bit", "8 bit streamed", 3, "8 bit"),
        ("dropped", "8 bit streamed", 1, None),  # nothing was learned yet, so other numbers will do
    ],
)
def test_where_memory_runs_out_more_blocks_travel(
    trained: Any,
    base: LoadedFlux,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    name: str,
    smaller: str,
    call: int,
    precision: str | None,
) -> None:
    wanted = trained(smaller)
    made = [0]

    def short(inputs: Any) -> torch.Tensor:
        made[0] += 1
        loss = LoadedFlux.loss(base, inputs)
        if made[0] == call:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return loss

    monkeypatch.setattr(base, "loss", short)
    machine.way, machine.smaller = WAYS[name], WAYS[smaller]
    store = Store(replace(base._source.settings, outputs_dir=tmp_path))
    listener = Listener()
    done = train(TRAIN, store, base, make_dataset(tmp_path / "dataset", ((64, 64),) * 3), listener)
    assert made[0] == 5 and machine.asked is not None and machine.asked[1] == precision
    assert done.losses == wanted.losses
    assert {key: tensor.numpy().tobytes() for key, tensor in load_file(done.lora_path).items()} == wanted.lora
    assert load_run(done.run_dir).facts["precision"] == ("8 bit" if "8 bit" in smaller else "")
    (note,) = listener.notes
    assert f"ran out at step {call}, so the training goes on from there with full gradient check" in note
    assert "checkpointing: FLUX.1 fits in" in note


@pytest.mark.parametrize(("then", "now", "kept"), [(8, 8, True), (8, 7, True), (8, 24, False), (None, None, True)])
def test_a_run_that_goes_on_begins_with_the_way_it_found(
    trained: Any,
    base: LoadedFlux,
    machine: Machine,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    then: int | None,
    now: int | None,
    kept: bool,
) -> None:
    """Unless the card is larger now."""
    wanted, calls, card = trained("streamed"), [0], [then]
    monkeypatch.setattr(fitting, "card_bytes", lambda settings: card[0])
    caplog.set_level("INFO", "headshot_ui")

    def short(inputs: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return LoadedFlux.loss(base, inputs)

    monkeypatch.setattr(base, "loss", short)
    machine.way, machine.smaller, machine.asked_again = WAYS["dropped"], WAYS["streamed"], False
    store = Store(replace(base._source.settings, outputs_dir=tmp_path))
    dataset = make_dataset(tmp_path / "dataset", ((64, 64),) * 3)
    with pytest.raises(Cancelled):
        train(TRAIN, store, base, dataset, Listener(cancel_at=3))
    assert calls == [4] and machine.under == -LEAST_LESS
    run = next(tmp_path.rglob("checkpoints")).parent
    card[0], said = now, "it begins with the way that was found then"
    assert said not in caplog.text
    monkeypatch.setattr(machine, "asked_again", True)
    done = train(replace(TRAIN, run=run.name), store, base, dataset, Listener())
    assert calls == [5], "no step was tried in vain"
    assert machine.under == (0 if kept else None) and (said in caplog.text) == kept
    assert base._source.fit == WAYS["streamed" if kept else "dropped"]
    assert done.losses == wanted.losses
    assert {key: tensor.numpy().tobytes() for key, tensor in load_file(done.lora_path).items()} == wanted.lora


def test_a_level_with_which_nothing_fits_is_passed_over(
    trained: Any, base: LoadedFlux, machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """From no checkpointing to full, because partial would not do; and where nothing does the error is told."""
    wanted, calls = trained("streamed"), [0]

    def short(inputs: Any) -> torch.Tensor:
        calls[0] += 1
        if calls[0] == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return LoadedFlux.loss(base, inputs)

    monkeypatch.setattr(base, "loss", short)
    monkeypatch.setattr(machine, "refuses", PARTIAL)
    machine.way, machine.smaller = WAYS["dropped"], WAYS["streamed"]
    store = Store(replace(base._source.settings, outputs_dir=tmp_path))
    dataset = make_dataset(tmp_path / "dataset", ((64, 64),) * 3)
    done = train(replace(TRAIN, gradient_checkpointing=NONE), store, base, dataset, Listener())
    assert done.losses == wanted.losses and load_run(done.run_dir).spec.gradient_checkpointing == FULL
    calls[0] = 0
    monkeypatch.setattr(machine, "refuses", FULL)
    with pytest.raises(torch.OutOfMemoryError):
        train(replace(TRAIN, gradient_checkpointing=PARTIAL), store, base, dataset, Listener())


def test_a_run_in_8_bit_does_not_go_on_without_a_card(settings: Settings, base: LoadedFlux) -> None:
    from headshot_ui.families.flux_parts.choosing import choose

    work = DenoiserWork(FULL, 64, 64, 1, 5, rank=2)
    assert choose(base.info, work, settings) is None and choose(base.info, work, settings, "") is None
    with pytest.raises(MemoryBudgetError, match="in 8 bit, which is for graphics cards"):
        choose(base.info, work, settings, "8 bit")


def test_a_picture_without_room_is_drawn_with_travelling_blocks(
    base: LoadedFlux, machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the same last bit: where something was drawn already, it keeps to its number format."""
    spec = GenerateSpec("anna", "tiny-flux", prompt="portrait of {subject}", count=2, seed=5, steps=2)

    def drawn(name: str) -> tuple[list[bytes], list[str]]:
        store, reports = Store(replace(base._source.settings, outputs_dir=tmp_path / name)), Reports()
        made = generate(spec, store, base, reports)
        return [picture.path.read_bytes() for picture in made.pictures], reports.notes

    machine.way, machine.smaller, machine.refuses = DROPPED, replace(DROPPED, streamed=2), "no level"
    whole, _ = drawn("whole")
    real, calls = LoadedFlux.denoise, [0]

    def short(self: LoadedFlux, request: DenoiseRequest) -> Iterator[DenoiseStep]:
        calls[0] += 1
        for step in real(self, request):
            yield step
            if calls[0] == 2:
                raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(LoadedFlux, "denoise", short)
    found, (note,) = drawn("short")
    assert found == whole and calls == [3] and machine.asked is not None and machine.asked[1] == ""
    assert "drawing goes on in a smaller way. FLUX.1 fits in" in note
    machine.smaller = machine.refuses = None
