"""prepare --zip: the prepared set as one file, now or later, and never in the place of a photo."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
from PIL import Image

from headshot_ui.dataset.saved import save_dataset
from headshot_ui.dataset.types import Dataset, PreparedPhoto
from headshot_ui.specs import PrepareSpec
from headshot_ui.store import write_json_atomic


def names(path: Path) -> list[str]:
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        return sorted(archive.namelist())


@pytest.fixture
def prepared(tmp_path: Path) -> Dataset:
    """Photos of “anna” as prepared earlier, in the outputs that `command` uses."""
    folder = tmp_path / "outputs" / "people" / "anna" / "dataset"
    folder.mkdir(parents=True)
    photos = []
    for name, verdict in (("001", "train"), ("002", "held_out")):
        Image.new("RGB", (8, 8)).save(folder / f"{name}.png")
        photos.append(PreparedPhoto(f"{name}.jpg", verdict, "", crop=f"{name}.png", caption="as made"))
    dataset = Dataset("anna", folder, 256, "tok", "person", tuple(photos))
    write_json_atomic(folder / "dataset.json", {})
    save_dataset(dataset)
    return dataset


def test_photos_are_prepared_and_written_as_a_zip(command, tmp_path):
    target = tmp_path / "away" / "anna.zip"
    done = command("prepare", "a.jpg", "b.jpg", "--person", "anna", "--zip", str(target))
    assert done.code == 0 and done.engines[0].submitted == [PrepareSpec("anna", ("a.jpg", "b.jpg"), "demo-sdxl")]
    assert done.out.splitlines()[-1] == f"Zip archive: {target}"
    assert names(target) == ["000.png", "000.txt", "held-out/001.png", "held-out/001.txt"]


def test_what_was_prepared_before_needs_no_photos_and_has_the_edited_captions(command, prepared, tmp_path):
    (prepared.folder / "001.txt").write_text("by hand", encoding="utf-8")
    target = tmp_path / "anna.zip"
    done = command("prepare", "--person", "anna", "--zip", str(target), "--json")
    assert done.code == 0 and done.engines == []
    assert done.json["zip"] == str(target) and done.json["person"] == "anna"
    assert names(target) == ["001.png", "001.txt", "held-out/002.png", "held-out/002.txt"]
    with zipfile.ZipFile(target) as archive:
        assert archive.read("001.txt").decode().strip() == "by hand"


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["--person", "anna"], 2, "No photos were given"),
        (["--person", "bob", "--zip", "{tmp}/x.zip"], 1, "prepare the photos first"),
        (["--person", "../bob", "--zip", "{tmp}/x.zip"], 2, "small letters"),
        (["a.jpg", "--person", "anna", "--zip", "{tmp}"], 2, "is a folder"),
        (["a.jpg", "--person", "anna", "--zip", "{tmp}/x.rar"], 2, "does not end in .zip"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is(command, tmp_path, argv, code, words):
    done = command("prepare", *(word.replace("{tmp}", str(tmp_path)) for word in argv))
    assert (done.code, done.engines) == (code, []) and words in done.err and done.err.count("\n") == 1
    assert not (tmp_path / "x.zip").exists()


def test_the_photos_themselves_are_never_overwritten(command, tmp_path):
    album = tmp_path / "album"
    album.mkdir()
    photos = album / "photos.zip"
    photos.write_bytes(b"the only copy")
    for given in (photos, album):
        done = command("prepare", str(given), "--person", "anna", "--zip", str(photos))
        assert done.code == 2 and "never changed" in done.err and done.engines == []
    assert photos.read_bytes() == b"the only copy"
