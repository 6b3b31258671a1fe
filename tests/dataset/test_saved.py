import json
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from headshot_ui.dataset import saved
from headshot_ui.dataset.saved import (
    export_zip,
    load_dataset,
    manifest_of,
    save_dataset,
    staging_folder,
    swap_in,
    with_caption,
    with_verdict,
)
from headshot_ui.dataset.types import Dataset, PreparedPhoto
from headshot_ui.errors import DatasetError, StoreError
from tests.dataset.drawn_faces import face_at


def used(number: int, verdict: str = "train", reason: str = "") -> PreparedPhoto:
    return PreparedPhoto(
        f"фото {number}.jpg", verdict, reason, ("rather dark",), f"{number:03d}.png", f"caption {number}",
        face_at(10.5, 20, 30, 40), (300 + number, 300), (0, 0),
    )  # fmt: skip


@pytest.fixture
def dataset(tmp_path) -> Dataset:
    """Two to learn from, one held out, one left out that has a face, and one without."""
    photos = (used(1), used(2), used(3, "held_out"), used(4, "rejected", "The face is blurred: use another."),
              PreparedPhoto("no.jpg", "rejected", "No face was found: use another."))  # fmt: skip
    folder = tmp_path / "dataset"
    folder.mkdir()
    for photo in photos:
        if photo.crop:
            Image.new("RGB", (8, 8)).save(folder / photo.crop)
    whole = Dataset("robin", folder, 256, "tok", "person", photos)
    (folder / "dataset.json").write_text(json.dumps(manifest_of(whole) | {"spec": {"kept": 1}}), encoding="utf-8")
    return load_dataset(folder)


def test_everything_comes_back(dataset):
    assert dataset.photos[:3] == (used(1), used(2), used(3, "held_out"))
    assert (dataset.person, dataset.size_px, dataset.trigger, dataset.class_word) == ("robin", 256, "tok", "person")
    save_dataset(dataset)
    assert load_dataset(dataset.folder) == dataset
    assert json.loads((dataset.folder / "dataset.json").read_text("utf-8"))["spec"] == {"kept": 1}


def test_photos_that_were_left_out_show_no_crop(dataset):
    left_out = dataset.photos[3]
    assert left_out.verdict == "rejected" and left_out.crop == left_out.caption == "" and left_out.face is None


def test_a_moved_folder_is_still_a_dataset(dataset, tmp_path):
    dataset.folder.rename(tmp_path / "elsewhere")
    assert load_dataset(tmp_path / "elsewhere").folder == tmp_path / "elsewhere"


def test_captions_are_changed_here_or_in_the_text_file(dataset):
    save_dataset(with_caption(dataset, "фото 1.jpg", "  portrait of tok\nperson, in a hat "))
    assert (dataset.folder / "001.txt").read_text("utf-8") == "portrait of tok person, in a hat\n"
    (dataset.folder / "002.txt").write_text("by hand\n", encoding="utf-8-sig")
    (dataset.folder / "003.txt").write_text(" \n", encoding="utf-8")
    captions = [photo.caption for photo in load_dataset(dataset.folder).photos[:3]]
    assert captions == ["portrait of tok person, in a hat", "by hand", "caption 3"]


@pytest.mark.parametrize(
    ("source", "text"), [("фото 1.jpg", " "), ("фото 1.jpg", "x" * 501), ("no.jpg", "a"), ("?", "a")]
)
def test_captions_that_make_no_sense_are_refused(dataset, source, text):
    with pytest.raises(DatasetError, match=r"\S"):
        with_caption(dataset, source, text)


def test_a_photo_that_was_left_out_can_be_taken_in_and_out_again(dataset):
    taken_in = with_verdict(dataset, "фото 4.jpg", "train")
    assert taken_in.photos[3] == used(4)
    save_dataset(taken_in)
    again = with_verdict(load_dataset(dataset.folder), "фото 4.jpg", "rejected")
    save_dataset(again)
    assert load_dataset(dataset.folder).photos[3].reason == "Left out by hand."
    save_dataset(with_verdict(load_dataset(dataset.folder), "фото 4.jpg", "held_out"))
    assert load_dataset(dataset.folder).photos[3] == used(4, "held_out")


def test_an_edited_caption_survives_leaving_out(dataset):
    save_dataset(with_caption(dataset, "фото 1.jpg", "mine"))
    save_dataset(with_verdict(load_dataset(dataset.folder), "фото 1.jpg", "rejected"))
    assert with_verdict(load_dataset(dataset.folder), "фото 1.jpg", "train").photos[0].caption == "mine"


