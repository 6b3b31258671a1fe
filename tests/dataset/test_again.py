"""Photos prepared a second time: what was changed by hand stays, and what was not is made anew."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from headshot_ui.dataset.again import CAPTION_KEPT, TAKEN_IN
from headshot_ui.dataset.edit import set_caption, set_verdict
from headshot_ui.dataset.saved import load_dataset, save_dataset, with_caption
from headshot_ui.dataset.types import Dataset, PreparedPhoto
from headshot_ui.errors import StoreError
from headshot_ui.store import Store
from tests.dataset.drawn_faces import jpeg, make_photo
from tests.dataset.test_prepare import add, album, run, store, verdicts  # noqa: F401

BY_HAND = "portrait of zoe person, laughing"


@pytest.fixture
def prepared(store: Store, album: Path) -> Dataset:  # noqa: F811
    add(album, 1, 2, 3, 4)
    return run(store, album)


def photo(dataset: Dataset, source: str) -> PreparedPhoto:
    return next(photo for photo in dataset.photos if photo.source == source)


def edit_text(dataset: Dataset, source: str, text: str = BY_HAND) -> None:
    """As a person does with an editor."""
    path = (dataset.folder / photo(dataset, source).crop).with_suffix(".txt")
    path.write_text(text + "\n", encoding="utf-8")


def edit_in_page(dataset: Dataset, source: str, text: str = BY_HAND) -> None:
    save_dataset(with_caption(load_dataset(dataset.folder), source, text))


def edit_by_function(dataset: Dataset, source: str, text: str = BY_HAND) -> None:
    set_caption(dataset.folder, photo(dataset, source).crop, text)


@pytest.mark.parametrize("edit", [edit_text, edit_in_page, edit_by_function])
def test_an_edited_caption_stays_and_is_said(store, album, prepared, edit) -> None:  # noqa: F811
    edit(prepared, "2.jpg")
    (album / "0.jpg").write_bytes(jpeg(make_photo(9, size=(240, 320), height=110)))  # moves every number by one
    for _ in range(3):  # and stays however often
        again = run(store, album)
        assert photo(again, "2.jpg").caption == BY_HAND and CAPTION_KEPT in photo(again, "2.jpg").warnings
        text = (again.folder / photo(again, "2.jpg").crop).with_suffix(".txt").read_text("utf-8")
        assert text == BY_HAND + "\n"
        for source in ("1.jpg", "3.jpg", "4.jpg"):
            assert photo(again, source).caption == photo(prepared, source).caption
            assert CAPTION_KEPT not in photo(again, source).warnings


def test_a_photo_is_known_again_by_its_content(store, album, prepared) -> None:  # noqa: F811
    edit_text(prepared, "2.jpg")
    (album / "2.jpg").rename(album / "holiday.jpg")
    add(album, 5)
    (album / "5.jpg").rename(album / "2.jpg")
    again = run(store, album)
    assert photo(again, "holiday.jpg").caption == BY_HAND
    assert photo(again, "2.jpg").caption != BY_HAND


def test_the_copies_among_the_persons_photos_are_the_same_photos(store, tmp_path) -> None:  # noqa: F811
    place = tmp_path / "with notes"
    place.mkdir()
    from PIL import Image

    exif = Image.Exif()
    exif[0x010E] = "at home"
    for seed in (1, 2, 3):
        picture = make_photo(seed, size=(240, 320), height=110)
        (place / f"{seed}.jpg").write_bytes(jpeg(picture, exif=exif))
    first = run(store, place)
    edit_text(first, "2.jpg")
    copies = store.photos_dir("robin")
    assert (copies / "2.jpg").read_bytes() != (place / "2.jpg").read_bytes()
    assert photo(run(store, copies), "2.jpg").caption == BY_HAND
    assert photo(run(store, place), "2.jpg").caption == BY_HAND


def test_another_word_for_the_person_is_put_in(store, album, prepared) -> None:  # noqa: F811
    edit_text(prepared, "2.jpg", "Zoe person at the sea, zoey smiling")
    assert photo(run(store, album, trigger="tok", class_word="woman"), "2.jpg").caption == (
        "tok woman at the sea, zoey smiling"
    )


def test_a_new_text_beside_the_photo_wins(store, album, prepared) -> None:  # noqa: F811
    edit_text(prepared, "2.jpg")
    (album / "2.txt").write_text("in a hat", encoding="utf-8")
    assert photo(run(store, album), "2.jpg").caption == "portrait of zoe person, in a hat"


def test_an_old_text_beside_the_photo_does_not(store, album) -> None:  # noqa: F811
    add(album, 1, 2, 3)
    (album / "2.txt").write_text("in a hat", encoding="utf-8")
    edit_text(run(store, album), "2.jpg")
    assert photo(run(store, album), "2.jpg").caption == BY_HAND


def test_photos_left_out_or_taken_in_by_hand_stay_so(store, album, prepared) -> None:  # noqa: F811
    add(album, 5, 6)
    add(album, 8, blur=4)
    first = run(store, album)
    assert verdicts(first)["8.jpg"] == "rejected" and "blurred" in photo(first, "8.jpg").reason
    set_verdict(first.folder, "3.jpg", "rejected")
    set_verdict(first.folder, "8.jpg", "train")
    for _ in range(2):
        again = run(store, album, held_out=0)
        assert photo(again, "3.jpg").verdict == "rejected" and "by hand" in photo(again, "3.jpg").reason
        assert photo(again, "8.jpg").verdict == "train" and TAKEN_IN in photo(again, "8.jpg").warnings
    set_verdict(again.folder, "3.jpg", "train")
    set_verdict(again.folder, "8.jpg", "rejected")
    undone = run(store, album, held_out=0)
    assert photo(undone, "3.jpg").verdict == "train" and photo(undone, "8.jpg").verdict == "rejected"


def test_a_dataset_of_an_earlier_version_keeps_its_edited_texts(store, album, prepared) -> None:  # noqa: F811
    manifest = prepared.folder / "dataset.json"
    data = json.loads(manifest.read_text("utf-8"))
    del data["prepared"]
    manifest.write_text(json.dumps(data), encoding="utf-8")
    edit_text(prepared, "2.jpg")
    again = run(store, album)
    assert photo(again, "2.jpg").caption == BY_HAND and photo(again, "1.jpg").caption == prepared.photos[0].caption


@pytest.mark.parametrize("damage", ["{", '{"photos": []}', '{"photos": [{"source": "2.jpg"}]}', '{"prepared": 3}'])
def test_a_damaged_dataset_is_made_anew(store, album, prepared, damage) -> None:  # noqa: F811
    (prepared.folder / "dataset.json").write_text(damage, encoding="utf-8")
    assert run(store, album).photos == prepared.photos


def test_nonsense_under_prepared_does_not_stop_anything(store, album, prepared) -> None:  # noqa: F811
    manifest = prepared.folder / "dataset.json"
    data = json.loads(manifest.read_text("utf-8"))
    data["prepared"] = {"1.jpg": 3, "2.jpg": {"caption": "x"}, "3.jpg": [], "4.jpg": {"digests": 5}}
    manifest.write_text(json.dumps(data), encoding="utf-8")
    assert run(store, album).photos == prepared.photos


def test_an_edit_that_cannot_be_read_is_told_and_nothing_is_lost(store, album, prepared) -> None:  # noqa: F811
    text = (prepared.folder / photo(prepared, "2.jpg").crop).with_suffix(".txt")
    text.write_bytes(b"caf\xe9")
    with pytest.raises(StoreError, match="save it as UTF-8"):
        run(store, album)
    assert text.read_bytes() == b"caf\xe9"


def test_photos_of_an_archive_are_known_again(store, album, prepared, tmp_path) -> None:  # noqa: F811
    edit_text(prepared, "2.jpg")
    archive = tmp_path / "album.zip"
    with zipfile.ZipFile(archive, "w") as zipped:
        for path in sorted(album.glob("*.jpg")):
            zipped.write(path, f"phone/{path.name}")
    assert photo(run(store, archive), "phone/2.jpg").caption == BY_HAND
