"""A whole export: files, archive, record; what is missing, cancelled or without a face."""

from __future__ import annotations

import json
import zipfile

import pytest
from PIL import Image

from headshot_ui.errors import Cancelled, PhotoError, SpecError, StoreError
from headshot_ui.export import export_pictures
from headshot_ui.export.framing import NO_FACE
from headshot_ui.specs import ExportSpec
from headshot_ui.stars import set_star
from tests.export.conftest import FakeDetector, Told, face_at, map_picture

SIZES = {"linkedin": (800, 800), "cv": (900, 1200), "badge": (413, 531), "full": (1024, 1024)}


@pytest.fixture
def detector() -> FakeDetector:
    return FakeDetector([face_at(512, 460, 300), face_at(100, 100, 50)])


def export(store, detector, *pictures, report=None, **fields):
    spec = ExportSpec("anna", tuple(str(path) for path in pictures), **fields)
    return export_pictures(spec, store, detector, report or Told())


@pytest.mark.parametrize(("file_type", "suffix"), [("jpeg", ".jpg"), ("png", ".png"), ("webp", ".webp")])
def test_every_layout_of_every_picture(store, detector, headshot, file_type, suffix) -> None:
    told = Told()
    result = export(store, detector, headshot("a.png"), headshot("b.png"), file_type=file_type, report=told)
    assert [file.path.name for file in result.files] == [
        f"{stem}-{layout}{suffix}" for stem in ("a", "b") for layout in SIZES
    ]
    for file in result.files:
        with Image.open(file.path) as image:
            assert image.size == SIZES[file.layout] == (file.width, file.height) and image.mode == "RGB"
    assert result.folder.parent == store.exports_dir("anna") and not result.skipped
    assert [step for step, _, _ in told.steps] == list(range(9)) and told.steps[-1][2] == result.files[-1].path
    assert len(detector.asked) == 2  # one look serves all layouts


def test_the_archive_holds_exactly_the_files_in_their_order(store, detector, headshot) -> None:
    pictures = [headshot("b.png"), headshot("a.png")]
    result = export(store, detector, *pictures, layouts=("cv", "badge"))
    again = export(store, detector, *pictures, layouts=("cv", "badge"))
    assert result.archive.parent == result.folder != again.folder
    with zipfile.ZipFile(result.archive) as archive:
        assert archive.namelist() == [file.path.name for file in result.files]
        assert archive.testzip() is None
        assert {entry.date_time for entry in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        for file in result.files:
            assert archive.read(file.path.name) == file.path.read_bytes()
    assert result.archive.read_bytes() == again.archive.read_bytes()


@pytest.mark.parametrize("disclose", [True, False])
@pytest.mark.parametrize("file_type", ["jpeg", "png", "webp"])
def test_nothing_of_prompt_person_and_lora_leaves(store, detector, headshot, disclose, file_type) -> None:
    result = export(store, detector, headshot("a.png"), file_type=file_type, disclose=disclose)
    for data in [file.path.read_bytes() for file in result.files] + [result.archive.read_bytes()]:
        for secret in (b"secretprompt", b"secretlora", b"anna", b"headshots/"):
            assert secret not in data
    for file in result.files:
        with Image.open(file.path) as image:
            assert ("xmp" in image.info) == disclose and bool(image.getexif()) in (disclose, file_type == "webp")


def test_the_place_a_photo_was_taken_at_is_left_out(store, detector, tmp_path) -> None:
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825)[1] = "N"
    photo = tmp_path / "photo.jpg"
    map_picture(900, 900).save(photo, exif=exif)
    for file in export(store, detector, photo).files:
        with Image.open(file.path) as image:
            assert 0x010F not in image.getexif() and not image.getexif().get_ifd(0x8825)
        assert b"SecretCamera" not in file.path.read_bytes()


def test_the_record_holds_the_request(store, detector, headshot) -> None:
    result = export(store, detector, headshot("a.png"), layouts=("cv",), quality=80)
    record = json.loads((result.folder / "exported.json").read_text("utf-8"))
    assert record["request"]["quality"] == 80 and record["state"] == "done"
    assert [(entry["path"], entry["layout"]) for entry in record["files"]] == [("a-cv.jpg", "cv")]


def test_starred_pictures_are_meant_when_none_is_named(store, detector, headshot) -> None:
    with pytest.raises(SpecError, match="star") as wrong:
        export(store, detector)
    assert wrong.value.field == "pictures"
    first, second, _ = headshot("1.png"), headshot("2.png"), headshot("3.png")
    set_star(store, "anna", second, True)
    set_star(store, "anna", first, True)
    result = export(store, detector, layouts=("badge",))
    assert [file.source.name for file in result.files] == ["2.png", "1.png"]


