"""A LoRA that says it was trained on another base is used, and it is said once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from headshot_ui.generation.loras import ChosenLora, base_note
from headshot_ui.generation.runner import generate
from headshot_ui.specs import GenerateSpec
from tests.generation.fakes import INFO, FakeBase, Reports, make_store

BASE = replace(INFO, id="sdxl", title="Stable Diffusion XL", folder=Path("models/sdxl-base"))


def note(**header: str) -> str:
    return base_note(ChosenLora("x", Path("x.safetensors"), "0", header), BASE)


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"base": "sdxl"},
        {"base": "SDXL-Base"},
        {"base_title": "stable diffusion xl"},
        {"base": "sdxl", "base_title": "As it was called before"},
        {"ss_sd_model_name": "sdxl-base.safetensors"},
        {"ss_sd_model_name": "C:\\models\\sdxl.ckpt"},
    ],
)
def test_nothing_is_said_of_the_same_base_or_of_none(header: dict[str, str]) -> None:
    assert note(**header) == ""
    assert base_note(None, BASE) == ""


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ({"base": "demo-sdxl"}, "demo-sdxl"),
        ({"base": "demo-sdxl", "base_title": "Demo (draws cartoons)"}, "Demo (draws cartoons)"),
        ({"ss_sd_model_name": "/home/somebody/models/juggernaut.safetensors"}, "juggernaut"),
        ({"ss_sd_model_name": "D:\\private\\realvis.ckpt"}, "realvis"),
        ({"base": "other", "ss_sd_model_name": "another.safetensors"}, "other"),
    ],
)
def test_another_base_is_named_without_folders_of_its_maker(header: dict[str, str], name: str) -> None:
    said = note(**header)
    assert f"trained on “{name}” and is used with “Stable Diffusion XL”" in said
    assert "somebody" not in said and "private" not in said


def test_it_is_told_once_while_the_pictures_are_drawn(tmp_path: Path) -> None:
    file = tmp_path / "theirs.safetensors"
    save_file({"a.lora_A.weight": np.zeros((1, 1), np.float32)}, file, {"ss_sd_model_name": "theirs.safetensors"})
    notes: list[str] = []

    class Listening(Reports):
        def __call__(self, *told: object, note: str | None = None, **more: object) -> None:
            notes.extend([] if note is None else [note])
            super().__call__(*told, **more)  # type: ignore[arg-type]

    spec = GenerateSpec("robin", "fake", prompt="portrait of {subject}", count=3, lora=str(file))
    made = generate(spec, make_store(tmp_path), FakeBase(), Listening())
    assert len(made.pictures) == 3
    (said,) = notes
    assert "trained on “theirs”" in said
