"""Refining, restoring and exporting: which models are opened when, what runs beside what, what is told at the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from headshot_ui.amounts import StagePlan
from headshot_ui.card_words import LOST_BEFORE
from headshot_ui.engine import Engine
from headshot_ui.errors import MemoryBudgetError, StoreError
from headshot_ui.families.protocol import RefinerInfo
from headshot_ui.logs import stop_log
from headshot_ui.meter import StageMeter
from headshot_ui.peaks import Peaks
from headshot_ui.runs import list_runs
from headshot_ui.settings import Settings
from headshot_ui.specs import ExportSpec, GenerateSpec, HeadshotsSpec, PrepareSpec, RestoreSpec, TrainSpec
from headshot_ui.store import Store
from headshot_ui.workshop import JobContext, SharedParts, Workshop
from tests.core.fakes import FakeWorld

WAIT_S = 20.0
PREPARE = PrepareSpec("anna", ("photos",), "demo")
TRAIN = TrainSpec("anna", "demo")
GENERATE = GenerateSpec("anna", "demo", presets=("a", "b"), count=3, lora="latest")
HEADSHOTS = HeadshotsSpec(PREPARE, TRAIN, GENERATE, restore_best=3, export_best=4, fidelity_weight=0.8)


class OutOfMemoryError(RuntimeError):
    """Told by its name, as torch's is."""


@pytest.fixture
def world(settings: Settings) -> FakeWorld:
    return FakeWorld(settings)


@pytest.fixture
def engine(settings: Settings, world: FakeWorld) -> Iterator[Engine]:
    with Engine(settings, world.parts) as made:
        yield made
    stop_log()


def calls(world: FakeWorld, name: str) -> list[tuple[object, ...]]:
    return [call[1:] for call in world.calls if call[0] == name]


def test_a_recipe_that_is_not_there_is_found_before_the_photos_are_looked_at(engine: Engine, world: FakeWorld) -> None:
    wrong = replace(HEADSHOTS, train=replace(TRAIN, recipe="orignal"))
    assert "There is no recipe “orignal”; choose from default" in (engine.submit(wrong).wait(WAIT_S).error or "")
    assert calls(world, "prepare") == []


# --- refiner ----------------------------------------------------------------------------------------
def test_the_refiner_is_opened_inside_the_base_and_stays_for_the_next_job(engine: Engine, world: FakeWorld) -> None:
    world.refiner = RefinerInfo("fine", "fake", "Fine", Path("fine"), "", "")
    for _ in range(2):
        assert engine.submit(GenerateSpec("anna", "demo", prompt="x", lora="a", count=1)).wait(WAIT_S).error is None
    assert len(calls(world, "refine")) == 2 and calls(world, "load") == [("refiner",)] and len(world.loaded) == 1
    # Out of the way of the refiner, twice; the second job's LoRA is off again too.
    assert world.loaded[0].kept == [frozenset()] * 2 and world.loaded[0].loras[-1] == ()


def test_a_wrong_request_is_found_before_a_model_is_loaded(engine: Engine, world: FakeWorld) -> None:
    world.wrong_request = "The model does not know the word “zebra”."
    assert engine.submit(GENERATE).wait(WAIT_S).error == world.wrong_request
    assert engine.submit(HEADSHOTS).wait(WAIT_S).error == world.wrong_request
    assert calls(world, "check") == [("latest",), (None,)], "before training there is no LoRA to look for"
    assert not {"load_base", "prepare", "train", "generate"} & set(world.names)


# --- restoring --------------------------------------------------------------------------------------
def test_restoring_opens_each_model_when_its_stage_begins(engine: Engine, world: FakeWorld) -> None:
    engine.submit(PREPARE).wait(WAIT_S)
    last = engine.submit(RestoreSpec("anna", ("one.png",), "demo", upscale=2)).wait(WAIT_S)
    assert last.error is None and last.kind == "restore" and "anna" in last.title
    ((spec, detector, judge),) = calls(world, "restore")
    assert spec.restorer == "demo" and detector == "any detector" and judge is not None  # type: ignore[attr-defined]
    order = [call[:2] for call in world.calls if call[0] in ("restore", "load")]
    assert [call[0] for call in order] == ["restore", "load", "load", "load"]
    assert [call[1] for call in order[1:]] == ["demo", "upscaler", "parser"]
    assert calls(world, "any detector") == [("cpu", True)], "drawn faces first, for the demo's restorer"
    engine.submit(RestoreSpec("anna", ("one.png",), "demo")).wait(WAIT_S)
    assert len(calls(world, "load")) == 3, "all of them stay for the next job"


def test_photographs_are_looked_at_with_their_own_detector_first(engine: Engine, world: FakeWorld) -> None:
    assert engine.submit(RestoreSpec("anna", ("one.png",))).wait(WAIT_S).error is None
    assert calls(world, "restore")[0][0].restorer == "real"  # type: ignore[attr-defined]
    assert calls(world, "any detector") == [("cpu", False)]
    assert calls(world, "restore")[0][2] is None, "nobody to compare with: there are no photos of anna"


