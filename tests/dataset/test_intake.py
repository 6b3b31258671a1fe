import io
import os
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from headshot_ui.dataset import intake
from headshot_ui.dataset.intake import collect, read_photo
from headshot_ui.errors import DatasetError, PhotoError
from tests.dataset.drawn_faces import jpeg

PHOTO = jpeg(Image.new("RGB", (32, 32), "teal"))


def write(path: Path, data: bytes = PHOTO) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def make_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def names(collected) -> list[str]:
    return [source.name for source in collected.sources]


def reasons(collected) -> dict[str, str]:
    return {refusal.name: refusal.reason for refusal in collected.refusals}


def test_a_folder_gives_its_photos_in_natural_order(tmp_path):
    for name in ("10.jpg", "2.JPG", "b/1.png", "notes.txt", ".hidden.jpg", ".trash/3.jpg", "__MACOSX/._2.jpg", "x.mp4"):
        write(tmp_path / name)
    found = collect([str(tmp_path)])
    assert names(found) == ["2.JPG", "10.jpg", "b/1.png"] and not found.refusals


def test_names_of_any_script_and_twice_the_same(tmp_path):
    write(tmp_path / "a" / "фото 写真.jpg")
    write(tmp_path / "b" / "фото 写真.jpg")
    found = collect([str(tmp_path / "a"), str(tmp_path / "b")])
    assert names(found) == ["фото 写真.jpg", "фото 写真.jpg (2)"]
    assert read_photo(found.sources[1]).image.size == (32, 32)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux keeps file names that are not Unicode")
def test_broken_names_can_still_be_shown_and_saved(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff\n.jpg")).write_bytes(PHOTO)
    (name,) = names(collect([str(tmp_path)]))
    assert name.encode() and name.isprintable()


def test_what_is_not_there_or_no_photo_is_refused_with_a_remedy(tmp_path):
    given = [
        tmp_path / "missing.jpg",
        write(tmp_path / "raw.nef"),
        write(tmp_path / "a.rar"),
        write(tmp_path / "no.zip"),
    ]
    found = collect([str(path) for path in given])
    said = reasons(found)
    assert not found.sources and list(said) == ["missing.jpg", "raw.nef", "a.rar", "no.zip"]
    assert "check the name" in said["missing.jpg"] and "export" in said["raw.nef"] and "unpack" in said["a.rar"]


def test_a_text_file_named_by_hand_is_read_and_refused(tmp_path):
    found = collect([str(write(tmp_path / "letter.jpg", b"Dear Sir or Madam"))])
    with pytest.raises(PhotoError, match="not a picture"):
        read_photo(found.sources[0])


def test_a_zip_is_read_without_unpacking(tmp_path):
    path = make_zip(tmp_path / "album.zip", {"we/2.jpg": PHOTO, "we/1.jpg": PHOTO, "we/.x.jpg": PHOTO, "read.me": b""})
    found = collect([str(path)])
    assert names(found) == ["we/1.jpg", "we/2.jpg"] and not found.refusals
    assert read_photo(found.sources[0]).data == PHOTO
    assert sorted(p.name for p in tmp_path.iterdir()) == ["album.zip"]


@pytest.mark.parametrize("name", ["../evil.jpg", "a/../../evil.jpg", "/etc/evil.jpg", "..\\evil.jpg", "C:\\evil.jpg"])
def test_members_that_point_outside_are_refused_and_others_read(tmp_path, name):
    found = collect([str(make_zip(tmp_path / "a.zip", {name: PHOTO, "good.jpg": PHOTO}))])
    assert names(found) == ["good.jpg"]
    assert all("outside" in reason for reason in reasons(found).values()) and len(found.refusals) == 1


def test_an_archive_inside_an_archive_is_refused(tmp_path):
    found = collect([str(make_zip(tmp_path / "a.zip", {"inner.zip": b"PK", "good.jpg": PHOTO}))])
    assert names(found) == ["good.jpg"] and "unpack" in reasons(found)["inner.zip"]


def test_a_locked_member_is_refused(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"locked.jpg": PHOTO})
    data = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(signature) + offset] |= 1
    path.write_bytes(data)
    assert "password" in reasons(collect([str(path)]))["locked.jpg"]


