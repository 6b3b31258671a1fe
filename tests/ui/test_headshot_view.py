"""Sets of headshots on disk and what one browser sees of them."""

from __future__ import annotations

import os

import pytest

from headshot_ui.errors import StoreError
from headshot_ui.specs import GenerateSpec
from headshot_ui.stars import set_star, starred
from headshot_ui.store import Store
from headshot_ui.ui import headshot_view as views
from headshot_ui.ui.headshot_view import View
from headshot_ui.ui.picture_sets import (
    BIN,
    delete_picture,
    empty_bins,
    facts_of,
    find_sets,
    narrowed,
    picture_id,
    sets_mark,
    settings_of,
    undelete_picture,
)
from tests.ui.studio_stub import BASE, PERSON, draw_set, studio_settings

SPEC = GenerateSpec(PERSON, BASE.id, presets=("navy-suit", "white-shirt"), count=8, seed=5, lora="run-1", keep_best=3)


@pytest.fixture
def store(tmp_path):
    return Store(studio_settings(tmp_path))


def test_the_newest_set_is_seen_first_and_others_by_name(store):
    first, second = draw_set(store, SPEC), draw_set(store, SPEC)
    os.utime(first.folder / "headshots.json", (1, 1))
    seen = views.look(store, PERSON, View())
    assert [each.folder for each in seen.sets] == [second.folder, first.folder]
    assert seen.view.set_id == second.folder.name and seen.picture == seen.pictures[0]
    assert views.look(store, PERSON, View(first.folder.name)).shown.folder == first.folder
    assert views.look(store, PERSON, View("../../etc")).shown.folder == second.folder
    assert views.look(store, PERSON, View(picture="../../etc")).picture == seen.pictures[0]


def test_nobody_and_nothing_are_no_errors(store):
    assert views.look(store, "", View()).shown is None
    assert views.look(store, "stranger", View("x", "y", 9, "z")).pictures == ()
    assert sets_mark(store, "") == () and views.heading(views.look(store, "", View()), "")["text"]


def test_a_damaged_set_hides_no_other(store):
    made = draw_set(store, SPEC)
    damaged = store.headshots_dir(PERSON) / "damaged"
    damaged.mkdir()
    (damaged / "headshots.json").write_text('{"pictures": [3]}')
    assert [each.folder for each in find_sets(store, PERSON)] == [made.folder]


def test_starred_and_best_narrow_a_set_down(store):
    pictures = draw_set(store, SPEC).pictures
    set_star(store, PERSON, pictures[5].path, True)
    stars = starred(store, PERSON)
    assert narrowed(pictures, "starred", stars) == (pictures[5],)
    best = narrowed(pictures, "best", stars)
    assert len(best) == 4 and best == pictures[:4], "a quarter of the 14 with a face, rounded up"
    assert narrowed(pictures, "nonsense", stars) == pictures
    labels = [name for name, _ in views.which_choices(views.look(store, PERSON, View()))]
    assert labels == ["All (16)", "Starred (1)", "Best (4)"]


def test_the_grid_tells_rank_likeness_and_star(store, tmp_path):
    pictures = draw_set(store, SPEC).pictures
    set_star(store, PERSON, pictures[1].path, True)
    grid = views.grid_values(views.look(store, PERSON, View()), tmp_path / "shown")
    first, second = grid["shots"][:2]
    assert first["first"] == "1. 96 %" and first["current"] and not first["starred"]
    assert second["starred"] and second["alt"] == "White shirt, blue studio, likeness 95 %, seed 6"
    assert "not ranked: no face was found" in grid["shots"][7]["second"] and "%" not in grid["shots"][7]["first"]
    assert grid["pages"] == ""


def test_many_pictures_are_paged_and_the_large_one_is_of_the_page(store, tmp_path):
    draw_set(store, GenerateSpec(PERSON, BASE.id, presets=("navy-suit",), count=100))
    seen = views.look(store, PERSON, View())
    assert len(views.grid_values(seen, tmp_path / "shown")["shots"]) == 48
    turned = views.look(store, PERSON, views.turned(seen, "2"))
    grid = views.grid_values(turned, tmp_path / "shown")
    assert (len(grid["shots"]), grid["pages"], grid["has_before"], grid["has_after"]) == (4, "Page 3 of 3", True, False)
    assert turned.picture == turned.pictures[96]
    assert views.turned(seen, "../..").page == 0
    assert len(list((tmp_path / "shown" / "small").iterdir())) == 52, "only what was looked at is copied"


