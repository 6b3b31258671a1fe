"""Automatic captions as a job: the captioner opens while photos are prepared, and its absence is told before."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from headshot_ui.amounts import Known, plan_prepare
from headshot_ui.engine import Engine
from headshot_ui.errors import SpecError
from headshot_ui.logs import stop_log
from headshot_ui.settings import Settings
from headshot_ui.specs import HeadshotsSpec, PrepareSpec, TrainSpec
from tests.core.fakes import FakeWorld
from tests.core.test_engine_stages import GENERATE, calls

WAIT_S = 20.0
PREPARE = PrepareSpec("anna", ("photos",), "demo")


@pytest.fixture
def world(settings: Settings) -> FakeWorld:
    return FakeWorld(settings)


@pytest.fixture
def engine(settings: Settings, world: FakeWorld) -> Iterator[Engine]:
    path = settings.outputs_dir / "recipes" / "described.json"
    path.parent.mkdir(parents=True)
    said = {"captions": "automatic", "trigger": "TOK"}
    path.write_text(json.dumps({"id": "described", "title": "Described", "note": "So.", "prepare": said}))
    with Engine(settings, world.parts) as made:
        yield made
    stop_log()


def prepared(world: FakeWorld) -> PrepareSpec:
    ((spec, *_),) = calls(world, "prepare")
    return spec


def test_the_captioner_is_opened_for_automatic_captions_only(engine: Engine, world: FakeWorld) -> None:
    assert engine.submit(PREPARE).wait(WAIT_S).state == "done"
    assert calls(world, "captioner open") == [] and prepared(world) == PREPARE
    world.calls.clear()
    done = engine.submit(replace(PREPARE, captions="automatic")).wait(WAIT_S)
    assert done.state == "done" and world.names.index("prepare") < world.names.index("captioner open")
    ((captioner,),) = calls(world, "captioner open")
    assert calls(world, "load") == [("captioner",)], "loaded once, by the residency"
    assert captioner.kept == [frozenset()], "and off the device when all photos are described"


def test_the_plan_counts_the_captioner(settings: Settings, world: FakeWorld) -> None:
    known = Known(settings, world.parts(), "cpu", "float32")
    names = {captions: [turn.name for turn in plan_prepare(replace(PREPARE, captions=captions), known).turns]
             for captions in ("phrase", "automatic")}  # fmt: skip
    assert names == {"phrase": ["face detector"], "automatic": ["face detector", "captioner"]}
    world.no_captioner = "No captioner is installed."
    assert len(plan_prepare(replace(PREPARE, captions="automatic"), known).turns) == 1, "told when it is wanted"


def test_without_a_captioner_nothing_is_begun(engine: Engine, world: FakeWorld) -> None:
    world.no_captioner = "No captioner is installed: get one."
    done = engine.submit(replace(PREPARE, captions="automatic")).wait(WAIT_S)
    assert (done.state, done.error) == ("failed", "No captioner is installed: get one.")
    assert "detector" not in world.names and "prepare" not in world.names


def test_a_recipe_asks_for_captions_and_a_word(engine: Engine, world: FakeWorld) -> None:
    assert engine.submit(replace(PREPARE, recipe="described")).wait(WAIT_S).state == "done"
    assert (prepared(world).captions, prepared(world).trigger) == ("automatic", "TOK")
    world.calls.clear()
    own = replace(PREPARE, recipe="described", captions="phrase", trigger="zoe")
    assert engine.submit(own).wait(WAIT_S).state == "done"
    assert (prepared(world).captions, prepared(world).trigger) == ("phrase", "zoe"), "one's own counts first"
    assert calls(world, "captioner open") == []


def test_a_recipe_without_a_captioner_takes_the_phrase_and_says_so(engine: Engine, world: FakeWorld) -> None:
    world.no_captioner = "No captioner is installed: get one."
    done = engine.submit(replace(PREPARE, recipe="described")).wait(WAIT_S)
    assert done.state == "done" and prepared(world).captions == "phrase"
    assert done.notes == ("The fixed phrase was taken for captions. No captioner is installed: get one.",)


def test_the_recipe_of_headshots_counts_for_the_photos_too(engine: Engine, world: FakeWorld) -> None:
    from headshot_ui.cli import build_parser
    from headshot_ui.commands.spec_options import build_spec

    args = build_parser().parse_args(["headshots", "x", "--person", "anna", "--base", "demo", "--recipe", "described"])
    prepare = build_spec(PrepareSpec, args, photos=("photos",))
    assert prepare.recipe == "described" and prepare.captions is None
    spec = HeadshotsSpec(prepare, TrainSpec("anna", "demo", recipe="described"), GENERATE)
    assert engine.submit(spec).wait(WAIT_S).state == "done"
    assert (prepared(world).captions, prepared(world).trigger) == ("automatic", "TOK")


def test_other_captions_are_refused() -> None:
    with pytest.raises(SpecError, match="no captions “poems”; choose phrase or automatic") as raised:
        replace(PREPARE, captions="poems")
    assert raised.value.field == "captions"
    assert PrepareSpec.from_json(replace(PREPARE, captions="automatic").to_json()).captions == "automatic"
