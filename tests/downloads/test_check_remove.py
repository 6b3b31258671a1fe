"""Damage is named and mended; only what was put there by the program is removed."""

from __future__ import annotations

import json
import os

import pytest

from headshot_ui.downloads.catalogue import find_entry
from headshot_ui.downloads.records import installed_mark, read_record
from headshot_ui.downloads.runner import remove
from headshot_ui.downloads.states import entry_state
from headshot_ui.errors import DownloadError
from tests.downloads.conftest import NETWORK, WEIGHTS, Place, Said, hub_path


def state(place: Place, entry_id: str) -> str:
    return entry_state(find_entry(entry_id), place.settings).state


def damage(place: Place, name: str, quietly: bool = True) -> None:
    """One byte in the middle; quietly: with the time of change as it was."""
    path = place.path(name)
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    if quietly:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_damaged_file_is_named_and_fetched_again(place: Place) -> None:
    place.get("base")
    damage(place, "base/unet/w.safetensors")
    assert state(place, "base") == "there", "nothing can be seen without reading it"
    checked = place.get("base", check_only=True)
    bad = [check for check in checked.entries[0].checks if not check.ok]
    assert [check.path for check in bad] == [place.path("base/unet/w.safetensors")]
    assert bad[0].words == "damaged: its sha256 is not the published one" and not checked.ok
    assert state(place, "base") == "damaged"
    place.world.asked.clear()
    got = place.get("base")
    assert got.entries[0].fetched_bytes == len(WEIGHTS) and place.whole("base/unet/w.safetensors", WEIGHTS)
    assert place.world.gets("config.json") == [] and state(place, "base") == "there"
    assert place.get("base", check_only=True).ok


def test_get_itself_notices_a_file_that_was_changed(place: Place) -> None:
    place.get("base")
    damage(place, "base/unet/w.safetensors", quietly=False)
    place.get("base")
    assert place.whole("base/unet/w.safetensors", WEIGHTS)


def test_half_a_file_is_told_by_its_size(place: Place) -> None:
    place.get("net")
    place.path("net/net.pth").write_bytes(NETWORK[:1000])
    assert state(place, "net") == "damaged"
    (check,) = place.get("net", check_only=True).entries[0].checks
    assert check.words == f"damaged: it has 1000 bytes instead of {len(NETWORK)}"


def test_a_file_without_a_published_hash_is_held_to_its_recorded_one(place: Place) -> None:
    place.get("loose")
    assert place.get("loose", check_only=True).entries[0].checks[0].words.startswith("as when it was fetched")
    damage(place, "loose/net.pth")
    (check,) = place.get("loose", check_only=True).entries[0].checks
    assert check.words == "damaged: its sha256 is another than when it was fetched"
    assert not place.get("loose", check_only=True).ok, "the damaged one is not taken for the right one"
    place.get("loose")
    assert place.whole("loose/net.pth", NETWORK)


def test_a_missing_file_is_named(place: Place) -> None:
    place.get("base")
    place.path("base/unet/config.json").unlink()
    assert state(place, "base") == "unfinished"
    checks = place.get("base", check_only=True).entries[0].checks
    assert [(check.path.name, check.words) for check in checks if not check.ok] == [("config.json", "missing")]
    place.get("base")
    assert state(place, "base") == "there"


def test_a_model_is_not_offered_while_it_is_mended_and_its_settings_come_back(place: Place) -> None:
    place.get("base")
    place.path("base/base.json").write_text('{"id": "base", "mine": 1}')
    damage(place, "base/unet/w.safetensors", quietly=False)
    place.world.status[hub_path("unet/w.safetensors")] = (500, "")
    with pytest.raises(DownloadError):
        place.get("base")
    assert not place.path("base/base.json").exists()
    place.world.status.clear()
    place.get("base")
    assert json.loads(place.path("base/base.json").read_text()) == {"id": "base", "mine": 1}


def test_checking_says_how_far_it_is(place: Place) -> None:
    place.get("base")
    said = Said()
    place.get("base", check_only=True, said=said)
    assert said.lines[0] == ("Checking Base, in MB", 0, 4) and said.lines[-1] == ("Checking Base, in MB", 3, 4)


def test_a_folder_put_there_by_hand_is_offered_once_checked_and_never_removed(place: Place) -> None:
    place.get("base")
    for name in (".downloads", "base/base.json"):
        path = place.path(name)
        path.unlink() if path.is_file() else [each.unlink() for each in path.iterdir()]
    assert place.get("base", check_only=True).ok and place.path("base/base.json").is_file()
    removed = remove(find_entry("base"), place.settings)
    assert removed.files == () and len(removed.kept) == 3
    assert place.whole("base/unet/w.safetensors", WEIGHTS)


def test_removing_takes_what_was_downloaded_and_nothing_else(place: Place) -> None:
    place.get("base", "net")
    mine = place.path("base/my-notes.txt")
    demo = place.path("demo/sdxl/base.json")
    for path in (mine, demo):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    removed = remove(find_entry("base"), place.settings)
    assert len(removed.files) == 4 and removed.freed_bytes > len(WEIGHTS)
    assert sorted(path.name for path in place.path("base").iterdir()) == ["my-notes.txt"]
    assert mine.read_text() == "mine" and demo.read_text() == "mine" and place.whole("net/net.pth", NETWORK)
    assert state(place, "base") == "missing" and read_record("base", place.settings).files == {}
    remove(find_entry("net"), place.settings)
    assert not place.path("net").exists()


def test_removing_an_unfinished_download_removes_what_came_of_it(place: Place) -> None:
    place.world.cut[hub_path("unet/w.safetensors")] = [2**21, *[0] * 20]
    with pytest.raises(DownloadError):
        place.get("base")
    assert remove(find_entry("base"), place.settings).freed_bytes >= 2**20
    assert place.leftovers() == [] and state(place, "base") == "missing"


def test_the_mark_changes_with_everything_that_changes_what_is_offered(place: Place) -> None:
    place.get("base")
    assert place.path("base/base.json").stat().st_mtime_ns <= installed_mark(place.settings)[0][1], (
        "told after it is offered"
    )
    remove(find_entry("base"), place.settings)
    marks = [installed_mark(place.settings)]
    place.get("net")
    marks.append(installed_mark(place.settings))
    remove(find_entry("net"), place.settings)
    marks.append(installed_mark(place.settings))
    assert marks[0] == marks[2] == () and marks[1]


def test_a_record_that_cannot_be_read_means_that_nothing_is_known(place: Place) -> None:
    place.get("net")
    place.path(".downloads/net.json").write_text("{")
    assert state(place, "net") == "unchecked" and place.get("net").entries[0].already
