"""The export box: how pictures will be cut, what is asked for, and what became of it."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from headshot_ui import families
from headshot_ui.dataset.types import Face
from headshot_ui.errors import SpecError
from headshot_ui.specs import EXPORT_LAYOUTS, ExportSpec, GenerateSpec
from headshot_ui.stars import set_star
from headshot_ui.store import Store
from headshot_ui.ui import export_box, export_view
from headshot_ui.ui.live import Live
from tests.ui.studio_stub import BASE, PERSON, StudioEngine, draw_set, studio_settings


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setattr(families, "all_bases", lambda settings: (BASE,))
    return studio_settings(tmp_path)


@pytest.fixture
def picture(settings) -> Path:
    return draw_set(Store(settings), GenerateSpec(PERSON, BASE.id, presets=("navy-suit",), count=1)).pictures[0].path


def test_every_layout_is_offered():
    assert [value for _, value in export_view.layout_choices()] == list(EXPORT_LAYOUTS)


def test_cuts_are_shown_for_the_chosen_layouts_around_the_face(settings, picture, tmp_path, monkeypatch):
    face = Face((80, 50, 176, 180), ((100, 100), (150, 100), (128, 130), (105, 150), (150, 150)), 0.99)
    monkeypatch.setattr(export_view, "faces_in", lambda *_: (face,))
    cuts = export_view.cut_values(settings, tmp_path / "shown", picture, ["badge", "linkedin", "nonsense"])["cuts"]
    assert [(cut["title"], cut["size"]) for cut in cuts] == [
        ("LinkedIn", "800 × 800 pixels"),
        ("Badge", "413 × 531 pixels"),
    ]
    assert all(cut["picture"].endswith(".webp") for cut in cuts) and cuts[0]["picture"] != cuts[1]["picture"]
    assert export_view.cut_values(settings, tmp_path / "shown", picture, [])["cuts"] == []
    assert export_view.cut_values(settings, tmp_path / "shown", picture.parent / "gone.png", ["cv"])["cuts"] == []
    assert export_view.cut_values(settings, tmp_path / "shown", None, ["cv"])["cuts"] == []


def test_without_a_detector_the_middle_is_shown_and_said(settings, picture, tmp_path):
    (cut,) = export_view.cut_values(settings, tmp_path / "shown", picture, ["cv"])["cuts"]
    assert "No face was found" in cut["note"]


def test_the_request_names_its_wrong_field():
    with pytest.raises(SpecError) as caught:
        export_view.export_request(PERSON, (), [], "jpeg", True)
    assert caught.value.field == "layouts"
    with pytest.raises(SpecError) as caught:
        export_view.export_request(PERSON, (), ["cv"], "exe", True)
    assert caught.value.field == "file_type"
    spec = export_view.export_request(PERSON, (Path("a.png"),), ["cv"], "webp", False)
    assert spec == ExportSpec(PERSON, ("a.png",), ("cv",), "webp", disclose=False)


def test_the_starred_button_counts_and_is_dead_only_without_stars(settings, picture):
    store = Store(settings)
    button = export_box.starred_value(store, PERSON)
    assert button.interactive is False and button.value == "Export starred (0)"
    set_star(store, PERSON, picture, True)
    button = export_box.starred_value(store, PERSON)
    assert button.interactive is True and button.value == "Export starred (1)"


def test_a_finished_export_can_be_downloaded_and_is_found_again_after_a_restart(settings, picture, tmp_path):
    engine = StudioEngine(settings)
    live = Live(engine, settings, tmp_path / "shown")
    assert export_view.newest_export(live, engine.store, PERSON, tmp_path / "shown") == export_view.Exported(())
    mark = export_view.export_mark(live, PERSON)
    job = live.submit(ExportSpec(PERSON, (str(picture),), ("cv", "badge"), "png"))
    assert job.wait(20).state == "done" and export_view.export_mark(live, PERSON) != mark
    made = export_view.newest_export(live, engine.store, PERSON, tmp_path / "shown")
    assert made.lines[0].startswith("2 files in ") and tmp_path / "shown" in Path(made.archive).parents
    assert Path(made.archive).name == "anna-headshots.zip" and len(zipfile.ZipFile(made.archive).namelist()) == 2
    later = export_view.newest_export(Live(engine, settings, tmp_path), engine.store, PERSON, tmp_path / "shown")
    assert later.lines[0].startswith("Last export:") and later.archive
    assert export_view.newest_export(live, engine.store, "bob", tmp_path / "shown").archive == ""
    engine.close()


def test_a_failed_export_says_why(settings, tmp_path):
    engine = StudioEngine(settings)
    live = Live(engine, settings, tmp_path / "shown")
    live.submit(ExportSpec(PERSON, (str(tmp_path / "gone.png"),), ("cv",))).wait(20)
    made = export_view.newest_export(live, engine.store, PERSON, tmp_path / "shown")
    assert "gone.png" in made.lines[0] and made.archive == ""
    engine.close()