def test_verdicts_that_make_no_sense_are_refused(dataset):
    with pytest.raises(DatasetError, match="no face was found"):
        with_verdict(dataset, "no.jpg", "train")
    with pytest.raises(DatasetError, match="verdict"):
        with_verdict(dataset, "фото 1.jpg", "maybe")
    last = with_verdict(dataset, "фото 1.jpg", "rejected")
    with pytest.raises(DatasetError, match="last photo"):
        with_verdict(last, "фото 2.jpg", "held_out")


def test_the_archive_holds_crops_and_captions_of_photos_in_use(dataset, tmp_path):
    with zipfile.ZipFile(export_zip(dataset, tmp_path / "out" / "set.zip")) as archive:
        assert sorted(archive.namelist()) == [
            "001.png", "001.txt", "002.png", "002.txt", "held-out/003.png", "held-out/003.txt"
        ]  # fmt: skip
        assert archive.read("002.txt") == b"caption 2\n"


def test_missing_and_damaged_datasets_say_what_to_do(dataset, tmp_path):
    with pytest.raises(DatasetError, match="prepare the photos first"):
        load_dataset(tmp_path / "nobody")
    (dataset.folder / "002.png").unlink()
    with pytest.raises(StoreError, match=r"002\.png is missing"):
        load_dataset(dataset.folder)
    whole = json.loads((dataset.folder / "dataset.json").read_text("utf-8"))
    for change in ({"photos": [{}]}, {"photos": 3}, {"size_px": None}):
        (dataset.folder / "dataset.json").write_text(json.dumps(whole | change), encoding="utf-8")
        with pytest.raises(StoreError, match=r"damaged: prepare"):
            load_dataset(dataset.folder)
    for name in ("../../secret.png", "/etc/passwd"):
        whole["photos"][0]["crop"] = name
        (dataset.folder / "dataset.json").write_text(json.dumps(whole), encoding="utf-8")
        with pytest.raises(StoreError, match="json is damaged"):
            load_dataset(dataset.folder)


def filled(folder: Path, text: str) -> Path:
    (folder / "is.txt").write_text(text)
    return folder


def test_the_new_dataset_takes_the_place_of_the_old_one(tmp_path):
    target = tmp_path / "robin" / "dataset"
    for text in ("one", "two"):
        swap_in(filled(staging_folder(target), text), target)
        assert (target / "is.txt").read_text() == text
    assert [path.name for path in target.parent.iterdir()] == ["dataset"]


def test_the_old_dataset_is_put_back_when_the_new_one_cannot_be_moved(tmp_path, monkeypatch):
    target = tmp_path / "dataset"
    swap_in(filled(staging_folder(target), "old"), target)
    staged = filled(staging_folder(target), "new")
    real = Path.replace

    def failing(self, other):
        if self == staged:
            raise PermissionError(13, "a virus scanner has it open")
        return real(self, other)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(StoreError, match="could not be replaced"):
        swap_in(staged, target)
    assert (target / "is.txt").read_text() == "old"


def test_a_crash_in_the_middle_of_the_change_loses_nothing(dataset):
    dataset.folder.rename(dataset.folder.with_name(".dataset-old-12345678"))
    assert load_dataset(dataset.folder) == dataset


def test_what_a_crash_left_behind_is_removed_after_a_day(tmp_path):
    target = tmp_path / "dataset"
    young, old = staging_folder(target), staging_folder(target)
    filled(old, "half")
    os.utime(old, (0, 0))
    newest = staging_folder(target)
    assert young.is_dir() and newest.is_dir() and not old.exists()


def test_saving_is_all_or_nothing(dataset, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    before = (dataset.folder / "dataset.json").read_bytes()
    monkeypatch.setattr("os.fsync", full)
    changed = replace(with_caption(dataset, "фото 1.jpg", "new"))
    with pytest.raises(StoreError, match="disk is full"):
        saved.save_dataset(changed)
    assert (dataset.folder / "dataset.json").read_bytes() == before


def test_a_caption_file_in_another_encoding_is_read_or_told_never_passed_over(dataset):
    path = dataset.folder / "001.txt"
    path.write_text("mit Hut und Schürze", encoding="utf-16")
    assert load_dataset(dataset.folder).photos[0].caption == "mit Hut und Schürze"
    path.write_bytes("mit Schürze".encode("latin-1"))
    with pytest.raises(StoreError, match=r"001\.txt cannot be read as text: save it as UTF-8"):
        load_dataset(dataset.folder)
    before = (dataset.folder / "dataset.json").read_bytes()
    with pytest.raises(StoreError, match=r"001\.txt"):
        save_dataset(dataset)
    assert (dataset.folder / "dataset.json").read_bytes() == before
