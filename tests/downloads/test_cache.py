"""What the hub's cache has is linked, not fetched; what is damaged there is not used."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from huggingface_hub import constants

from headshot_ui import families
from headshot_ui.doctor import Check, check_bases, check_downloads, check_misfits
from headshot_ui.downloads import cache, runner
from headshot_ui.downloads.catalogue import find_entry
from headshot_ui.downloads.records import read_record
from headshot_ui.downloads.runner import remove
from headshot_ui.errors import Cancelled, DownloadError, ModelError
from tests.downloads.conftest import CONFIG, INDEX, REPO, WEIGHTS, Place
from tests.downloads.servers import COMMIT, git_sha1, sha256

FILES = {"unet/w.safetensors": WEIGHTS, "unet/config.json": CONFIG, "model_index.json": INDEX}


def fill(folder: Path, files: dict[str, bytes], revision: str = COMMIT, ref: str = "") -> Path:
    """A cache as huggingface_hub leaves it: blobs by checksum, snapshots of links to them."""
    repo = folder / f"models--{REPO.replace('/', '--')}"
    for name, content in files.items():
        blob = repo / "blobs" / (sha256(content) if len(content) > 100_000 else git_sha1(content))
        blob.parent.mkdir(parents=True, exist_ok=True)
        blob.write_bytes(content)
        link = repo / "snapshots" / revision / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    if ref:
        (repo / "refs").mkdir(exist_ok=True)
        (repo / "refs" / ref).write_text(revision)
    return repo


def test_a_full_cache_needs_no_network_and_no_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = fill(place.cache, FILES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    got = place.get("base")
    assert place.world.asked == [] and got.entries[0].fetched_bytes == 0
    assert got.entries[0].cached_bytes == sum(map(len, FILES.values()))
    mine = place.path("base/unet/w.safetensors")
    assert os.path.samefile(mine, repo / "blobs" / sha256(WEIGHTS)) and not mine.is_symlink(), "a hard link"
    assert place.path("base/base.json").is_file()


def test_a_cache_of_the_main_revision_serves_too(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(place.cache, FILES, "f" * 40, "main")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert place.get("base").entries[0].cached_bytes > len(WEIGHTS)


def test_what_the_cache_lacks_is_fetched(place: Place) -> None:
    fill(place.cache, {"unet/config.json": CONFIG})
    got = place.get("base")
    assert got.entries[0].cached_bytes == len(CONFIG) and got.entries[0].fetched_bytes == len(WEIGHTS) + len(INDEX)


def test_a_damaged_file_of_the_cache_is_not_used(place: Place) -> None:
    repo = fill(place.cache, FILES)
    (repo / "blobs" / sha256(WEIGHTS)).write_bytes(b"!" + WEIGHTS[1:])
    got = place.get("base")
    assert place.whole("base/unet/w.safetensors", WEIGHTS) and got.entries[0].fetched_bytes == len(WEIGHTS)


def test_without_a_published_hash_the_caches_own_name_of_a_file_counts(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = fill(place.cache, FILES)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    place.get("unpinned")
    files = read_record("unpinned", place.settings).files
    assert {file.basis for file in files.values()} == {"server"} and len(files) == 2
    runner.remove(runner.find_entry("unpinned"), place.settings)
    (repo / "blobs" / git_sha1(CONFIG)).write_bytes(b"{}")
    with pytest.raises(DownloadError, match="HF_HUB_OFFLINE"):
        place.get("unpinned")


def test_without_hard_links_it_is_a_link_and_without_links_a_copy(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "blob"
    source.write_bytes(CONFIG)

    def never(*_: object) -> None:
        raise OSError("not here")

    monkeypatch.setattr(cache.os, "link", never)
    assert cache.take_over(source, tmp_path / "one") == "link" and (tmp_path / "one").is_symlink()
    monkeypatch.setattr(cache.os, "symlink", never)
    assert cache.take_over(source, tmp_path / "two") == "copy"
    assert (tmp_path / "two").read_bytes() == CONFIG and not (tmp_path / "two").is_symlink()


def test_removing_leaves_the_cache_alone(place: Place) -> None:
    repo = fill(place.cache, FILES)
    place.get("base")
    runner.remove(runner.find_entry("base"), place.settings)
    assert (repo / "blobs" / sha256(WEIGHTS)).read_bytes() == WEIGHTS and not place.path("base").exists()


def test_fetching_again_never_writes_into_the_cache(place: Place) -> None:
    repo = fill(place.cache, FILES)
    place.get("base")
    blob = repo / "blobs" / sha256(WEIGHTS)
    blob.write_bytes(b"?" * len(WEIGHTS))  # a hard link: damaged in both places
    assert not place.get("base", check_only=True).ok
    place.get("base")
    assert place.whole("base/unet/w.safetensors", WEIGHTS) and blob.read_bytes() == b"?" * len(WEIGHTS)


# --- half of it from the cache ------------------------------------------------------------------------
def seen(place: Place) -> list[Check]:
    """What the doctor says of what lies in the models folder."""
    named = [*check_misfits(place.settings), *check_downloads(place.settings), *check_bases(place.settings)]
    return [check for check in named if check.name != "base models"]  # there is no demo here


def test_a_first_download_that_did_not_end_is_unfinished_and_not_damaged(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(place.cache, {"unet/config.json": CONFIG, "model_index.json": INDEX})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError):
        place.get("base")
    assert place.path("base/model_index.json").is_file(), "by which a folder looks like a whole model"
    (told,) = seen(place)
    assert (told.name, told.ok) == ("model base", None)
    assert "unfinished" in told.detail and "damaged" not in told.detail
    assert "python3 app.py models get base" in told.advice
    with pytest.raises(ModelError, match="“base” has not ended.*python3 app.py models get base"):
        families.find_base("base", place.settings)
    with pytest.raises(ModelError, match="There is no base model “sdxl”"):  # of another family's name is no talk
        families.find_base("sdxl", place.settings)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    place.get("base")
    assert place.path("base/base.json").is_file() and not place.path("base/base.json.waiting").exists()


def test_what_marks_it_as_unfinished_goes_with_it(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = fill(place.cache, {"model_index.json": INDEX})
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError):
        place.get("base")
    shutil.rmtree(repo)
    remove(find_entry("base"), place.settings)
    assert not place.path("base").exists() and seen(place) == []

    def cancelled(*_: object) -> None:  # in the first file, so that nothing is in place yet
        raise Cancelled

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(runner, "fetch", cancelled)
    with pytest.raises(Cancelled):
        place.get("base")
    assert place.path("base/base.json.waiting").is_file()
    remove(find_entry("base"), place.settings)
    assert not place.path("base").exists()


def test_a_download_that_never_began_leaves_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadError):
        place.get("base")
    assert not place.path("base").exists() and seen(place) == []
