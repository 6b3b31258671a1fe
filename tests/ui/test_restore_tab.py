"""From the fields of the Restore tab to a request, restored pictures as they are shown, and what is new."""

from __future__ import annotations

from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from headshot_ui import families
from headshot_ui.dataset.types import Face
from headshot_ui.errors import SpecError, StoreError
from headshot_ui.restoration import licence
from headshot_ui.specs import GenerateSpec, RestoreSpec
from headshot_ui.stars import set_star, starred
from headshot_ui.store import Store, write_bytes_atomic
from headshot_ui.ui import restore_form, restore_request
from headshot_ui.ui import restored_view as views
from headshot_ui.ui.live import Live
from headshot_ui.ui.picture_sets import delete_picture, picture_id, undelete_picture
from headshot_ui.ui.restored_view import View
from headshot_ui.ui.tab import Shell
from headshot_ui.ui.tabs import restore
from tests.ui.fake_engine import portrait
from tests.ui.studio_stub import BASE, PERSON, StudioEngine, draw_set, studio_settings

LANDMARKS = ((100, 100), (150, 100), (128, 130), (105, 150), (150, 150))


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setattr(families, "all_bases", lambda settings: (BASE,))
    return studio_settings(tmp_path)


@pytest.fixture
def engine(settings):
    made = StudioEngine(settings)
    yield made
    made.close()


@pytest.fixture
def old_photo(tmp_path) -> Path:
    path = tmp_path / "given" / "old group.png"
    path.parent.mkdir()
    portrait(4, "").save(path)
    return path


def restored(engine, *pictures, **changes):
    """Restore and wait."""
    spec = RestoreSpec(PERSON, tuple(map(str, pictures)), "demo", **changes)
    return engine.submit(spec).wait(20).result


def request(settings, pictures, restorer="demo", weight=0.5, faces=(), factor=1, outline=False, person=PERSON):
    return restore_request.restore_request(person, pictures, restorer, weight, faces, factor, outline, settings)


# --- what can be chosen ---------------------------------------------------------------------------
def test_a_restorer_that_is_not_installed_says_so_and_the_usable_one_is_chosen(settings):
    choices = restore_request.restorer_choices(settings)
    by_id = {choice.id: choice for choice in choices}
    assert "not installed" in by_id["codeformer"].missing or "needs the package" in by_id["codeformer"].missing
    assert by_id["demo"].missing == "" and restore_request.first_usable(choices) == by_id["demo"]
    names = dict((value, name) for name, value in restore_form.dropdown_choices(choices))
    assert names["codeformer"].endswith("(not ready)") and "not ready" not in names["demo"]
    values = restore_form.restorer_values(by_id["codeformer"])
    assert values[1]["text"] == by_id["codeformer"].missing and values[-1].interactive is False
    assert restore_form.restorer_values(by_id["demo"])[-1].interactive is True


def test_a_licence_is_shown_until_it_is_accepted(settings):
    write_bytes_atomic(settings.models_dir / "codeformer" / "codeformer.pth", b"fake")
    before = {each.id: each for each in restore_request.restorer_choices(settings)}["codeformer"]
    assert "non-commercial" in before.terms and "accept its licence" in before.missing
    assert restore_form.restorer_values(before)[3].visible is True
    licence.accept(settings, "codeformer")
    after = {each.id: each for each in restore_request.restorer_choices(settings)}["codeformer"]
    assert after.terms == "" and after.missing == "" and restore_form.restorer_values(after)[3].visible is False
    assert "S-Lab" in after.note, "what licence it is stays visible"


def test_headshots_to_choose_from_begin_with_those_sent_here_and_starred_ones(settings, tmp_path):
    store = Store(settings)
    pictures = draw_set(store, GenerateSpec(PERSON, BASE.id, presets=("navy-suit",), count=60)).pictures
    draw_set(store, GenerateSpec("bob", BASE.id, presets=("navy-suit",), count=1))
    set_star(store, PERSON, pictures[50].path, True)
    tiles = restore_request.pick_tiles(store, PERSON, tmp_path / "shown", [pictures[59].path])
    assert [tile["id"] for tile in tiles[:2]] == [picture_id(pictures[59].path), picture_id(pictures[50].path)]
    assert [tile["group"] for tile in tiles[:3]] == ["Chosen in Generate", "Starred", "Newest"] and len(tiles) == 48
    assert restore_request.pick_tiles(store, "", tmp_path / "shown") == []


def test_pictures_named_by_the_browser_are_looked_up_among_ones_own(settings, old_photo):
    store = Store(settings)
    mine = draw_set(store, GenerateSpec(PERSON, BASE.id, presets=("navy-suit",), count=2)).pictures
    other = draw_set(store, GenerateSpec("bob", BASE.id, presets=("navy-suit",), count=1)).pictures
    picks = {"chosen": [picture_id(mine[1].path), picture_id(other[0].path), "/etc/passwd", "../x", 3]}
    paths = restore_request.chosen_paths(store, PERSON, picks, [str(old_photo)])
    assert paths == (mine[1].path, old_photo)


