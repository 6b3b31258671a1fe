"""Headshots of earlier days are found again after a restart."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from headshot_ui.generation.records import RANKING
from headshot_ui.settings import Settings
from headshot_ui.store import Store
from headshot_ui.ui.earlier import find_earlier
from headshot_ui.ui.live import Live
from headshot_ui.ui.request import headshots_request
from tests.ui.fake_engine import FakeEngine, portrait


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_environment(outputs_dir=tmp_path / "outputs")


def make(settings: Settings, person: str, finished_s: float) -> Path:
    """A finished set of twenty pictures, made by an engine that is then gone."""
    photo = settings.outputs_dir.parent / "given.jpg"
    portrait(1, "given").save(photo)
    engine = FakeEngine(settings, steps=2)
    done = engine.submit(headshots_request(person, [str(photo)], "demo-sdxl")).wait(20)
    engine.close()
    os.utime(done.result.generated.folder / RANKING, (finished_s, finished_s))
    return done.result.generated.folder


def test_the_newest_comes_first_with_person_day_and_count(settings):
    make(settings, "anna", 1_700_000_000)
    newest = make(settings, "ben", 1_800_000_000)
    found = find_earlier(Store(settings))
    assert [earlier.person for earlier in found] == ["ben", "anna"]
    assert found[0].folder == newest and len(found[0].pictures) == 20 and found[0].pictures[0].rank == 1
    assert found[1].caption in ("anna · 14 Nov 2023 · 20 pictures", "anna · 15 Nov 2023 · 20 pictures")
    assert [earlier.person for earlier in find_earlier(Store(settings), most=1)] == ["ben"]


def test_what_is_damaged_or_gone_is_left_out(settings):
    damaged, emptied = make(settings, "anna", 1_700_000_000), make(settings, "ben", 1_700_000_000)
    assert len(find_earlier(Store(settings))) == 2
    (damaged / RANKING).write_text("{")
    for picture in emptied.glob("*.png"):
        picture.unlink()
    assert find_earlier(Store(settings)) == ()


def test_nobody_yet(settings):
    assert find_earlier(Store(settings)) == ()


def test_an_earlier_set_is_shown_like_a_new_one(settings, tmp_path):
    folder = make(settings, "anna", 1_700_000_000)
    shown_dir = tmp_path / "shown"
    live = Live(FakeEngine(settings), settings, shown_dir)
    ((earlier, small),) = live.earlier()
    assert Path(small).suffix == ".jpg" and shown_dir in Path(small).parents
    results = live.earlier_results(earlier)
    assert results.folder == str(folder)
    assert results.pictures[0][1] == "96 % likeness · Navy suit, grey studio"
    assert results.summary.startswith("18 of 20 pictures look like anna. Made on")
    assert all(shown_dir in Path(path).parents for path, _ in results.pictures)
    with zipfile.ZipFile(results.archive) as packed:
        assert len(packed.namelist()) == 20
    assert results.sheet == ""  # this set has none
