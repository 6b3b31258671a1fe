"""The shell around the tabs, without a browser."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from headshot_ui.settings import Settings
from headshot_ui.specs import PrepareSpec, TrainSpec
from headshot_ui.ui import page as page_module
from headshot_ui.ui import studio_templates, templates
from headshot_ui.ui.live import Live
from headshot_ui.ui.page import OWN_OUTPUTS, Board, Seen, _refresh, build_page
from headshot_ui.ui.tab import TABS, Tab
from tests.ui.fake_engine import FakeEngine, portrait


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    folder = tmp_path_factory.mktemp("shell")
    settings = Settings.from_environment(outputs_dir=folder / "outputs")
    engine = FakeEngine(settings, steps=5)
    live = Live(engine, settings, folder / "shown")
    page = build_page(engine, settings, folder / "shown", live)
    (board,) = (each for each in gc.get_objects() if isinstance(each, Board) and each.shell.engine is engine)
    yield SimpleNamespace(page=page, board=board, live=live, engine=engine, folder=folder)
    engine.close()


def skipped(values: list[Any]) -> list[bool]:
    return [value == gr.skip() for value in values]


def seen_in(values: list[Any]) -> Seen:
    return next(value for value in values if isinstance(value, Seen))


def test_no_template_takes_values_as_code():
    for module in (templates, studio_templates):
        texts = [text for name, text in vars(module).items() if name.isupper() and isinstance(text, str)]
        html = [text for text in texts if text.lstrip().startswith(("<", "{{"))]  # the others are scripts
        assert html and all("${" not in text and "{{{" not in text for text in html)


def test_every_piece_of_html_is_safe_from_being_run(built):
    pieces = [block for block in built.page.blocks.values() if isinstance(block, gr.HTML)]
    assert len(pieces) > 20
    for piece in pieces:
        assert piece.postprocess({"name": "${x}"}) == {"name": "\\${x}"}, piece.elem_id


def test_building_the_page_writes_no_stubs_beside_its_files():
    assert list(Path(page_module.__file__).parent.rglob("*.pyi")) == []


def test_only_what_changed_is_sent(built):
    outputs = OWN_OUTPUTS + sum(len(built.board.tabs[name].outputs) for name in TABS)
    first = _refresh(built.board, built.live, "", Seen())
    assert len(first) == outputs and not all(skipped(first))
    again = _refresh(built.board, built.live, "", seen_in(first))
    assert len(again) == outputs and all(skipped(again))


def test_a_job_wakes_the_timer_and_its_end_puts_it_to_sleep(built):
    built.engine.hold.clear()
    photo = built.folder / "a.jpg"
    portrait(1, "x").save(photo)
    built.live.submit(PrepareSpec("zoe", (str(photo),), "demo-sdxl")).wait(20)
    job = built.live.submit(TrainSpec("zoe", "demo-sdxl"))
    while job.snapshot.step < 5:
        job.wait(0.01)
    busy = _refresh(built.board, built.live, "zoe", Seen())
    assert (busy[7].active, busy[8].active) == (True, False) and busy[0]["running"][0]["title"] == "Learning zoe"
    built.engine.hold.set()
    job.wait(20)
    idle = _refresh(built.board, built.live, "zoe", seen_in(busy))
    assert (idle[7].active, idle[8].active) == (False, True)
    assert idle[0]["finished"][0]["text"] == "Learned in 5 steps."


def test_a_person_deleted_in_another_window_is_let_go(built):
    built.live.welcome("mia")
    built.live.welcome("noa")
    before = _refresh(built.board, built.live, "mia", Seen())
    built.live.forget("mia")
    values = _refresh(built.board, built.live, "mia", seen_in(before))
    assert values[1].value == built.live.people()[0] and "mia" not in [name for name, _ in values[1].choices]
    assert (values[2].visible, values[3].interactive, values[4].visible) == (True, True, False)
    assert built.board.people.person.preprocess("nobody of this name") is None  # asked a moment before: no error


def test_a_tab_that_fails_leaves_the_others_alone(built, caplog):
    def broken(person: str, mark: Any) -> None:
        raise ZeroDivisionError

    tabs = {**built.board.tabs, "generate": Tab(built.board.tabs["generate"].outputs, broken)}
    values = _refresh(replace(built.board, tabs=tabs), built.live, "", Seen())
    assert set(seen_in(values).tabs) == {"dataset", "train", "restore"}
    assert "The tab generate cannot be refreshed" in caplog.text