def test_faces_of_a_single_picture_can_be_chosen(settings, old_photo, tmp_path, monkeypatch):
    found = [Face((80, 50, 176, 180), LANDMARKS, 0.9), Face((0, 0, 40, 40), LANDMARKS, 0.9)]
    monkeypatch.setattr(restore_request, "faces_in", lambda *_: tuple(found))
    tiles, note = restore_request.face_tiles(settings, tmp_path / "shown", [old_photo])
    assert [tile["title"] for tile in tiles] == ["Face 1", "Face 2"] and "2 faces were found" in note
    assert all(tile["picture"] for tile in tiles)
    assert restore_request.face_tiles(settings, tmp_path / "shown", [old_photo, old_photo]) == ([], "")
    del found[1]
    assert restore_request.face_tiles(settings, tmp_path / "shown", [old_photo]) == ([], "")
    found.clear()
    tiles, note = restore_request.face_tiles(settings, tmp_path / "shown", [old_photo])
    assert tiles == [] and "No face was found" in note
    monkeypatch.setattr(restore_request, "faces_in", lambda *_: None)
    assert restore_request.face_tiles(settings, tmp_path / "shown", [old_photo]) == ([], ""), "no detector is no reason"


def test_ticked_faces_become_numbers():
    assert restore_request.chosen_faces({"chosen": ["3", "1"]}, ("1", "2", "3")) == (1, 3)
    assert restore_request.chosen_faces({"chosen": ["1", "2"]}, ("1", "2")) == ()
    assert restore_request.chosen_faces({"chosen": ["9", "x"]}, ()) == ()
    with pytest.raises(SpecError, match="tick at least one") as caught:
        restore_request.chosen_faces({"chosen": ["7"]}, ("1", "2"))
    assert caught.value.field == "faces"


# --- the request ----------------------------------------------------------------------------------
def test_the_request_holds_what_was_chosen(settings, old_photo):
    spec = request(settings, [old_photo], weight=0.3, faces=(2,), factor=2)
    assert spec == RestoreSpec(PERSON, (str(old_photo),), "demo", 0.3, (2,), 2, False)


@pytest.mark.parametrize(
    ("changes", "field", "sentence"),
    [
        ({"pictures": []}, "pictures", "No picture was given"),
        ({"person": ""}, "person", "Choose a person"),
        ({"restorer": "codeformer"}, "restorer", "CodeFormer"),
        ({"restorer": "nobody"}, "restorer", "Choose a restorer"),
        ({"weight": 2}, "fidelity_weight", "from 0 to 1"),
        ({"factor": 3}, "upscale", "1, 2 or 4"),
    ],
)
def test_what_is_wrong_names_its_field(settings, old_photo, changes, field, sentence):
    with pytest.raises(SpecError, match=sentence) as caught:
        request(settings, **{"pictures": [old_photo], **changes})
    assert caught.value.field == field
    texts = [value["text"] for value in restore_form.problem_values(field, "x")]
    assert texts.count("x") == 1 and (texts[-1] == "x") == (field == "person")


# --- results --------------------------------------------------------------------------------------
def test_before_and_after_are_shown_with_likeness_and_warning(engine, old_photo, tmp_path):
    restored(engine, old_photo, fidelity_weight=0.5, upscale=2)
    seen = views.look(engine.store, PERSON, View())
    compare = views.compare_values(seen, tmp_path / "shown")
    assert compare["before"] and compare["after"] and compare["before"] != compare["after"]
    assert compare["alt"] == "old group.png"
    values = views.fact_values(seen)
    facts = {fact["name"]: fact["value"] for fact in values["facts"]}
    assert facts["Likeness"] == "81 % before, 84 % after" and facts["Faces"] == "3 of 3 repaired"
    assert facts["Size"].startswith("512 × 512 pixels") and values["warning"] == ""
    restored(engine, old_photo, fidelity_weight=0.0)
    assert "less like the person" in views.fact_values(views.look(engine.store, PERSON, View()))["warning"]


def test_faces_left_alone_are_told_and_can_be_ticked(engine, old_photo, tmp_path):
    restored(engine, old_photo, faces=(2,), upscale=2)
    tiles, repaired = views.face_values(views.look(engine.store, PERSON, View()), tmp_path / "shown")
    assert [tile["title"] for tile in tiles][:2] == ["Face 1: It was not chosen.", "Face 2: repaired"]
    assert repaired == ["2"] and all(tile["picture"] for tile in tiles)


