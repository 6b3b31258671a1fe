"""Photos that are looked at several at once give what one after the other gives; no more are in memory than said."""

from __future__ import annotations

import threading
import time
import warnings
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from headshot_ui.dataset import looking, prepare
from headshot_ui.dataset.intake import Source, collect
from headshot_ui.dataset.looking import Desk, looked_at, photos_at_once
from headshot_ui.errors import Cancelled, StoreError
from headshot_ui.settings import Settings
from tests.dataset.drawn_faces import ColourDetector
from tests.dataset.test_prepare import Progress, add, album, contents, run, store

__all__ = ["album", "store"]  # fixtures


@pytest.fixture
def mixed(album: Path) -> Path:
    """Photos, a double, a damaged one and one without a face."""
    add(album, 1, 2, 3, 4, 5, 6, 7)
    add(album, 8, height=0)
    (album / "2 copy.jpg").write_bytes((album / "2.jpg").read_bytes())
    (album / "5 broken.jpg").write_bytes((album / "5.jpg").read_bytes()[:300])
    return album


@pytest.mark.parametrize("at_once", [2, 3, 4])
def test_the_same_files_come_of_it_to_the_last_byte(store, mixed: Path, at_once: int, monkeypatch) -> None:
    monkeypatch.setattr(prepare, "photos_at_once", lambda settings: 1)
    alone = run(store, mixed)
    files = contents(alone.folder)
    copies = contents(store.photos_dir("robin"))
    real = looking.read_photo

    def slow(source: Source):
        time.sleep(0.03 if source.name.startswith("1") else 0.0)  # the first is ready last
        return real(source)

    monkeypatch.setattr(looking, "read_photo", slow)
    monkeypatch.setattr(prepare, "photos_at_once", lambda settings: at_once)
    progress = Progress()
    together = run(store, mixed, report=progress)
    assert together == alone
    assert contents(together.folder) == files and contents(store.photos_dir("robin")) == copies
    assert progress.steps == [(number, 10) for number in range(11)]


class Watched:
    """Counts the photos that are in memory, from reading to the end."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lock, self.now, self.most, self.ended = threading.Lock(), 0, 0, 0
        read, finish = looking.read_photo, Desk.finish

        def reading(source: Source):
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(0.01)
            return read(source)

        def finishing(desk: Desk, *given):
            try:
                time.sleep(0.01)
                return finish(desk, *given)
            finally:
                with self.lock:
                    self.now, self.ended = self.now - 1, self.ended + 1

        monkeypatch.setattr(looking, "read_photo", reading)
        monkeypatch.setattr(Desk, "finish", finishing)


def desk(folder: Path) -> Desk:
    folder.mkdir()
    return Desk(folder, 64, "zoe", "person", ColourDetector(), None)


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_no_more_are_in_memory_than_said(tmp_path: Path, album: Path, at_once: int, monkeypatch) -> None:
    add(album, *range(12))
    watched = Watched(monkeypatch)
    with closing(looked_at(desk(tmp_path / "out"), collect([str(album)]).sources, at_once)) as photos:
        assert sum(1 for _ in photos) == 12
    assert watched.most <= at_once and (at_once == 1 or watched.most > 1)


def test_a_cancel_ends_what_threads_do_and_begins_no_more(store, album: Path, monkeypatch) -> None:
    add(album, *range(20))
    watched = Watched(monkeypatch)
    monkeypatch.setattr(prepare, "photos_at_once", lambda settings: 4)
    filters = list(warnings.filters)
    with pytest.raises(Cancelled):
        run(store, album, report=Progress(cancel_at=3))
    ended = watched.ended
    assert ended <= 3 + 4 and not [t for t in threading.enumerate() if t.name.startswith("photos")]
    assert warnings.filters == filters
    time.sleep(0.05)
    assert watched.ended == ended


def test_a_crop_that_cannot_be_written_stops_it(store, album: Path, monkeypatch) -> None:
    add(album, 1, 2, 3, 4)

    def full(*_):
        raise StoreError("The disk is full.")

    monkeypatch.setattr(looking, "save_png", full)
    with pytest.raises(StoreError, match="full"):
        run(store, album)


def test_as_many_as_memory_clearly_holds(store, monkeypatch) -> None:
    monkeypatch.setattr(looking.os, "cpu_count", lambda: 16)
    for photos, at_once in ((0, 1), (1, 1), (4, 2), (7, 3), (100, 4)):
        monkeypatch.setattr(looking, "free_ram_bytes", lambda count=photos: count * looking.PHOTO_BYTES)
        assert photos_at_once(store.settings) == at_once
    limited: Settings = replace(store.settings, ram_limit_bytes=1)
    assert photos_at_once(limited) == 1
    monkeypatch.setattr(looking.os, "cpu_count", lambda: None)
    assert photos_at_once(store.settings) == 1