def test_a_zip_bomb_is_refused_by_its_ratio(tmp_path):
    found = collect([str(make_zip(tmp_path / "bomb.zip", {"bomb.png": bytes(50 * 2**20), "good.jpg": PHOTO}))])
    assert names(found) == ["good.jpg"] and "many times its size" in reasons(found)["bomb.png"]


def test_an_archive_that_declares_too_much_is_refused_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "MAX_ARCHIVE_BYTES", 3 * len(PHOTO))
    found = collect([str(make_zip(tmp_path / "a.zip", {f"{i}.jpg": PHOTO for i in range(4)}))])
    assert not found.sources and "far more" in reasons(found)["a.zip"]


def test_an_archive_with_too_many_members_is_refused_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "MAX_ARCHIVE_MEMBERS", 3)
    found = collect([str(make_zip(tmp_path / "a.zip", {f"{i}.txt": b"" for i in range(4)}))])
    assert "far more" in reasons(found)["a.zip"]


def test_a_member_that_lies_about_its_size_is_never_read_beyond_the_limit(tmp_path, monkeypatch):
    path = make_zip(tmp_path / "liar.zip", {"liar.jpg": PHOTO * 2000})
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24
    data[at : at + 4] = (1000).to_bytes(4, "little")  # the directory claims 1000 bytes
    path.write_bytes(data)
    asked = []
    real = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n=-1: (asked.append(n), real(self, n))[1])
    found = collect([str(path)])
    with pytest.raises(PhotoError, match="unpacked|damaged"):
        read_photo(found.sources[0])
    assert asked and all(0 <= n <= intake.MAX_FILE_BYTES + 1 for n in asked)


def test_files_and_members_are_limited_in_size(tmp_path, monkeypatch):
    monkeypatch.setattr(intake, "MAX_FILE_BYTES", 100)
    monkeypatch.setattr("headshot_ui.dataset.decode.MAX_FILE_BYTES", 100)
    large = write(tmp_path / "large.jpg")
    with pytest.raises(PhotoError, match="larger than"):
        read_photo(collect([str(large)]).sources[0])
    assert "more than" in reasons(collect([str(make_zip(tmp_path / "a.zip", {"b.jpg": PHOTO}))]))["b.jpg"]


def test_damaged_members_are_refused_when_read(tmp_path):
    path = make_zip(tmp_path / "a.zip", {"bad.jpg": PHOTO, "good.jpg": PHOTO}, zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(PHOTO) + 40] ^= 0xFF
    path.write_bytes(data)
    bad, good = collect([str(path)]).sources
    with pytest.raises(PhotoError, match="unpacked"):
        read_photo(bad)
    assert read_photo(good).image.size == (32, 32)


def test_an_empty_folder_gives_nothing(tmp_path):
    found = collect([str(tmp_path)])
    assert not found.sources and not found.refusals


def test_too_many_photos_are_refused_before_any_is_read(tmp_path, monkeypatch):
    for number in range(intake.MAX_PHOTOS + 1):
        (tmp_path / f"{number}.jpg").touch()
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("a photo was read"))
    with pytest.raises(DatasetError, match=f"{intake.MAX_PHOTOS + 1} photos.*about twelve"):
        collect([str(tmp_path)])


def test_captions_beside_photos_are_taken_along(tmp_path):
    write(tmp_path / "one.jpg")
    write(tmp_path / "one.txt", "wearing a navy suit,\n soft light".encode("utf-8-sig"))
    write(tmp_path / "two.jpg")
    write(tmp_path / "two.txt", b"\xff\xfe\x00binary")
    path = make_zip(tmp_path / "z.zip", {"d/three.jpg": PHOTO, "d/three.txt": b"close-up"})
    captions = {source.name: read_photo(source).caption for source in collect([str(tmp_path), str(path)]).sources}
    assert captions["one.jpg"] == "wearing a navy suit, soft light"
    assert captions["two.jpg"] == "" and captions["d/three.jpg"] == "close-up"


def test_only_one_photo_is_in_memory_at_a_time(tmp_path):
    for number in range(3):
        write(tmp_path / f"{number}.jpg")
    found = collect([str(tmp_path)])
    assert all(not isinstance(value, bytes | io.BytesIO) for s in found.sources for value in vars(s).values())
