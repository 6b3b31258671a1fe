"""The contact sheet of a set and the zip of it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from PIL import Image

from headshot_ui import sheet
from headshot_ui.generation.contact_sheet import WIDTH
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import Store, save_png
from headshot_ui.ui import set_view
from headshot_ui.ui.picture_sets import PictureSet, delete_picture
from tests.ui.studio_stub import BASE, PERSON, draw_set, studio_settings

SPEC = GenerateSpec(PERSON, BASE.id, presets=("navy-suit", "white-shirt"), count=2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(studio_settings(tmp_path))


def on_view(store: Store, set_id: str) -> PictureSet | None:
    return set_view.set_on_view(store, PERSON, set_id)


def test_a_sheet_is_made_once_beside_the_page_and_anew_when_a_picture_goes(store, tmp_path, monkeypatch):
    made = draw_set(store, SPEC)
    shown = tmp_path / "shown"
    first = set_view.sheet_of(on_view(store, made.folder.name), store, shown, PERSON)
    with Image.open(first) as image:
        assert image.width == WIDTH and image.height > 500
    assert first.is_relative_to(shown) and not (made.folder / sheet.FILE_NAME).exists()
    monkeypatch.setattr(sheet, "contact_sheet", lambda *args, **options: pytest.fail("made twice"))
    assert set_view.sheet_of(on_view(store, ""), store, shown, PERSON) == first, "no id means the newest set"
    monkeypatch.undo()
    key = set_view.set_key(on_view(store, made.folder.name))
    delete_picture(store, PERSON, made.pictures[0].path)
    assert set_view.set_key(on_view(store, made.folder.name)) != key
    assert set_view.sheet_of(on_view(store, made.folder.name), store, shown, PERSON) != first


def test_the_sheet_of_a_whole_job_is_shown_as_long_as_it_is_true(store, tmp_path):
    made = draw_set(store, SPEC)
    names = [picture.path.name for picture in made.pictures]
    save_png(made.folder / sheet.FILE_NAME, Image.new("RGB", (30, 40), "red"), {sheet.SHOWN: names})
    shown = set_view.sheet_of(on_view(store, made.folder.name), store, tmp_path / "shown", PERSON)
    assert Image.open(shown).size == (30, 40)
    delete_picture(store, PERSON, made.pictures[3].path)
    later = set_view.sheet_of(on_view(store, made.folder.name), store, tmp_path / "shown", PERSON)
    assert Image.open(later).width == WIDTH
    assert Image.open(made.folder / sheet.FILE_NAME).size == (30, 40), "what lies on disk is left alone"


def test_the_zip_holds_every_picture_as_it_is_best_first(store, tmp_path):
    made = draw_set(store, SPEC)
    path = set_view.zip_of(on_view(store, made.folder.name), tmp_path / "shown", PERSON)
    assert path.name == f"{PERSON}-{made.folder.name}.zip"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        assert [archive.read(name) for name in names] == [picture.path.read_bytes() for picture in made.pictures]
    assert sorted(names) == names
    assert set_view.zip_label(on_view(store, "")) == "Download all 4 pictures (zip)"


def test_few_zips_are_kept_and_nothing_is_made_of_nothing(store, tmp_path):
    assert set_view.zip_of(on_view(store, ""), tmp_path, PERSON) is None
    assert set_view.sheet_of(on_view(store, ""), store, tmp_path, PERSON) is None
    assert set_view.set_key(set_view.set_on_view(store, "", "")) == ""
    for _ in range(set_view.KEPT + 2):
        set_view.zip_of(on_view(store, draw_set(store, SPEC).folder.name), tmp_path, PERSON)
    assert len(list((tmp_path / "zips").iterdir())) == set_view.KEPT
