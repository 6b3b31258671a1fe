"""A training with compiled blocks: the losses of an ordinary one, a cancel that leaves no trace, when it pays."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch._dynamo
from torch._dynamo.backends.registry import lookup_backend

from headshot_ui import compiling
from headshot_ui.dataset.types import Dataset
from headshot_ui.errors import Cancelled
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store
from headshot_ui.training.compiled import COMPILED, COMPILING, ORDINARY, StepSeconds
from headshot_ui.training.runner import train
from tests.training.conftest import Listener

SPEC = TrainSpec(person="anna", base="tiny-sdxl", steps=3, rank=2, checkpoint_every=10, sample_every=100, seed=3)


@pytest.fixture
def always(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The same store where blocks are compiled, though there is no card here."""
    torch._dynamo.reset()
    compiling._compiled_once.cache_clear()
    monkeypatch.setattr(compiling, "why_not", lambda device: "")
    monkeypatch.setattr(compiling, "inductor", lookup_backend("aot_eager"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(store.settings.outputs_dir))
    yield Store(dataclasses.replace(store.settings, compile="always"))
    torch._dynamo.reset()
    compiling._compiled_once.cache_clear()


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


def test_it_pays_where_both_ways_were_timed_and_enough_steps_are_left(tmp_path: Path) -> None:
    known = StepSeconds(tmp_path / "compiled.json")
    assert not known.pays("work", 10**9)
    known.note("work", {ORDINARY: 0.08})
    assert not known.pays("work", 10**9)
    known.note("work", {COMPILED: 0.06, COMPILING: 30.0})
    assert known.pays("work", 1501) and not known.pays("work", 1499) and not known.pays("other work", 10**9)
    known.note("work", {COMPILED: 0.09})
    assert not known.pays("work", 10**9)
    known.file.write_text("[1]")
    assert not known.pays("work", 10**9)


@pytest.mark.parametrize(
    ("asked", "pays", "expected"),
    [("never", True, False), ("auto", False, False), ("auto", True, True), ("always", False, True)],
)
def test_the_setting_decides(store: Store, always: Store, asked: Any, pays: bool, expected: bool) -> None:
    settings = dataclasses.replace(store.settings, compile=asked)
    assert compiling.wanted(settings, pays) is expected


def test_without_a_card_it_is_not_done(store: Store) -> None:
    assert not compiling.wanted(dataclasses.replace(store.settings, compile="always"))
