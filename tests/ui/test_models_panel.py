"""“Models” on the page: rows, what the buttons do, and new models offered by the tabs. Downloads are real ones."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gradio as gr
import pytest

from headshot_ui import families, usual_base
from headshot_ui.downloads.catalogue import find_entry
from headshot_ui.downloads.runner import remove, run_download
from headshot_ui.engine import TASKS
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.jobs import FETCH, MAIN
from headshot_ui.specs import DownloadSpec, PrepareSpec, TrainSpec
from headshot_ui.store import Store
from headshot_ui.ui import generate_request, models_panel, templates
from headshot_ui.ui.literal import literal
from headshot_ui.ui.live import Live
from headshot_ui.ui.models_view import Asked, panel_mark, panel_value, press
from headshot_ui.ui.page import OWN_OUTPUTS, Board, Seen, _refresh, build_page, newest_person
from tests.downloads.conftest import ENTRIES, NETWORK, Place, online, place, release_path, small_catalogue
from tests.ui.fake_engine import FakeEngine, portrait

__all__ = ["online", "place", "small_catalogue"]  # fixtures


@pytest.fixture
def engine(place: Place) -> Iterator[FakeEngine]:
    def download(spec: DownloadSpec, report: Any) -> Any:
        return run_download(spec, place.settings, report)

    made = FakeEngine(place.settings, runners={DownloadSpec: download})
    yield made
    made.close()


@pytest.fixture
def live(engine: FakeEngine, place: Place, tmp_path: Path) -> Live:
    return Live(engine, place.settings, tmp_path / "shown")


def row(live: Live, place: Place, entry_id: str, asked: Asked | None = None) -> dict[str, Any]:
    return next(each for each in panel_value(live, place.settings, asked)["rows"] if each["id"] == entry_id)


def ended(live: Live) -> str:
    return live.jobs()[-1].wait(20).state


def test_get_downloads_and_the_row_says_so(live: Live, place: Place) -> None:
    before = row(live, place, "net")
    assert (before["state_words"], before["get"], before["check"], before["remove"]) == (
        "Not here",
        "Get",
        False,
        False,
    )
    marks = [panel_mark(live, place.settings)]
    place.world.gate.clear()
    assert press(live, place.settings, "get", "net") == Asked()
    marks.append(panel_mark(live, place.settings))
    busy = row(live, place, "net")
    assert busy["state_words"] in ("Waiting …", "Being downloaded …") and not busy["get"]
    press(live, place.settings, "get", "net")
    assert len(live.jobs()) == 1, "two clicks are one download"
    place.world.gate.set()
    assert ended(live) == "done"
    marks.append(panel_mark(live, place.settings))
    after = row(live, place, "net")
    assert (after["state_words"], after["get"], after["check"], after["remove"]) == ("Here", "", True, True)
    assert after["detail"] == "Checked against the published checksums." and len(set(marks)) == 3
    assert live.bar()["finished"][0]["text"] == "2.0 MB downloaded and checked."


def test_a_failed_download_is_told_in_the_bar_and_goes_on_later(live: Live, place: Place) -> None:
    place.world.cut[release_path("net.pth")] = [2**20, *[0] * 20]
    press(live, place.settings, "get", "net")
    assert ended(live) == "failed" and "broke off" in live.bar()["finished"][0]["text"]
    half = row(live, place, "net")
    assert half["state_words"] == "Unfinished" and half["get"] == "Go on" and " of 2.0 MB" in half["size"]


def test_what_was_moved_aside_is_said_in_the_bar(live: Live, place: Place) -> None:
    place.path("net").mkdir(parents=True)
    place.path("net/net.pth").write_bytes(b"half")
    press(live, place.settings, "get", "net")
    assert ended(live) == "done"
    told = live.bar()["finished"][0]["text"]
    assert told.startswith("2.0 MB downloaded and checked.") and "it is kept as net.pth.replaced." in told


def test_a_licence_is_shown_first_and_accepted_with_a_press(live: Live, place: Place) -> None:
    asked = press(live, place.settings, "get", "codeformer")
    shown = row(live, place, "codeformer", asked)
    assert shown["asks_licence"] and "non-commercial" in shown["terms"] and not shown["get"] and live.jobs() == ()
    assert not row(live, place, "net", asked)["asks_licence"]
    assert press(live, place.settings, "keep", "codeformer") == Asked() and live.jobs() == ()
    assert press(live, place.settings, "accept", "codeformer") == Asked()
    assert ended(live) == "done" and place.whole("codeformer/codeformer.pth", NETWORK)


def test_check_names_a_damaged_file_and_get_mends_it(live: Live, place: Place) -> None:
    place.get("net")
    place.path("net/net.pth").write_bytes(b"!" + NETWORK[1:])
    press(live, place.settings, "check", "net")
    assert ended(live) == "done"
    assert str(place.path("net/net.pth")) in live.bar()["finished"][0]["text"]
    assert row(live, place, "net")["get"] == "Get again"
    press(live, place.settings, "get", "net")
    assert ended(live) == "done" and place.whole("net/net.pth", NETWORK)


def test_remove_asks_first_and_waits_for_jobs(live: Live, place: Place, engine: FakeEngine) -> None:
    place.get("net")
    asked = press(live, place.settings, "remove", "net")
    assert row(live, place, "net", asked)["asks_remove"] and place.path("net/net.pth").exists()
    engine.hold.clear()
    live.submit(TrainSpec("anna", "demo-sdxl"))
    refused = press(live, place.settings, "remove-really", "net")
    assert "Learning anna" in refused.problem and place.path("net/net.pth").exists()
    assert row(live, place, "net", refused)["problem"] == refused.problem
    engine.hold.set()
    ended(live)
    assert press(live, place.settings, "remove-really", "net") == Asked()
    assert not place.path("net").exists()


def test_what_a_browser_makes_up_is_refused(live: Live, place: Place) -> None:
    assert "no model" in press(live, place.settings, "get", "../../etc").problem
    assert press(live, place.settings, "format-disk", "net") == Asked() and live.jobs() == ()


def test_a_download_is_nobodys_and_does_not_change_whom_the_page_shows(live: Live, place: Place) -> None:
    press(live, place.settings, "get", "net")
    assert newest_person(live, ("anna",)) == "anna" and ended(live) == "done"
    assert live.people() == [] and live.outcome(live.jobs()[-1]).tab == ""


def test_downloads_have_a_lane_of_their_own() -> None:
    lanes = {spec.__name__: task.lane for spec, task in TASKS.items()}
    assert lanes["DownloadSpec"] == FETCH and list(lanes.values()).count(FETCH) == 1 and lanes["TrainSpec"] == MAIN


def test_the_template_takes_every_value_as_text() -> None:
    assert "${" not in templates.MODELS and "{{{" not in templates.MODELS
    assert 'href="{{this.' in templates.MODELS and "http" not in templates.MODELS
    assert literal({"rows": [{"title": "${alert(1)}"}]}) == {"rows": [{"title": "\\${alert(1)}"}]}


# --- on the page ------------------------------------------------------------------------------------
@pytest.fixture
def built(
    place: Place, engine: FakeEngine, live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> SimpleNamespace:
    def bases(settings: Any) -> tuple[BaseInfo, ...]:
        there = [BaseInfo("demo", "sdxl", "Demo", Path("."), "MIT", "Drawn.", 256, demo=True)]
        if place.path("base/base.json").is_file():
            there.append(BaseInfo("base", "sdxl", "Base", place.path("base"), "MIT", "Photographs.", 1024))
        return tuple(there)

    monkeypatch.setattr(families, "all_bases", bases)
    page = build_page(engine, place.settings, tmp_path / "shown", live)
    (board,) = (each for each in gc.get_objects() if isinstance(each, Board) and each.shell.engine is engine)
    return SimpleNamespace(page=page, board=board)


def events_of(page: gr.Blocks, component: Any) -> list[Any]:
    """Functions that run when a component changes, with their outputs."""
    fns = page.fns.values()
    return [fn for fn in fns if any(target == (component._id, "change") for target in fn.targets)]


def test_a_refresh_tells_the_tabs_of_new_models_and_only_then(built: SimpleNamespace, live: Live, place: Place) -> None:
    first = _refresh(built.board, live, "", Seen())
    rows, mark = first[OWN_OUTPUTS - 2 : OWN_OUTPUTS]
    assert mark == gr.skip() and len(rows["rows"]) == len(ENTRIES), "the tabs were laid out with these models"
    seen = next(value for value in first if isinstance(value, Seen))
    again = _refresh(built.board, live, "", seen)
    assert all(value == gr.skip() for value in again)
    place.get("base")
    later = _refresh(built.board, live, "", seen)
    rows, mark = later[OWN_OUTPUTS - 2 : OWN_OUTPUTS]
    assert mark["mark"] == repr(panel_mark(live, place.settings)[0])
    assert _refresh(built.board, live, "", Seen())[OWN_OUTPUTS - 1] == mark, "a browser opened later is told too"
    assert next(each for each in rows["rows"] if each["id"] == "base")["state"] == "there"


def test_a_file_put_there_by_hand_is_told_by_an_open_page(
    built: SimpleNamespace, live: Live, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = _refresh(built.board, live, "", Seen())
    assert first[OWN_OUTPUTS - 2]["own"] is None
    wrong = place.settings.models_dir / "favourite.safetensors"
    wrong.parent.mkdir(parents=True, exist_ok=True)
    wrong.write_bytes(b"no tensors")
    os.utime(wrong, (1e9, 1e9))
    later = _refresh(built.board, live, "", next(value for value in first if isinstance(value, Seen)))
    (own,) = later[OWN_OUTPUTS - 2]["own"]
    assert own["wrong"] and str(wrong) in own["text"] and later[OWN_OUTPUTS - 1] != gr.skip()


def test_every_tab_offers_a_base_that_was_downloaded_and_forgets_one_that_is_gone(
    built: SimpleNamespace, place: Place
) -> None:
    listeners = events_of(built.page, built.board.shell.installed)
    assert len(listeners) == 4, "one per tab"
    dropdowns = {fn.outputs[0].elem_id: fn for fn in listeners}
    assert {"base", "train-base", "restorer"} < set(dropdowns)
    with_base = [fn for fn in listeners if fn.outputs[0].elem_id != "restorer"]
    assert len(with_base) == 3

    def choices(chosen: str) -> list[tuple[list[str], Any]]:
        told = []
        for fn in with_base:
            values = fn.fn(*[chosen, "demo"][: len(fn.inputs)])
            dropdown = values[0] if isinstance(values, list) else values
            told.append(([value for _, value in dropdown.choices], dropdown.value))
        return told

    assert choices("demo") == [(["demo"], "demo")] * 3
    place.get("base")
    assert choices("demo") == [(["demo", "base"], "demo")] * 3
    remove(find_entry("base"), place.settings)
    assert choices("base") == [(["demo"], "demo")] * 3


def test_new_photos_are_for_a_new_base_that_draws_photographs_unless_another_was_chosen(
    built: SimpleNamespace, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usual_base, "has_card", lambda settings: True)
    (listener,) = (
        fn for fn in events_of(built.page, built.board.shell.installed) if fn.outputs[0].elem_id == "base"
    )
    assert [listener.fn("demo", "demo")[0].value, listener.fn("demo", "demo")[1]] == ["demo", "demo"]
    place.get("base")
    dropdown, told = listener.fn("demo", "demo")
    assert (dropdown.value, told) == ("base", "base")
    dropdown, told = listener.fn("demo", told)
    assert (dropdown.value, told) == ("demo", "base"), "chosen after that, so it stays when other models come"
    remove(find_entry("base"), place.settings)
    assert listener.fn("base", told)[0].value == "demo"


def test_the_page_opens_with_the_usual_base(
    engine: FakeEngine, live: Live, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = BaseInfo("demo", "sdxl", "Demo", Path("."), "MIT", "Drawn.", 256, demo=True)
    real = BaseInfo("base", "sdxl", "Base", Path("."), "MIT", "Photographs.", 1024)
    monkeypatch.setattr(families, "all_bases", lambda settings: (drawn, real))
    for card, wanted in ((True, "base"), (False, "demo")):
        monkeypatch.setattr(usual_base, "has_card", lambda settings, card=card: card)
        blocks = build_page(engine, place.settings, tmp_path / "shown", live).blocks.values()
        chosen = {block.elem_id: block for block in blocks if isinstance(block, gr.Dropdown | gr.HTML)}
        assert [chosen[name].value for name in ("base", "train-base", "generate-base")] == [wanted] * 3
        assert ("many hours" in str(chosen["base-note"].value)) is not card
        assert generate_request.base_of(Store(place.settings), "nobody", (drawn, real)) == wanted


def test_the_chosen_base_stays_chosen() -> None:
    infos = [BaseInfo(name, "sdxl", name, Path("."), "MIT", "x", 256) for name in ("a", "b")]

    def answered(*given: Any, **more: Any) -> Any:
        return models_panel.base_dropdown(*given, **more).constructor_args.get("value", "nothing")

    assert answered(infos, "b", infos[0]) == "nothing"  # what somebody chose meanwhile is not taken back
    assert answered(infos, "b", infos[0], wanted="b") == "nothing"
    assert answered(infos, "a", infos[0], wanted="b") == "b"
    assert answered(infos, "c", infos[1]) == "b"
    assert answered(infos, None, infos[1]) == "b"
    assert answered([], "c", None) is None


def test_training_is_possible_beside_a_download(live: Live, place: Place, tmp_path: Path) -> None:
    place.world.gate.clear()
    press(live, place.settings, "get", "net")
    photo = tmp_path / "a.jpg"
    portrait(1, "x").save(photo)
    assert live.submit(PrepareSpec("anna", (str(photo),), "demo-sdxl")).wait(20).state == "done"
    assert live.unfinished()[0].snapshot.kind == "download"
    place.world.gate.set()
    assert live.unfinished()[0].wait(20).state == "done" if live.unfinished() else True
