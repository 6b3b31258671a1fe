"""Requests become jobs; the stages are fakes, the queue, the store and the residency are real."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import pytest

from headshot_ui.amounts import PICTURES_BEFORE
from headshot_ui.engine import TASKS, Engine, LikenessCount, Parts, real_parts
from headshot_ui.errors import ModelError, StoreError
from headshot_ui.jobs import Snapshot
from headshot_ui.logs import stop_log
from headshot_ui.runs import change_run, create_run, load_run
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec, HeadshotsSpec, PrepareSpec, Spec, TrainSpec
from headshot_ui.store import Store, read_png_metadata
from tests.core.fakes import FakeWorld

WAIT_S = 20.0
PREPARE = PrepareSpec("anna", ("photos",), "demo")
TRAIN = TrainSpec("anna", "demo")
GENERATE = GenerateSpec("anna", "demo", presets=("a", "b"), count=3, keep_best=2, lora="latest")
HEADSHOTS = HeadshotsSpec(PREPARE, TRAIN, GENERATE)


@pytest.fixture
def world(settings: Settings) -> FakeWorld:
    return FakeWorld(settings)


@pytest.fixture
def engine(settings: Settings, world: FakeWorld) -> Iterator[Engine]:
    with Engine(settings, world.parts) as made:
        yield made
    stop_log()


def test_every_request_has_its_runner() -> None:
    assert set(TASKS) == set(Spec.__subclasses__())


def test_the_real_stages_take_what_the_engine_gives_them() -> None:
    given = {
        "all_bases": 1, "find_base": 2, "likely_refiner": 3, "chosen_refiner": 3, "all_restorers": 0,
        "choose_restorer": 2, "check_request": 3, "load_dataset": 1, "load_base": 2, "load_refiner": 2,
        "load_detector": 2, "load_any_detector": 2, "load_upscaler": 2, "load_parser": 1, "load_judge": 4,
        "load_recogniser": 2, "find_captioner": 2, "prepare": 7, "train": 5, "generate": 6, "restore_tools": 4,
        "restore": 5, "export": 4,
    }  # fmt: skip
    assert set(given) == {field.name for field in fields(Parts)}
    parts = real_parts()
    for name, count in given.items():
        inspect.signature(getattr(parts, name)).bind(*range(count))


def test_nothing_is_loaded_before_the_first_job(engine: Engine, world: FakeWorld) -> None:
    assert world.calls == [] and engine.current() is None and engine.jobs() == () and not engine.cancel()


def test_prepare_train_generate_one_after_the_other(engine: Engine, world: FakeWorld) -> None:
    jobs = [engine.submit(spec) for spec in (PREPARE, TRAIN, GENERATE)]
    prepared, trained, generated = [job.wait(WAIT_S) for job in jobs]
    assert [job.snapshot.error for job in jobs] == [None] * 3
    assert [job.snapshot.kind for job in jobs] == ["prepare", "train", "generate"]
    assert all("anna" in job.snapshot.title for job in jobs)
    assert prepared.result.person == "anna" and trained.result.lora_path.is_file()
    assert trained.metrics == {"loss": 1 / 3}
    assert all(picture.likeness.matched for picture in generated.result.pictures)
    assert world.names.count("load_base") == 1 and world.names.count("detector") == 1, "they stay for the next job"
    assert len(world.threads) == 1 and threading.get_ident() not in world.threads
    assert engine.jobs() == tuple(jobs) and engine.find_job(jobs[1].id) is jobs[1]


def test_training_gets_the_prepared_photos_and_says_when_there_are_none(engine: Engine, world: FakeWorld) -> None:
    assert engine.submit(TRAIN).wait(WAIT_S).error == "No photos have been prepared yet: add photos first."
    assert "load_base" not in world.names, "it is found out before a model is loaded"


def test_pictures_of_somebody_unprepared_are_not_judged(engine: Engine, world: FakeWorld) -> None:
    result = engine.submit(GenerateSpec("bob", "demo", prompt="a person")).wait(WAIT_S).result
    assert "judge" not in world.names and [picture.likeness for picture in result.pictures] == [None] * 4


def test_without_a_recogniser_pictures_are_made_and_the_log_says_why(engine: Engine, world: FakeWorld) -> None:
    world.judge_fails = True
    last = engine.submit(HEADSHOTS).wait(WAIT_S)
    assert last.state == "done" and last.result.before is None and last.result.after is None
    assert world.calls[-1][2] is None and [call[3] for call in world.calls if call[0] == "prepare"] == [None]
    assert engine.log_file is not None and "No face recogniser" in engine.log_file.read_text("utf-8")


def test_headshots_do_all_of_it_and_measure_before_and_after(engine: Engine, world: FakeWorld) -> None:
    last = engine.submit(HEADSHOTS).wait(WAIT_S)
    assert last.error is None
    result = last.result
    stages = [name for name in world.names if name in ("prepare", "train", "generate")]
    assert stages == ["prepare", "train", "generate", "generate"]
    assert result.before == LikenessCount(2, 0, 10.0), "one picture of each look, by the bare base model"
    assert result.after == LikenessCount(6, 6, 90.0)
    bare, real = (call[1] for call in world.calls if call[0] == "generate")
    assert (bare.lora, bare.count, bare.keep_best) == (None, 1, None)
    assert real.lora == result.trained.run_dir.name, "the run just trained, whatever “latest” may be"
    assert [use.name for use in result.stages] == ["prepare", "train", "before", "generate"]
    assert all(use.peak_ram_bytes > 2**20 and use.seconds >= 0 for use in result.stages)


def test_the_parts_of_headshots_are_told_apart_while_they_run(engine: Engine, world: FakeWorld) -> None:
    seen: list[Snapshot] = []
    world.hold = threading.Event()
    job = engine.submit(HEADSHOTS)
    assert world.training.wait(WAIT_S)
    job.subscribe(seen.append)
    world.hold.set()
    job.wait(WAIT_S)
    stages = list(dict.fromkeys(snapshot.stage for snapshot in seen))
    assert stages == ["Training", "For comparison: Drawing", "Drawing"]
    assert all("loss" not in snapshot.metrics for snapshot in seen if "Drawing" in snapshot.stage), "the loss is over"


def test_pictures_without_the_lora_stay_out_of_the_headshots(engine: Engine) -> None:
    result = engine.submit(HEADSHOTS).wait(WAIT_S).result
    shown = list(engine.store.headshots_dir("anna").rglob("*.png"))
    assert len(shown) == 6 and all(read_png_metadata(path)["lora"] for path in shown)
    aside = list((result.trained.run_dir / "before").rglob("*.png"))
    assert len(aside) == 2 and not any(read_png_metadata(path)["lora"] for path in aside)


def test_a_free_prompt_is_compared_with_a_few_pictures_only(engine: Engine, world: FakeWorld) -> None:
    spec = HeadshotsSpec(PREPARE, TRAIN, GenerateSpec("anna", "demo", prompt="{subject}", count=30))
    result = engine.submit(spec).wait(WAIT_S).result
    assert (result.before.pictures, result.after.pictures) == (PICTURES_BEFORE, 30)


def test_measured_peaks_are_kept_for_the_next_plan(engine: Engine, settings: Settings) -> None:
    engine.submit(HEADSHOTS).wait(WAIT_S)
    text = (settings.outputs_dir / "peaks.json").read_text("utf-8")
    assert all(f'"{stage}"' in text for stage in ("demo", "prepare", "train", "before", "generate"))


def test_cancel_keeps_the_model_and_what_was_finished(engine: Engine, world: FakeWorld) -> None:
    engine.submit(PREPARE).wait(WAIT_S)
    world.hold = threading.Event()
    job = engine.submit(HEADSHOTS)
    assert world.training.wait(WAIT_S)
    assert engine.current() is job and engine.cancel()
    world.hold.set()
    last = job.wait(WAIT_S)
    assert (last.state, last.result, last.error) == ("cancelled", None, None)
    assert world.loaded[0].released == 0 and world.loaded[0].loras[-1] == ()
    assert (engine.store.dataset_dir("anna") / "dataset.json").is_file()


def test_an_error_evicts_the_model_and_the_next_job_loads_it_again(engine: Engine, world: FakeWorld) -> None:
    engine.submit(PREPARE)
    world.fail = ZeroDivisionError("division by zero")
    last = engine.submit(TRAIN).wait(WAIT_S)
    assert last.state == "failed" and last.error is not None
    assert str(engine.log_file) in last.error and "Traceback" not in last.error
    assert engine.log_file is not None and "ZeroDivisionError: division by zero" in engine.log_file.read_text("utf-8")
    assert world.loaded[0].released == 1
    world.fail = ModelError("The LoRA is for another family: choose one for “demo”.")
    assert engine.submit(TRAIN).wait(WAIT_S).error == str(world.fail)
    world.fail = None
    assert engine.submit(TRAIN).wait(WAIT_S).state == "done"
    assert world.names.count("load_base") == 3


def test_two_bases_stay_in_memory_while_they_fit(engine: Engine, world: FakeWorld) -> None:
    for name in ("demo", "other", "demo"):
        assert engine.submit(GenerateSpec("anna", name, prompt="x", count=1)).wait(WAIT_S).state == "done"
    assert [loaded.info.id for loaded in world.loaded] == ["demo", "other"]
    assert world.loaded[0].kept == [frozenset()], "it left the device for the other one"


def test_close_cancels_joins_and_drops_the_model(settings: Settings, world: FakeWorld) -> None:
    world.hold = threading.Event()
    engine = Engine(settings, world.parts)
    engine.submit(PREPARE)
    running, waiting = engine.submit(TRAIN), engine.submit(GENERATE)
    assert world.training.wait(WAIT_S)
    threading.Timer(0.1, world.hold.set).start()
    engine.close()
    assert (running.snapshot.state, waiting.snapshot.state) == ("cancelled", "cancelled")
    assert world.loaded[0].released == 1
    stop_log()


def test_a_person_cannot_be_deleted_under_a_running_job(engine: Engine, world: FakeWorld) -> None:
    engine.submit(PREPARE)
    world.hold = threading.Event()
    job = engine.submit(TRAIN)
    assert world.training.wait(WAIT_S)
    with pytest.raises(StoreError, match="cancel it first"):
        engine.delete_person("anna")
    world.hold.set()
    job.wait(WAIT_S)
    removed = engine.delete_person("anna")
    assert any(path.name == "lora.safetensors" for path in removed) and engine.store.people() == ()


def test_a_start_after_a_crash_marks_the_run_as_interrupted(
    settings: Settings, world: FakeWorld, dead_pid: Callable[[], int]
) -> None:
    run = change_run(create_run(Store(settings), TRAIN), step=40, pid=dead_pid())
    with Engine(settings, world.parts):
        assert (load_run(run.folder).state, load_run(run.folder).step) == ("interrupted", 40)
    stop_log()


def test_outputs_that_cannot_be_read_do_not_keep_the_program_from_starting(
    settings: Settings, world: FakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: Store) -> tuple[str, ...]:
        raise OSError("the network disk is away")

    monkeypatch.setattr(Store, "people", broken)
    with Engine(settings, world.parts) as engine:
        assert engine.log_file is not None and "network disk" in Path(engine.log_file).read_text("utf-8")
    stop_log()