def test_a_missing_restorer_is_told_before_anything_is_loaded(engine: Engine, world: FakeWorld) -> None:
    world.no_restorer = "CodeFormer is not installed: get it."
    assert engine.submit(RestoreSpec("anna", ("one.png",))).wait(WAIT_S).error == world.no_restorer
    assert set(world.names) == {"parts"}


# --- exporting beside the rest ----------------------------------------------------------------------
def test_an_export_runs_while_training_goes_on(engine: Engine, world: FakeWorld) -> None:
    engine.submit(PREPARE).wait(WAIT_S)
    world.hold = threading.Event()
    training = engine.submit(TRAIN)
    assert world.training.wait(WAIT_S)
    exported = engine.submit(ExportSpec("anna", ("one.png",))).wait(WAIT_S)
    assert exported.state == "done" and len(exported.result.files) == 4
    assert training.snapshot.state == "running" and engine.current() is training
    assert calls(world, "any detector") == [("cpu", False)] and len(world.threads) == 2
    world.hold.set()
    assert training.wait(WAIT_S).state == "done"


def test_jobs_of_both_lanes_are_listed_cancelled_and_guarded(engine: Engine, world: FakeWorld) -> None:
    world.hold_export = threading.Event()
    job = engine.submit(ExportSpec("anna", ("one.png",)))
    second = engine.submit(ExportSpec("anna", ("two.png",)))
    assert world.exporting.wait(WAIT_S)
    assert engine.jobs() == (job, second) and engine.current() is job and engine.find_job(second.id) is second
    assert (engine.position(job.id), engine.position(second.id), engine.ahead_of(second.id)) == (0, 1, (job,))
    with pytest.raises(StoreError, match="cancel it first"):
        engine.delete_person("anna")
    assert engine.cancel(second.id) and engine.cancel()
    world.hold_export.set()
    assert (job.wait(WAIT_S).state, second.wait(WAIT_S).state) == ("cancelled", "cancelled")


def test_close_ends_both_lanes(settings: Settings, world: FakeWorld) -> None:
    world.hold, world.hold_export = threading.Event(), threading.Event()
    engine = Engine(settings, world.parts)
    engine.submit(PREPARE).wait(WAIT_S)
    training, exporting = engine.submit(TRAIN), engine.submit(ExportSpec("anna", ("one.png",)))
    assert world.training.wait(WAIT_S) and world.exporting.wait(WAIT_S)
    threading.Timer(0.05, lambda: (world.hold.set(), world.hold_export.set())).start()  # type: ignore[union-attr]
    engine.close()
    assert (training.snapshot.state, exporting.snapshot.state) == ("cancelled", "cancelled")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("headshot-")]
    stop_log()


# --- all of it --------------------------------------------------------------------------------------
def test_the_best_pictures_are_restored_and_exported_as_restored(engine: Engine, world: FakeWorld) -> None:
    last = engine.submit(HEADSHOTS).wait(WAIT_S)
    assert last.error is None and last.notes == ()
    made = last.result
    best = [picture.path for picture in made.generated.pictures if picture.kept]
    assert len(best) == 5
    (restored,) = calls(world, "restore")
    spec = restored[0]
    assert isinstance(spec, RestoreSpec)
    assert (spec.pictures, spec.restorer, spec.fidelity_weight) == (tuple(map(str, best[:3])), "demo", 0.8)
    ((export, _),) = calls(world, "export")
    assert isinstance(export, ExportSpec) and len(export.layouts) == 4
    assert export.pictures == (*(str(picture.path) for picture in made.restored.pictures), str(best[3]))
    assert [use.name for use in made.stages] == ["prepare", "train", "before", "generate", "restore", "export"]
    assert len(made.exported.files) == 16
    assert len(calls(world, "judge")) == 2, "one for drawing with and without the LoRA, one for restoring"


def test_what_was_not_asked_for_is_none(engine: Engine, world: FakeWorld) -> None:
    made = engine.submit(replace(HEADSHOTS, restore_best=0, export_best=0)).wait(WAIT_S).result
    assert made.restored is None and made.exported is None and not {"restore", "export"} & set(world.names)


def test_without_a_restorer_the_rest_goes_on_and_it_is_said(engine: Engine, world: FakeWorld) -> None:
    world.no_restorer = "The demo restorer is missing."
    seen: list[str] = []
    job = engine.submit(HEADSHOTS)
    job.subscribe(lambda snapshot: seen.append(snapshot.stage))
    last = job.wait(WAIT_S)
    assert last.state == "done" and last.result.restored is None and len(last.result.exported.files) == 16
    told = "No picture was restored: The demo restorer is missing."
    assert last.notes == (told,) and told in seen
    assert engine.log_file is not None and told in engine.log_file.read_text("utf-8")


def test_why_likeness_was_not_measured_is_there_at_the_end(engine: Engine, world: FakeWorld) -> None:
    engine.submit(PREPARE).wait(WAIT_S)
    world.judge_fails = True
    told = ("Likeness was not measured: No face recogniser is installed.",)
    assert engine.submit(GENERATE).wait(WAIT_S).notes == told
    assert engine.submit(replace(HEADSHOTS, restore_best=0)).wait(WAIT_S).notes == told, "once, not once per stage"