def test_an_opened_picture_shows_its_facts(store):
    made = draw_set(store, SPEC, refined=True)
    seen = views.look(store, PERSON, View(picture=picture_id(made.pictures[2].path)))
    facts = {fact["name"]: fact["value"] for fact in facts_of(seen.picture, 16)}
    assert facts["Likeness"] == "94 %" and facts["Rank"] == "3 of 16" and facts["Seed"] == "7"
    assert facts["Refiner"] == "finished by the refiner" and facts["Size"] == "256 × 256 pixels"
    assert facts["Steps"] == "16" and facts["Look"] == "Navy suit, grey studio"


def test_a_star_is_given_and_taken_only_to_pictures_there_are(store):
    made = draw_set(store, SPEC)
    wanted = picture_id(made.pictures[3].path)
    views.toggle_star(store, PERSON, views.look(store, PERSON, View()), wanted)
    assert starred(store, PERSON) == (made.pictures[3].path,)
    views.toggle_star(store, PERSON, views.look(store, PERSON, View()), "0123456789abcdef")
    assert starred(store, PERSON) == (made.pictures[3].path,), "an unknown id must not star the first picture"
    views.toggle_star(store, PERSON, views.look(store, PERSON, View()), wanted)
    assert starred(store, PERSON) == ()


def test_a_deleted_picture_comes_back_until_the_next_is_deleted(store):
    made = draw_set(store, SPEC)
    seen = views.look(store, PERSON, View())
    first, second = made.pictures[0].path, made.pictures[1].path
    mark = sets_mark(store, PERSON)
    aside = delete_picture(store, PERSON, first)
    assert not first.exists() and len(views.look(store, PERSON, View()).pictures) == 15
    assert sets_mark(store, PERSON) == mark, "the page must not jump to another set because of it"
    assert views.look(store, PERSON, views.neighbour(seen)).picture.path == second
    assert undelete_picture(aside) == first and first.exists() and not (made.folder / BIN).exists()
    aside = delete_picture(store, PERSON, first)
    delete_picture(store, PERSON, second)
    with pytest.raises(StoreError, match="could not be brought back: it is not there"):
        undelete_picture(aside)
    empty_bins(store, PERSON)
    assert not (made.folder / BIN).exists()


def test_the_last_picture_can_be_deleted_too(store):
    made = draw_set(store, GenerateSpec(PERSON, BASE.id, presets=("navy-suit",), count=1))
    seen = views.look(store, PERSON, View())
    delete_picture(store, PERSON, made.pictures[0].path)
    assert views.look(store, PERSON, views.neighbour(seen)).shown is None


def test_a_picture_gives_its_settings_back(store):
    made = draw_set(store, SPEC)
    spec = settings_of(made.pictures[1])
    assert (spec.presets, spec.prompt, spec.seed, spec.lora, spec.steps) == (("white-shirt",), "", 6, "run-1", 16)
    assert spec.keep_best is None
    own = draw_set(store, GenerateSpec(PERSON, BASE.id, prompt="portrait of {subject}", count=1))
    assert settings_of(own.pictures[0]).prompt == "portrait of {subject}"
    made.pictures[0].path.write_bytes(b"no png")
    with pytest.raises(StoreError):
        settings_of(made.pictures[0])


def test_drawing_again_uses_new_seeds_and_two_clicks_mean_one_request(store):
    draw_set(store, SPEC)
    seen = views.look(store, PERSON, View())
    spec = views.again_request(seen)
    assert spec == views.again_request(views.look(store, PERSON, View()))
    used = {picture.seed for picture in seen.pictures}
    assert not used & set(range(spec.seed, spec.seed + spec.count)) and spec.presets == ("navy-suit",)
