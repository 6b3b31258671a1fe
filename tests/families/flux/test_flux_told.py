"""What takes a minute on a real FLUX.1 is told step by step, and can be cancelled at every one of them."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from headshot_ui import families
from headshot_ui.engine import Engine, Parts
from headshot_ui.errors import Cancelled
from headshot_ui.families.flux_parts.choosing import Chosen
from headshot_ui.families.flux_parts.eight_bit import EightBitLinear
from headshot_ui.families.flux_parts.fitted import COMPUTING, PACKING, PACKING_TEXT, READING, ROUNDING, is_travelling
from headshot_ui.families.flux_parts.loaded import LoadedFlux
from headshot_ui.jobs import Snapshot
from headshot_ui.logs import stop_log
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec
from tests.families.flux.test_flux_ways import DROPPED, EIGHT, draw, learn
from tests.families.flux.test_flux_whole import without_faces

SPEC = GenerateSpec("anna", "tiny-flux", prompt="portrait of {subject}", count=1, seed=5)


class Heard:
    """Writes down what is told, and cancels at one step of a stage."""

    def __init__(self, stage: str = "", at: int = 0) -> None:
        self.cancel = stage, at
        self.steps: list[tuple[str, int, int]] = []

    def __call__(self, stage: str, step: int, total: int) -> None:
        self.steps.append((stage, step, total))
        if (stage, step) == self.cancel:
            raise Cancelled

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(stage for stage, _, _ in self.steps))


@pytest.fixture(scope="module")
def base(settings: Settings) -> LoadedFlux:
    return LoadedFlux.read(families.find_base("tiny-flux", settings), settings)


def draw_told(base: LoadedFlux, heard: Heard) -> torch.Tensor:
    base.report_to(heard)
    try:
        return draw(base)
    finally:
        base.report_to(None)


@pytest.fixture
def afresh(base: LoadedFlux) -> Iterator[Callable[[Any], LoadedFlux]]:
    """The base made to fit in a way, with its transformer still in its files."""

    def made(fit: Any) -> LoadedFlux:
        base.make_fit(None)
        base.make_fit(fit)
        return base

    yield made
    base.use_loras(())
    base.make_fit(None)


def test_every_layer_is_told_in_order(afresh: Any) -> None:
    heard = Heard()
    draw_told(afresh(EIGHT), heard)
    assert heard.stages == [ROUNDING, READING, COMPUTING]
    for stage in heard.stages:
        steps = [(step, total) for name, step, total in heard.steps if name == stage]
        assert [step for step, _ in steps] == list(range(steps[0][1] + 1)) and len(steps) > 4, stage
    places = [heard.stages.index(stage) for stage, _, _ in heard.steps]
    assert all(before <= after for before, after in pairwise(places))
    again = Heard()
    draw_told(afresh(EIGHT), again)
    assert again.steps == heard.steps
    more = Heard()
    draw_told(base := afresh(DROPPED), more)
    assert more.stages == [READING, COMPUTING]
    still = Heard()
    draw_told(base, still)
    assert still.steps == [], "it is there"


def test_blocks_are_told_as_they_are_packed(afresh: Any) -> None:
    base, heard = afresh(replace(EIGHT, streamed=3)), Heard()
    base.make_fit(replace(EIGHT, streamed=3), streams_text=True)
    draw_told(base, heard)
    assert heard.stages == [PACKING_TEXT, ROUNDING, READING, PACKING, COMPUTING]
    assert [told[1:] for told in heard.steps if told[0] == PACKING] == [(step, 3) for step in range(4)]
    layers = len(base._shelf.modules("text")[1].encoder.block)
    assert [told[1:] for told in heard.steps if told[0] == PACKING_TEXT] == [(n, layers) for n in range(layers + 1)]


@pytest.mark.parametrize("at", [0, 2, 3])
def test_a_cancel_between_two_blocks_leaves_a_whole_transformer(afresh: Any, at: int) -> None:
    fit = replace(EIGHT, streamed=3)
    wanted = draw(afresh(fit))
    base, heard = afresh(fit), Heard(PACKING, at)
    with pytest.raises(Cancelled):
        draw_told(base, heard)
    assert heard.steps[-1] == (PACKING, at, 3)
    (there,) = base._shelf.modules("denoiser")
    assert not is_travelling(there)
    assert torch.equal(draw(base), wanted) and base._shelf.modules("denoiser") == (there,)


def test_nobody_need_hear(afresh: Any) -> None:
    base = afresh(EIGHT)
    heard = Heard()
    base.report_to(heard)
    base.report_to(None)
    draw(base)
    assert heard.steps == []


@pytest.mark.parametrize(("stage", "at"), [(ROUNDING, 0), (ROUNDING, 5), (READING, 3), (COMPUTING, 2)])
def test_a_cancel_ends_at_once_and_leaves_nothing_half_made(
    afresh: Any, stage: str, at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = draw(afresh(EIGHT))
    made: list[weakref.ref[torch.Tensor]] = []
    init = EightBitLinear.__init__

    def noted(layer: EightBitLinear, *args: Any, **kwargs: Any) -> None:
        init(layer, *args, **kwargs)
        made.append(weakref.ref(layer.weight))

    monkeypatch.setattr(EightBitLinear, "__init__", noted)
    base, heard = afresh(EIGHT), Heard(stage, at)
    gc.disable()  # nothing may depend on when the collector comes by
    try:
        with pytest.raises(Cancelled) as caught:
            draw_told(base, heard)
        assert heard.steps[-1][:2] == (stage, at)
        there = base._shelf.modules("denoiser")
        assert bool(there) == (stage == COMPUTING), "a transformer that is whole stays"
        if not there:
            assert len(made) == at or stage == READING and len(made) > 4
            del caught
            assert not any(tensor() is not None for tensor in made), "given back at once"
    finally:
        gc.enable()
    assert torch.equal(draw(base), wanted)


def test_rows_of_a_training_are_told_and_can_be_cancelled(afresh: Any) -> None:
    wanted, _ = learn(afresh(EIGHT))
    base = afresh(EIGHT)
    heard = Heard(COMPUTING, 4)
    base.report_to(heard)
    with pytest.raises(Cancelled):
        learn(base)
    base.report_to(None)
    assert heard.steps[-1][:2] == (COMPUTING, 4)
    found, _ = learn(base)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))


# --- a whole job --------------------------------------------------------------------------------------
@pytest.fixture
def engine(models_dir: Path, tmp_path: Path) -> Iterator[Engine]:
    def parts() -> Parts:
        chosen: Any = lambda *_: Chosen(EIGHT)  # noqa: E731
        return replace(without_faces(), load_base=lambda info, here: LoadedFlux.read(info, here, chosen))

    settings = Settings.from_environment(
        root=tmp_path, models_dir=models_dir, outputs_dir=tmp_path / "outputs", device="cpu", dtype="float32"
    )
    with Engine(settings, parts) as engine:
        yield engine
    stop_log()


def test_a_job_is_cancelled_between_two_layers_and_the_next_one_works(engine: Engine) -> None:
    seen: list[Snapshot] = []

    def cancel_at_the_third(snapshot: Snapshot) -> None:
        seen.append(snapshot)
        if snapshot.stage == ROUNDING and snapshot.step == 3:
            cancelled.cancel()

    cancelled = engine.submit(SPEC)
    cancelled.subscribe(cancel_at_the_third)
    assert cancelled.wait(120).state == "cancelled"
    rounding = [snapshot for snapshot in seen if snapshot.stage == ROUNDING]
    assert rounding and rounding[-1].step == 3 < rounding[-1].total - 1
    seen.clear()
    job = engine.submit(SPEC)
    job.subscribe(seen.append)
    last = job.wait(120)
    assert last.state == "done" and len(last.result.pictures) == 1
    # On the CPU weights come when the first step asks for them; on a card before drawing is told.
    begun = ("Drawing", 0)
    told = [snapshot.stage for snapshot in seen if snapshot.stage and (snapshot.stage, snapshot.step) != begun]
    told = list(dict.fromkeys(told))
    assert told[: told.index("Drawing") + 1] == ["Reading the prompts", ROUNDING, READING, COMPUTING, "Drawing"]
