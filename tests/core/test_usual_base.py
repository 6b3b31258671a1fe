"""Which base model is meant where none is named."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from headshot_ui import families, usual_base
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.runs import change_run, create_run
from headshot_ui.settings import Settings
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store

DEMO = BaseInfo("demo-sdxl", "sdxl", "Demo", Path("."), "MIT", "Draws cartoons.", 256, demo=True)
SDXL = BaseInfo("sdxl", "sdxl", "Stable Diffusion XL 1.0", Path("."), "MIT", "Draws photographs.", 1024)
ANALOG = replace(SDXL, id="analog", title="Analog")
BEAUTY = replace(SDXL, id="beauty", title="beauty")


def settings(device: str, folder: Path = Path(".")) -> Settings:
    return Settings.from_environment(device=device, outputs_dir=folder / "outputs", environment={})


@pytest.mark.parametrize(
    ("bases", "with_card", "without"),
    [
        ((), None, None),
        ((DEMO,), "demo-sdxl", "demo-sdxl"),
        ((DEMO, ANALOG, SDXL), "sdxl", "demo-sdxl"),
        ((DEMO, BEAUTY, ANALOG), "analog", "demo-sdxl"),
        ((BEAUTY,), "beauty", "beauty"),
    ],
    ids=["nothing", "demo", "official", "by-title", "no-demo"],
)
def test_photographs_are_meant_where_a_card_is(
    bases: tuple[BaseInfo, ...], with_card: str | None, without: str | None
) -> None:
    for device, wanted in (("cuda", with_card), ("mps", with_card), ("cpu", without)):
        found = usual_base.usual_base(bases, settings(device))
        assert (found and found.id) == wanted


def test_a_card_is_looked_for_without_torch_and_asked_of_torch_once_it_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for there in (True, False):
        monkeypatch.setattr(usual_base, "gpu_in_sight", lambda there=there: there)
        assert usual_base.has_card(settings("auto")) is there
    assert "torch" not in sys.modules
    known = settings("auto")
    known.__dict__["device"] = "cuda"  # as it is once somebody has asked
    assert usual_base.has_card(known)
    known.__dict__["device"] = "cpu"
    monkeypatch.setattr(usual_base, "gpu_in_sight", lambda: True)
    assert not usual_base.has_card(known), "a driver that torch cannot use is no card"


def test_what_a_processor_means_for_a_large_model_is_said() -> None:
    every = (DEMO, ANALOG, SDXL)
    assert usual_base.about_base(SDXL, every, settings("cuda")) == "Draws photographs."
    assert usual_base.about_base(DEMO, every, settings("cuda")) == "Draws cartoons."
    assert "many hours" in usual_base.about_base(SDXL, every, settings("cpu"))
    assert "“Stable Diffusion XL 1.0” is here too" in usual_base.about_base(DEMO, every, settings("cpu"))
    assert usual_base.about_base(DEMO, (DEMO,), settings("cpu")) == "Draws cartoons."
    assert usual_base.about_base(None, (), settings("cpu")) == "No base model was found."


def test_pictures_are_drawn_with_the_base_of_the_newest_training_that_is_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(families, "all_bases", lambda settings: (DEMO, SDXL))
    store = Store(settings("cuda", tmp_path))
    assert usual_base.trained_base(store, "anna") == ""
    for base, state in (("sdxl", "done"), ("demo-sdxl", "done"), ("gone", "done"), ("sdxl", "cancelled")):
        run = create_run(store, TrainSpec("anna", base))
        (run.folder / "lora.safetensors").write_bytes(b"x")
        change_run(run, state=state, lora="lora.safetensors")
    assert usual_base.trained_base(store, "anna") == "demo-sdxl"
    monkeypatch.setattr(families, "all_bases", lambda settings: ())
    assert usual_base.trained_base(store, "anna") == "gone", "so that it is said what is missing"