def test_the_crop_of_a_face_fits_a_smaller_copy_of_the_picture(engine, old_photo):
    made = restored(engine, old_photo)
    shown = views.look(engine.store, PERSON, View()).shown
    whole = views._crop(shown, made.pictures[0].faces[0].box)
    small = Image.open(made.pictures[0].before)
    small.resize((128, 128)).save(made.pictures[0].before)
    half = views._crop(shown, made.pictures[0].faces[0].box)
    middle = (whole.width // 2, whole.height // 2)
    assert max(abs(a - b) for a, b in zip(whole.getpixel(middle), half.getpixel(middle), strict=True)) < 12


def test_other_weights_stand_side_by_side(engine, old_photo, tmp_path):
    other = tmp_path / "given" / "another.png"
    portrait(9, "").save(other)
    restored(engine, old_photo, other, fidelity_weight=0.5)
    assert views.variant_values(views.look(engine.store, PERSON, View()), tmp_path / "shown") == {"variants": []}
    restored(engine, old_photo, fidelity_weight=0.9)
    made = restored(engine, old_photo, fidelity_weight=0.1)
    seen = views.look(engine.store, PERSON, View(picture_id(made.pictures[0].path)))
    variants = views.variant_values(seen, tmp_path / "shown")["variants"]
    assert [each["title"] for each in variants] == ["Before", "Weight 0.1", "Weight 0.5", "Weight 0.9"]
    assert [each["current"] for each in variants] == [False, True, False, False]


def test_trying_again_keeps_all_but_weight_and_faces(engine, old_photo):
    restored(engine, old_photo, upscale=2)
    seen = views.look(engine.store, PERSON, View())
    again = views.again_request(seen, 0.8, (1,))
    assert again == RestoreSpec(PERSON, (str(old_photo),), "demo", 0.8, (1,), 2, False)
    old_photo.unlink()
    assert "no longer there" in views.why_not_again(seen)
    with pytest.raises(StoreError, match="add it again"):
        views.again_request(seen, 0.8, ())


def test_results_are_listed_starred_and_deleted(engine, old_photo, tmp_path):
    first = restored(engine, old_photo).pictures[0].path
    seen = views.look(engine.store, PERSON, View())
    views.toggle_star(engine.store, PERSON, seen, "../../etc/passwd")
    assert starred(engine.store, PERSON) == ()
    views.toggle_star(engine.store, PERSON, seen, picture_id(first))
    grid = views.grid_values(views.look(engine.store, PERSON, View()), tmp_path / "shown")
    assert grid["shots"][0]["starred"] and grid["shots"][0]["first"] == "Weight 0.5"
    aside = delete_picture(engine.store, PERSON, first)
    assert views.look(engine.store, PERSON, views.neighbour(seen)).made == ()
    assert undelete_picture(aside) == first and len(views.look(engine.store, PERSON, View()).made) == 1
    assert views.look(engine.store, "bob", View()).made == () and views.look(engine.store, "", View()).shown is None


def test_a_damaged_record_hides_no_other(engine, old_photo):
    made = restored(engine, old_photo)
    for number, text in enumerate(("{", "[]", '{"pictures": []}')):
        folder = engine.store.restored_dir(PERSON) / f"damaged-{number}"
        folder.mkdir()
        (folder / "restored.json").write_text(text)
    assert [each.picture.path for each in views.find_made(engine.store, PERSON)] == [made.pictures[0].path]


# --- what is new ----------------------------------------------------------------------------------
def test_a_refresh_has_a_value_for_every_output_and_shows_new_results_once(
    settings, engine, old_photo, tmp_path, monkeypatch
):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "shown"))
    with gr.Blocks():
        shell = Shell(engine, settings, Live(engine, settings, tmp_path / "shown"), tmp_path / "shown",
                      gr.Dropdown([PERSON]), gr.Timer(1, active=False), gr.Tabs(), gr.State(0.0), gr.Textbox(),
                      gr.HTML(), gr.State(), gr.State(), gr.HTML())  # fmt: skip
        built = restore.build(shell)
    values, mark = built.refresh(PERSON, None)
    assert len(values) == len(built.outputs) and built.refresh(PERSON, mark) is None
    job = shell.live.submit(RestoreSpec(PERSON, (str(old_photo),), "demo"))
    assert job.wait(20).state == "done"
    values, mark = built.refresh(PERSON, mark)
    at = {output.elem_id: value for output, value in zip(built.outputs, values, strict=True)}
    assert at["compare"]["after"] and len(at["restored-grid"]["shots"]) == 1
    assert at["restored-download"].value["orig_name"] == "old group.png"
    values, _ = built.refresh("bob", mark)
    at = {output.elem_id: value for output, value in zip(built.outputs, values, strict=True)}
    assert at["compare"]["after"] == "" and at["restored-grid"]["shots"] == []
