"""The person picker without a browser."""

from __future__ import annotations

from pathlib import Path

import pytest

from headshot_ui.errors import StoreError
from headshot_ui.settings import Settings
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store
from headshot_ui.ui import people
from headshot_ui.ui.live import Live
from headshot_ui.ui.page import newest_person
from tests.ui.fake_engine import FakeEngine, portrait


@pytest.fixture
def desk(tmp_path: Path):
    settings = Settings.from_environment(outputs_dir=tmp_path / "outputs")
    engine = FakeEngine(settings, steps=2)
    yield Live(engine, settings, tmp_path / "shown"), engine, Store(settings)
    engine.close()


def test_what_deleting_removes_is_listed(desk):
    live, engine, store = desk
    store.photos_dir("anna").mkdir(parents=True)
    for number in range(2):
        portrait(number, "x").save(store.photos_dir("anna") / f"{number}.jpg")
    live.submit(TrainSpec("anna", "demo-sdxl")).wait(20)
    told = people.kept_of(store, "anna")
    assert told["kept"] == ["2 photos", "1 training run"] and told["size"].endswith("kB")
    (store.headshots_dir("anna") / "one").mkdir(parents=True)
    (store.headshots_dir("anna") / "two").mkdir()
    assert people.kept_of(store, "anna")["kept"][-1] == "2 sets of headshots"
    people.remove(engine, store, "anna")
    assert store.people() == () and people.kept_of(store, "anna")["kept"] == []
    people.remove(engine, store, "anna")  # of whom nothing was kept: nothing to do


def test_nobody_is_deleted_under_a_running_job(desk):
    live, engine, store = desk
    engine.hold.clear()
    job = live.submit(TrainSpec("anna", "demo-sdxl"))
    assert people.refusal(live, "anna") == "“Learning anna” is not finished: cancel it first, then delete."
    assert people.refusal(live, "ben") == ""
    engine.hold.set()
    job.wait(20)
    assert people.refusal(live, "anna") == ""


def test_errors_of_the_engine_come_through(desk, monkeypatch):
    live, engine, store = desk
    store.photos_dir("anna").mkdir(parents=True)

    def refuse(person: str) -> None:
        raise StoreError("It cannot be removed.")

    monkeypatch.setattr(engine, "delete_person", refuse)
    with pytest.raises(StoreError, match="cannot be removed"):
        people.remove(engine, store, "anna")


def test_a_fresh_browser_shows_the_person_of_the_newest_job(desk):
    live, engine, store = desk
    assert newest_person(live, ()) == ""
    assert newest_person(live, ("anna", "ben")) == "anna"
    live.submit(TrainSpec("ben", "demo-sdxl")).wait(20)
    assert newest_person(live, ("anna", "ben")) == "ben"
    assert newest_person(live, ("anna",)) == "anna"  # ben was deleted since
