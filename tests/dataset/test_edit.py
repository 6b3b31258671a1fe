"""Single photos changed by hand: captions and verdicts, refused where they make no sense, and learned afterwards."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headshot_ui.dataset.edit import LONGEST_CAPTION, crop_path, set_caption, set_verdict
from headshot_ui.dataset.saved import load_dataset, save_dataset
from headshot_ui.dataset.types import Dataset
from headshot_ui.errors import DatasetError, SpecError, StoreError
from tests.training.conftest import make_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five photos to learn from and one without a crop, as prepared."""
    dataset = make_dataset(tmp_path / "dataset")
    save_dataset(dataset)
    return dataset.folder


def verdicts(dataset: Dataset) -> str:
    return "".join(photo.verdict[0] for photo in dataset.photos)


def test_a_caption_is_kept_in_manifest_and_text_file(folder: Path) -> None:
    changed = set_caption(folder, "1.png", "  portrait of tok\nperson, in a hat ")
    assert changed == load_dataset(folder)
    assert changed.photos[1].caption == "portrait of tok person, in a hat"
    assert (folder / "1.txt").read_text("utf-8") == "portrait of tok person, in a hat\n"
    assert json.loads((folder / "dataset.json").read_text("utf-8"))["photos"][1]["caption"].endswith("in a hat")
    assert set_caption(folder, "IMG_1.jpg", "x" * LONGEST_CAPTION).photos[1].caption == "x" * LONGEST_CAPTION


@pytest.mark.parametrize(
    ("crop", "text", "field", "words"),
    [
        ("1.png", " \n", "caption", "at least “tok person”"),
        ("1.png", "x" * (LONGEST_CAPTION + 1), "caption", "301 characters"),
        ("9.png", "a hat", "crop", "no photo “9.png”"),
        ("IMG_blurred.jpg", "a hat", "caption", "left out"),
        ("../1.png", "a hat", "crop", "no photo"),
    ],
)
def test_a_caption_that_makes_no_sense_is_refused(folder: Path, crop: str, text: str, field: str, words: str) -> None:
    before = load_dataset(folder)
    with pytest.raises(SpecError, match=words) as wrong:
        set_caption(folder, crop, text)
    assert wrong.value.field == field and load_dataset(folder) == before


def test_leaving_out_and_taking_in_again_loses_nothing(folder: Path) -> None:
    before = set_caption(folder, "2.png", "by hand")
    changed = set_verdict(folder, "2.png", "rejected")
    assert verdicts(changed) == "ttrttr" and changed.photos[2].crop == "" and changed.photos[2].reason
    assert crop_path(folder, "IMG_2.jpg") == folder / "2.png" and crop_path(folder, "IMG_blurred.jpg") is None
    assert set_verdict(folder, "2.png", "train") == before
    assert verdicts(set_verdict(folder, "IMG_2.jpg", "held_out")) == "tthttr"


def test_a_photo_without_a_crop_cannot_be_taken_in(folder: Path) -> None:
    with pytest.raises(SpecError, match="cannot be used: it is blurred") as wrong:
        set_verdict(folder, "IMG_blurred.jpg", "train")
    assert wrong.value.field == "verdict"


def test_one_photo_to_learn_from_stays(folder: Path) -> None:
    for name in ("0.png", "1.png"):
        set_verdict(folder, name, "rejected")
    for name in ("2.png", "3.png"):
        set_verdict(folder, name, "held_out")
    for verdict in ("rejected", "held_out"):
        with pytest.raises(SpecError, match="last photo to learn from"):
            set_verdict(folder, "4.png", verdict)
    assert verdicts(load_dataset(folder)) == "rrhhtr"


def test_unknown_verdicts_and_missing_or_damaged_datasets_are_told(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no verdict"):
        set_verdict(folder, "1.png", "perhaps")
    with pytest.raises(DatasetError, match="prepare the photos first"):
        set_caption(tmp_path / "nobody", "1.png", "a hat")
    (folder / "dataset.json").write_text("{", encoding="utf-8")
    with pytest.raises(StoreError, match="damaged"):
        set_verdict(folder, "1.png", "rejected")


def test_changes_at_once_lose_nothing(folder: Path) -> None:
    with ThreadPoolExecutor(5) as pool:
        list(pool.map(lambda number: set_caption(folder, f"{number}.png", f"caption {number}"), range(5)))
    assert [photo.caption for photo in load_dataset(folder).photos[:5]] == [f"caption {n}" for n in range(5)]


def test_training_learns_what_was_chosen(folder: Path) -> None:
    """What the training loop takes from the folder: the new caption, and not the photo that was left out."""
    from headshot_ui.training.cache import picture_tensor
    from headshot_ui.training.plan import training_photos

    set_caption(folder, "1.png", "portrait of tok person, warm light, close-up")
    set_verdict(folder, "2.png", "rejected")
    set_verdict(folder, "3.png", "held_out")
    learned = training_photos(load_dataset(folder))
    assert [photo.crop for photo in learned] == ["0.png", "1.png", "4.png"]
    assert learned[1].caption == "portrait of tok person, warm light, close-up"
    assert all(picture_tensor(folder / photo.crop).shape[-2:] == (64, 64) for photo in learned)