def test_a_picture_that_is_gone_or_damaged_stops_nothing(store, detector, headshot, tmp_path) -> None:
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"\x89PNG nothing")
    told = Told()
    result = export(store, detector, tmp_path / "gone.png", damaged, tmp_path, headshot("a.png"), report=told)
    assert [file.source.name for file in result.files] == ["a.png"] * 4
    assert len(result.skipped) == 3 and "not there" in result.skipped[0] and "gone.png" in result.skipped[0]
    assert told.steps[-1][:2] == (16, 16)


def test_when_nothing_could_be_exported_the_reason_is_told_and_no_folder_stays(store, detector, tmp_path) -> None:
    with pytest.raises(PhotoError, match="gone.png.*not there"):
        export(store, detector, tmp_path / "gone.png")
    assert list(store.exports_dir("anna").iterdir()) == []


def test_without_a_face_the_middle_is_taken_and_said(store, headshot) -> None:
    result = export(store, FakeDetector([]), headshot("a.png"), layouts=("linkedin", "full"))
    assert NO_FACE in result.files[0].note and result.files[1].note == ""


def test_full_size_alone_needs_no_detector(store, detector, headshot) -> None:
    export(store, detector, headshot("a.png"), layouts=("full",))
    assert detector.asked == []


def test_a_picture_smaller_than_its_layout_has_the_right_size_and_a_note(store, headshot) -> None:
    result = export(store, FakeDetector([face_at(64, 58, 40)]), headshot("a.png", (128, 128)), layouts=("cv",))
    assert (result.files[0].width, result.files[0].height) == (900, 1200)
    assert "times and looks soft" in result.files[0].note


def test_a_cancel_keeps_what_is_finished(store, detector, headshot) -> None:
    with pytest.raises(Cancelled):
        export(store, detector, headshot("a.png"), headshot("b.png"), report=Told(most=3))
    (folder,) = store.exports_dir("anna").iterdir()
    names = sorted(path.name for path in folder.glob("*.jpg"))
    assert names == ["a-badge.jpg", "a-cv.jpg", "a-linkedin.jpg"]
    with zipfile.ZipFile(folder / "headshots.zip") as archive:
        assert sorted(archive.namelist()) == names
    assert json.loads((folder / "exported.json").read_text("utf-8"))["state"] == "cancelled"


def test_a_full_disk_keeps_what_is_finished(store, detector, headshot, monkeypatch) -> None:
    from headshot_ui.export import runner

    real, calls = runner.save_picture, []

    def full_after_two(*args):
        calls.append(args)
        if len(calls) > 2:
            raise StoreError("The disk is full.")
        real(*args)

    monkeypatch.setattr(runner, "save_picture", full_after_two)
    with pytest.raises(StoreError, match="full"):
        export(store, detector, headshot("a.png"))
    (folder,) = store.exports_dir("anna").iterdir()
    assert len(list(folder.glob("*.jpg"))) == 2 and (folder / "headshots.zip").is_file()


def test_names_in_any_script_and_equal_names(store, detector, headshot, tmp_path) -> None:
    other = tmp_path / "Ünïcödé 写真 01.png"
    other.write_bytes(headshot("Ünïcödé 写真 01.png").read_bytes())
    upper = tmp_path / "ÜNÏCÖDÉ 写真 01.png"
    upper.write_bytes(other.read_bytes())
    result = export(store, detector, headshot("Ünïcödé 写真 01.png"), other, upper, layouts=("badge",))
    names = [file.path.name for file in result.files]
    assert names[0] == "Ünïcödé 写真 01-badge.jpg" and names[1] == "Ünïcödé 写真 01-2-badge.jpg"
    assert len({name.casefold() for name in names}) == 3
    with zipfile.ZipFile(result.archive) as archive:
        assert archive.namelist() == names


@pytest.mark.parametrize("mode", ["RGBA", "L", "I;16", "CMYK", "P"])
def test_pictures_of_any_kind(store, detector, tmp_path, mode) -> None:
    path = tmp_path / ("picture.tif" if mode == "CMYK" else "picture.png")
    picture = Image.new(mode, (1024, 1024), 30000) if mode == "I;16" else map_picture(1024, 1024).convert(mode)
    picture.save(path)
    result = export(store, detector, path, layouts=("linkedin",))
    with Image.open(result.files[0].path) as image:
        assert image.mode == "RGB" and image.size == (800, 800)
