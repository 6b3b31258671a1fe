"""What somebody put into the models folder: listed with what it is, or why it cannot be used."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from headshot_ui.downloads.catalogue import load_catalogue
from headshot_ui.own_models import folder_mark, own_models
from headshot_ui.settings import Settings
from tests.tiny_flux import make_tiny_flux


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "models").mkdir()
    return Settings.from_environment(models_dir=tmp_path / "models", outputs_dir=tmp_path / "outputs", device="cpu")


def put(path: Path, age_s: float, content: bytes = b"no tensors") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    os.utime(path, (time.time() - age_s,) * 2)
    return path


def test_what_can_be_used_and_what_cannot(settings: Settings) -> None:
    models = settings.models_dir
    assert own_models(settings) == ()
    make_tiny_flux(models / "mine", described=False)
    wrong = put(models / "favourite.safetensors", 60)
    usable, unusable = own_models(settings)
    assert (usable.id, usable.path, usable.problem) == ("mine", models / "mine", "") and usable.title
    assert (unusable.path, unusable.note) == (wrong, "") and str(wrong) in unusable.problem


def test_what_was_downloaded_is_not_told_twice(settings: Settings) -> None:
    for file in load_catalogue()["sdxl"].files[:3]:
        put(settings.models_dir / file.place, 60)
    assert own_models(settings) == ()


def test_the_mark_changes_with_the_folder_but_not_while_a_file_is_copied(settings: Settings) -> None:
    empty = folder_mark(settings)
    path = put(settings.models_dir / "a" / "b.safetensors", 0)
    assert folder_mark(settings) == empty, "it may still grow"
    os.utime(path, (time.time() - 60,) * 2)
    there = folder_mark(settings)
    assert there != empty and folder_mark(settings) == there
    put(path, 50, b"others")
    assert folder_mark(settings) != there
    path.unlink()
    assert folder_mark(settings) == empty
    assert folder_mark(Settings.from_environment(models_dir=settings.models_dir / "none")) == empty
