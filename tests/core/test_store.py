"""Files are written whole or not at all, and say plainly why not."""

from __future__ import annotations

import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from headshot_ui import store as store_module
from headshot_ui.errors import SpecError, StoreError
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import (
    Store,
    atomic_file,
    check_free_space,
    new_folder,
    read_json,
    read_png_metadata,
    readable_bytes,
    remove_leftovers,
    save_png,
    write_bytes_atomic,
    write_json_atomic,
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Settings.from_environment(root=tmp_path, device="cpu", environment={}))


def disk_full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_folders_of_a_person(store: Store, tmp_path: Path) -> None:
    anna = tmp_path / "outputs" / "people" / "anna"
    for name in ("photos", "dataset", "runs", "headshots", "restored", "exports"):
        assert getattr(store, f"{name}_dir")("anna") == anna / name
    assert store.people() == () and not list(tmp_path.iterdir()), "naming a folder does not make it"


@pytest.mark.parametrize("name", ["../anna", "", "Anna", "a/b", ".", "a" * 41])
def test_no_name_leads_out_of_the_people_folder(store: Store, name: str) -> None:
    with pytest.raises(SpecError):
        store.person_dir(name)


def test_people_are_the_folders_with_proper_names(store: Store) -> None:
    for name in ("zoe", "anna", ".hidden", "Not Ours"):
        (store.people_dir / name).mkdir(parents=True)
    (store.people_dir / "file").touch()
    assert store.people() == ("anna", "zoe")


def test_json_comes_back_as_it_went(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    data = {"name": "Ünal 山", "steps": [1, 2.5, None, True]}
    write_json_atomic(path, data)
    assert read_json(path) == data
    assert [entry.name for entry in path.parent.iterdir()] == ["a.json"]


def test_missing_and_damaged_json_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="it is not there"):
        read_json(tmp_path / "none.json")
    (tmp_path / "bad.json").write_bytes(b'{"a": \xff')
    with pytest.raises(StoreError, match="damaged"):
        read_json(tmp_path / "bad.json")


@pytest.mark.parametrize("breaks", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_part_of_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, breaks: str
) -> None:
    path = tmp_path / "a.bin"
    write_bytes_atomic(path, b"old")

    def write_half(self: Path, data: bytes) -> int:
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        return disk_full()

    if breaks == "write":
        monkeypatch.setattr(Path, "write_bytes", write_half)
    else:
        monkeypatch.setattr(os, breaks, disk_full)
    with pytest.raises(StoreError, match=r"a\.bin could not be written: the disk is full \([\d.]+ .?[Bb].* free\)"):
        write_bytes_atomic(path, b"new and longer")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_what_breaks_inside_the_block_breaks_nothing_outside(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes_atomic(path, b"old")
    with pytest.raises(ZeroDivisionError), atomic_file(path) as temporary:
        temporary.write_bytes(b"half")
        raise ZeroDivisionError
    assert path.read_bytes() == b"old" and [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_bytes_atomic(path, b"old")
    with atomic_file(path) as temporary:
        temporary.write_bytes(b"ne")
        assert path.read_bytes() == b"old" and temporary.parent == path.parent
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_a_missing_permission_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", forbidden)
    with pytest.raises(StoreError, match="not permitted"):
        write_bytes_atomic(tmp_path / "a", b"x")


def test_windows_is_given_time_to_let_go_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "new").write_bytes(b"new")
    real, tries = os.replace, []

    def blocked_twice(source: Path, target: Path) -> None:
        tries.append(1)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "in use")
        real(source, target)

    monkeypatch.setattr(os, "replace", blocked_twice)
    monkeypatch.setattr(store_module, "_is_windows", lambda: True)
    waits: list[float] = []
    store_module._replace(tmp_path / "new", tmp_path / "old", waits.append)
    assert (tmp_path / "old").read_bytes() == b"new" and len(waits) == 2