def test_running_out_of_memory_evicts_everything_and_says_what_to_change(engine: Engine, world: FakeWorld) -> None:
    engine.submit(PREPARE).wait(WAIT_S)
    engine.submit(GenerateSpec("anna", "other", prompt="x", count=1)).wait(WAIT_S)
    world.fail = OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    last = engine.submit(TRAIN).wait(WAIT_S)
    assert last.error == (
        "The memory of this computer ran out while learning; what was finished before is kept. "
        "To need less, learn from one photo at a time (batch size 1) or choose partial gradient checkpointing."
    )
    assert [loaded.released for loaded in world.loaded] == [1, 1]
    world.fail = None
    assert engine.submit(TRAIN).wait(WAIT_S).state == "done"


def test_running_out_of_graphics_memory_says_who_holds_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headshot_ui.settings._usable", lambda device: True)
    monkeypatch.setattr("headshot_ui.workshop.out_of_graphics_memory", lambda: "A game holds 5 GB: close it.")
    asked = {"device": "cuda", "dtype": "float16", "vram_limit": "8GB"}
    card = Settings.from_environment(root=settings.root, environment={}, **asked)  # type: ignore[arg-type]
    shop = Workshop(card, Store(card), SharedParts(FakeWorld(card).parts), Peaks(card.outputs_dir))
    plan = StagePlan("train", "demo", "", 0, ())
    with pytest.raises(MemoryBudgetError) as told:  # noqa: SIM117
        with shop.measured(plan, JobContext(lambda *_, **__: None, StageMeter()), "learning", "Draw less."):
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    assert str(told.value) == (
        "The graphics memory that may be used (8.0 GB) ran out while learning; what was finished before is kept. "
        "Draw less. A game holds 5 GB: close it."
    )


def test_what_getting_a_base_ready_took_is_kept_apart(settings: Settings) -> None:
    peaks, world = Peaks(settings.outputs_dir), FakeWorld(settings)
    shop = Workshop(settings, Store(settings), SharedParts(world.parts), peaks)
    heard: list[tuple[str, int, int]] = []
    job = JobContext(lambda stage, step, total, *_: heard.append((stage, step, total)), StageMeter())
    began = time.perf_counter()
    with (
        shop.measured(StagePlan("train", "demo", "small", 3, ()), job, "learning", "Learn less."),
        shop.loaded(shop.base("demo"), job.report) as loaded,
    ):
        told = loaded.told[-1]  # type: ignore[attr-defined]
        told("Reading", 0, 1)
        time.sleep(0.3)
        told("Reading", 1, 1)
    (found,) = peaks.of("demo").values()
    assert found.first_s >= 0.3 and found.seconds <= time.perf_counter() - began - 0.3
    assert heard == [("Reading", 0, 1), ("Reading", 1, 1)] and loaded.told[-1] is None  # type: ignore[attr-defined]


# --- a card that is lost ----------------------------------------------------------------------------
def test_after_a_lost_card_every_job_that_needs_it_says_so_at_once(engine: Engine, world: FakeWorld) -> None:
    engine.submit(PREPARE).wait(WAIT_S)
    world.fail = RuntimeError("CUDA error: unspecified launch failure\nCUDA kernel errors might be …")
    world.hold = threading.Event()
    training = engine.submit(TRAIN)
    waiting = engine.submit(GENERATE)
    assert world.training.wait(WAIT_S) and engine.card_lost == ""
    world.hold.set()
    told = training.wait(WAIT_S).error
    (run,) = list_runs(engine.store, "anna")
    assert told is not None and told.startswith("The graphics card stopped working")
    assert "end this program and start it again" in told and str(engine.store.person_dir("anna")) in told
    assert "2 steps of the training are kept" in told and "Go on from there" in told
    assert f"“python3 app.py train --person anna --run {run.name}”" in told
    assert engine.log_file is not None and "unspecified launch failure" in engine.log_file.read_text("utf-8")
    names = list(world.names)
    assert waiting.wait(WAIT_S).error == engine.submit(PREPARE).wait(WAIT_S).error == LOST_BEFORE
    assert world.names == names, "nothing was begun"
    exported = engine.submit(ExportSpec("anna", ("one.png",))).wait(WAIT_S)
    assert exported.state == "done", "an export computes on the processor and goes on"
    assert [loaded.released for loaded in world.loaded] == [1], "what the error met was dropped"


def test_an_earlier_run_is_not_named_for_a_job_that_trained_nothing(
    engine: Engine, world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.submit(PREPARE).wait(WAIT_S)
    world.fail = RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert "unexpected" in str(engine.submit(TRAIN).wait(WAIT_S).error), "an error of another kind loses no card"
    assert engine.card_lost == ""

    def lose(*_: object) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    monkeypatch.setattr(world, "generate", lose)
    with Engine(engine.settings, world.parts) as other:
        told = other.submit(replace(GENERATE, lora=None)).wait(WAIT_S).error
    assert told is not None and "stopped working" in told and "--run" not in told
