"""``--base`` left out: which model that is, what is said of it, and what the help says."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from headshot_ui import families, usual_base
from headshot_ui.cli import build_parser
from headshot_ui.dataset.saved import MANIFEST
from headshot_ui.errors import HeadshotError
from headshot_ui.runs import change_run, create_run
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec, HeadshotsSpec, PrepareSpec, Spec, TrainSpec
from headshot_ui.store import Store, write_bytes_atomic, write_json_atomic
from tests.core.test_usual_base import DEMO, SDXL

TOLD = "Base model: sdxl, Stable Diffusion XL 1.0."


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Stable Diffusion XL is installed beside the demo; ``card[0]`` says whether there is a graphics card."""
    there = [True]
    monkeypatch.setattr(families, "all_bases", lambda settings: (DEMO, SDXL))
    monkeypatch.setattr(usual_base, "has_card", lambda settings: there[0])
    return there


@pytest.fixture
def store(tmp_path: Any) -> Store:
    return Store(Settings.from_environment(outputs_dir=tmp_path / "outputs"))


@pytest.fixture
def asked(command: Callable[..., Any]) -> Callable[..., Any]:
    """Run a command whose job ends at once: what counts here is what was asked for."""

    def stop(spec: Spec, report: Any) -> None:
        raise HeadshotError("Enough.")

    kinds = (PrepareSpec, TrainSpec, GenerateSpec, HeadshotsSpec)
    return partial(command, runners=dict.fromkeys(kinds, stop))


def base_of(done: Any) -> str:
    (spec,) = done.engines[0].submitted
    return str(getattr(spec, "prepare", spec).base)


def test_with_a_card_photographs_are_meant_and_it_is_said(asked, card):
    for argv in (("prepare", "a.jpg"), ("headshots", "a.jpg"), ("train",), ("generate", "--lora", "none")):
        done = asked(*argv, "--person", "anna")
        assert base_of(done) == "sdxl" and done.out.splitlines()[0] == TOLD, argv
    done = asked("headshots", "a.jpg", "--person", "anna")
    (spec,) = done.engines[0].submitted
    assert {spec.prepare.base, spec.train.base, spec.generate.base} == {"sdxl"}
    quiet = asked("train", "--person", "anna", "--json")
    assert quiet.err.splitlines()[0] == TOLD and quiet.out == ""
    named = asked("train", "--person", "anna", "--base", "demo-sdxl")
    assert base_of(named) == "demo-sdxl" and "Base model" not in named.out


def test_without_a_card_the_demo_is_meant_and_the_other_is_named(asked, card):
    card[0] = False
    done = asked("headshots", "a.jpg", "--person", "anna")
    assert base_of(done) == "demo-sdxl"
    assert done.out.splitlines()[0] == (
        "Base model: demo-sdxl, Demo. “sdxl” is here too, but takes many hours without a graphics card: "
        "--base sdxl for it."
    )


def test_a_training_goes_by_its_photos_and_by_the_run_to_continue(asked, card, store):
    write_json_atomic(store.dataset_dir("anna") / MANIFEST, {"spec": {"base": "demo-sdxl"}})
    assert base_of(asked("train", "--person", "anna")) == "demo-sdxl"
    run = create_run(store, TrainSpec("anna", "sdxl"))
    change_run(run, state="cancelled")
    assert base_of(asked("train", "--person", "anna", "--run", run.name)) == "sdxl"


def test_pictures_go_by_the_training_they_are_drawn_with(asked, card, store, tmp_path):
    names = {}
    for base in ("sdxl", "demo-sdxl"):
        run = create_run(store, TrainSpec("anna", base))
        write_bytes_atomic(run.folder / "lora.safetensors", b"x")
        names[base] = change_run(run, state="done", lora="lora.safetensors").name
    assert base_of(asked("generate", "--person", "anna")) == "demo-sdxl"
    assert base_of(asked("generate", "--person", "anna", "--lora", names["sdxl"])) == "sdxl"
    assert base_of(asked("generate", "--person", "anna", "--lora", names["demo-sdxl"])) == "demo-sdxl"
    assert base_of(asked("generate", "--person", "anna", "--lora", str(tmp_path / "a.safetensors"))) == "sdxl"


def help_of(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit):
        build_parser().parse_args([command, "--help"])
    return " ".join(capsys.readouterr().out.split()).replace("demo- sdxl", "demo-sdxl")  # lines end at hyphens too


def test_the_help_says_which_one_that_is(card, capsys):
    for name in ("prepare", "headshots"):
        assert "(default: sdxl)" in help_of(name, capsys)
    assert "(default: that of the photos, or of the run to continue; else sdxl)" in help_of("train", capsys)
    assert "(default: that of the training; else sdxl)" in help_of("generate", capsys)
    card[0] = False
    assert "(default: demo-sdxl; sdxl is here too, but takes many hours without a graphics card)" in help_of(
        "headshots", capsys
    )


def test_demo_and_prove_mean_the_demo_all_the_same(card, capsys):
    assert build_parser().parse_args(["demo"]).base == "demo-sdxl"
    assert "(default: demo-sdxl)" in help_of("demo", capsys) and "(default: demo-sdxl)" in help_of("prove", capsys)