def test_a_picture_carries_its_request_and_nothing_else(tmp_path: Path) -> None:
    spec = GenerateSpec("anna", "demo-sdxl", prompt="portrait of {subject}, “naïve” 肖像", seed=2**62)
    camera = Image.new("RGB", (8, 8), "red")
    exif = Image.Exif()
    exif[0x010F] = "SecretCamera"
    exif.get_ifd(0x8825)[2] = (48.0, 8.0, 30.0)
    extra = PngInfo()
    extra.add_text("Comment", "SecretComment")
    camera.save(tmp_path / "in.png", exif=exif, icc_profile=b"SecretProfile", dpi=(300, 300), pnginfo=extra)
    with Image.open(tmp_path / "in.png") as photo:
        save_png(tmp_path / "out.png", photo, spec.to_json())
    assert GenerateSpec.from_json(read_png_metadata(tmp_path / "out.png")) == spec
    with Image.open(tmp_path / "out.png") as saved:
        saved.load()
        assert set(saved.info) == {"headshot_ui"} and not saved.getexif() and saved.getpixel((3, 3)) == (255, 0, 0)
    assert b"Secret" not in (tmp_path / "out.png").read_bytes()


def test_png_of_others_and_files_that_are_none(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png")
    assert read_png_metadata(tmp_path / "other.png") == {}
    (tmp_path / "text.png").write_text("hello")
    Image.new("RGB", (4, 4)).save(tmp_path / "photo.jpg")
    for name in ("text.png", "photo.jpg", "none.png"):
        with pytest.raises(StoreError, match=name):
            read_png_metadata(tmp_path / name)
    save_png(tmp_path / "cut.png", Image.new("RGB", (4, 4)), {"seed": 1})
    data = (tmp_path / "cut.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(data[:40])
    with pytest.raises(StoreError, match="cut.png"):
        read_png_metadata(tmp_path / "cut.png")


def test_a_full_disk_while_saving_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image.Image, "save", disk_full)
    with pytest.raises(StoreError, match="the disk is full"):
        save_png(tmp_path / "a.png", Image.new("RGB", (4, 4)), {})
    assert not list(tmp_path.iterdir())


def test_new_folder_takes_the_first_free_name(tmp_path: Path) -> None:
    names = [new_folder(tmp_path / "runs", "a").name for _ in range(3)]
    assert names == ["a", "a-2", "a-3"]


def test_free_space_is_checked_where_the_folder_will_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**12, 0, 3 * 2**30))
    check_free_space(tmp_path / "not" / "yet", 3 * 2**30)
    with pytest.raises(StoreError, match=r"needs 3\.5 GB .* only 3\.0 GB is free"):
        check_free_space(tmp_path / "not" / "yet", 7 * 2**29)


def test_sizes_are_readable() -> None:
    assert [readable_bytes(n) for n in (0, 512, 2048, 5 * 2**20, 3 * 2**29)] == [
        "0 bytes", "512 bytes", "2.0 kB", "5.0 MB", "1.5 GB",
    ]  # fmt: skip


def test_delete_person_removes_all_of_them_and_nothing_else(store: Store, tmp_path: Path) -> None:
    for person in ("anna", "anna-2"):
        write_bytes_atomic(store.photos_dir(person) / "ä.jpg", b"x")
        write_bytes_atomic(store.runs_dir(person) / "r" / "run.json", b"{}")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.txt").touch()
    links = [store.photos_dir("anna") / "link"]
    try:
        links[0].symlink_to(elsewhere, target_is_directory=True)
    except OSError:  # Windows lets only some people make links
        links = []
    removed = store.delete_person("anna")
    assert removed == tuple(
        sorted([store.photos_dir("anna") / "ä.jpg", store.runs_dir("anna") / "r" / "run.json", *links])
    )
    assert store.people() == ("anna-2",) and (elsewhere / "mine.txt").exists()
    with pytest.raises(StoreError, match="nobody called"):
        store.delete_person("anna")


def test_leftovers_of_a_crash_go_and_fresh_and_foreign_files_stay(tmp_path: Path) -> None:
    old, fresh, foreign = tmp_path / f".{'a' * 32}.tmp", tmp_path / f".{'b' * 32}.tmp", tmp_path / ".mine.tmp"
    for path in (old, fresh, foreign):
        path.touch()
    for path in (old, foreign):
        os.utime(path, (time.time() - 10**6,) * 2)
    remove_leftovers(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([fresh, foreign])
