"""Checked photos as the page shows and changes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headshot_ui.dataset.saved import load_dataset, save_dataset
from headshot_ui.dataset.types import Dataset, Face, PreparedPhoto
from headshot_ui.errors import HeadshotError, SpecError
from headshot_ui.settings import Settings
from headshot_ui.store import Store
from headshot_ui.ui import photos
from tests.ui.fake_engine import FACE, portrait

TURNED = Face(FACE.box, ((100, 100), (150, 100), (165, 130), (105, 150), (150, 150)), 0.9)
GROUP = "Several faces were found; give a photo of you alone."


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Settings.from_environment(outputs_dir=tmp_path / "outputs"))


@pytest.fixture
def prepared(store: Store) -> Dataset:
    """Four photos: two used, one held out, one left out that shows a face; and one without any."""
    folder = store.dataset_dir("anna")
    folder.mkdir(parents=True)
    made = []
    for number, verdict in enumerate(("train", "train", "held_out", "train")):
        portrait(number, "x").save(folder / f"{number}.png")
        made.append(PreparedPhoto(f"{number}.jpg", verdict, "", (), f"{number}.png", "tok person", FACE, (256, 256)))
    made.append(PreparedPhoto("group.jpg", "rejected", GROUP))
    dataset = Dataset("anna", folder, 256, "tok", "person", tuple(made))
    save_dataset(dataset)
    photos.change_verdict(store, "anna", "3.jpg", "rejected")
    return load_dataset(folder)


def test_the_grid_shows_verdicts_and_reasons(store, prepared):
    values = photos.grid_values(store, "anna", photos.photos_of(store, "anna"))
    shown = [(photo["name"], photo["label"], bool(photo["picture"])) for photo in values["photos"]]
    assert shown == [
        ("0.jpg", "Used", True), ("1.jpg", "Used", True), ("2.jpg", "Kept to measure likeness", True),
        ("3.jpg", "Left out", True), ("group.jpg", "Left out", False),
    ]  # fmt: skip
    assert values["photos"][4]["reason"] == GROUP
    assert values["count"] == "2 photos to learn from, 1 kept to measure likeness, 2 left out."


def test_a_caption_is_saved_and_can_be_undone(store, prepared):
    changed = photos.change_caption(store, "anna", "0.jpg", "  tok person,\n smiling ")
    assert load_dataset(prepared.folder).photos[0].caption == "tok person, smiling"
    photos.undo(store, changed)
    assert load_dataset(prepared.folder).photos[0].caption == "tok person"
    with pytest.raises(SpecError, match="is empty"):
        photos.change_caption(store, "anna", "0.jpg", " ")


def test_leaving_out_and_taking_in_can_be_undone(store, prepared):
    changed = photos.change_verdict(store, "anna", "2.jpg", "rejected")
    photos.undo(store, changed)
    assert load_dataset(prepared.folder).photos[2].verdict == "held_out"
    changed = photos.change_verdict(store, "anna", "3.jpg", "train")
    assert load_dataset(prepared.folder).photos[3].verdict == "train"
    photos.undo(store, changed)
    back = load_dataset(prepared.folder).photos[3]
    assert (back.verdict, back.reason) == ("rejected", "Left out by hand.")


def test_what_cannot_be_done_is_refused_in_words(store, prepared):
    with pytest.raises(SpecError, match="cannot be used"):
        photos.change_verdict(store, "anna", "group.jpg", "train")
    photos.change_verdict(store, "anna", "0.jpg", "rejected")
    with pytest.raises(SpecError, match="last photo to learn from"):
        photos.change_verdict(store, "anna", "1.jpg", "rejected")
    with pytest.raises(HeadshotError, match="changed meanwhile"):
        photos.change_caption(store, "anna", "gone.jpg", "x")


def test_an_edit_is_no_new_set(store, prepared):
    number, changed_ns = photos.state_of(store, "anna")
    photos.change_caption(store, "anna", "0.jpg", "tok person, outdoors")
    assert photos.state_of(store, "anna")[0] == number and photos.state_of(store, "anna")[1] > changed_ns
    assert photos.state_of(store, "nobody") == (0, 0)


def used(count: int, face: Face, *warnings: str) -> list[PreparedPhoto]:
    return [PreparedPhoto(f"{n}.jpg", "train", "", warnings, f"{n}.png", "c", face) for n in range(count)]


def test_advice_names_what_is_missing():
    turned = replace(FACE, landmarks=TURNED.landmarks)
    assert photos.advice([*used(9, FACE), *used(3, turned)]) == ""
    assert "With only 3 photos" in photos.advice(used(3, turned))
    assert "straight into the camera" in photos.advice(used(12, FACE))
    assert "12 of 12 are a little blurred" in photos.advice(used(12, turned, "a little blurred"))
