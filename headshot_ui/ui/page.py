"""The shell of the page: person, job bar, four tabs. No model, no job of its own: it shows what ``Live`` says."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr

from headshot_ui.errors import HeadshotError
from headshot_ui.settings import Settings
from headshot_ui.store import Store
from headshot_ui.ui import models_panel, models_view, people, templates
from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.live import EngineLike, Live
from headshot_ui.ui.page_js import BUTTONS, READY
from headshot_ui.ui.tab import CLICK, QUIET, TABS, Shell, Tab, nudged

MOST_WAITING = 20  # requests; a page in one browser has one or two under way
OWN_OUTPUTS = 12  # of a refresh, before those of the tabs
BUSY_S, IDLE_S = 1.0, 4.0  # between two looks at what is new
TITLES = {"dataset": "Dataset", "train": "Train", "generate": "Generate", "restore": "Restore"}
#: Where the browser keeps who and what was last looked at. The "secret" only has to stay the same over restarts.
STORED_PERSON, STORED_TAB, STORED_WITH = "headshot_ui-person", "headshot_ui-tab", "headshot_ui-page"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Seen:
    """What one browser already shows, so that only what changed is sent."""

    person: str = ""
    bar: Any = None
    people: tuple[str, ...] = ()
    tabs: Mapping[str, Any] = field(default_factory=dict)
    models: Any = None


@dataclass(frozen=True)
class Board:
    """The components that belong to no tab."""

    shell: Shell
    people: people.People
    bar: gr.HTML
    models: models_panel.ModelsPanel
    seen: gr.State
    stored_person: gr.BrowserState
    stored_tab: gr.BrowserState
    idle: gr.Timer
    tabs: Mapping[str, Tab]


def build_page(engine: EngineLike, settings: Settings, shown_dir: Path, live: Live | None = None) -> gr.Blocks:
    """The whole page. ``shown_dir`` is the private folder that files are handed out from."""
    live = live or Live(engine, settings, shown_dir)
    store = Store(settings)
    with gr.Blocks(title="Headshots", analytics_enabled=False) as page:
        page.queue(max_size=MOST_WAITING)  # first of all: gradio describes everything there is anew at this call
        board = _layout(engine, settings, shown_dir, live, store)
        people.wire(board.people, board.shell, store)
        models_panel.wire(board.models, live, settings, board.shell.nudge)
        _wire(page, board, live, store)
    return page


def _layout(engine: EngineLike, settings: Settings, shown_dir: Path, live: Live, store: Store) -> Board:
    with gr.Row(elem_classes="hs-top"):
        safe_html({}, html_template=templates.HEADER)
        row = people.picker_layout(store.people())
    picker = people.layout(store.people(), row)
    bar = safe_html({"shown": False}, html_template=templates.BAR, js_on_load=BUTTONS, elem_id="bar")
    models = models_panel.layout(settings)
    timer, idle = gr.Timer(BUSY_S, active=False), gr.Timer(IDLE_S)
    seen, nudge, lora, to_restore = gr.State(Seen()), gr.State(0.0), gr.State(), gr.State()
    stored_person = gr.BrowserState("", storage_key=STORED_PERSON, secret=STORED_WITH)
    stored_tab = gr.BrowserState("", storage_key=STORED_TAB, secret=STORED_WITH)
    built: dict[str, Tab] = {}
    with gr.Tabs(selected=TABS[0], elem_id="tabs", overflow_behavior="wrap") as tabs:
        shell = Shell(engine, settings, live, shown_dir, picker.person, timer, tabs, nudge, picker.name,
                      picker.name_problem, lora, to_restore, models.installed)  # fmt: skip
        for name in TABS:
            with gr.Tab(TITLES[name], id=name, elem_id=f"tab-{name}", elem_classes="hs-tab"):
                built[name] = importlib.import_module(f"headshot_ui.ui.tabs.{name}").build(shell)
    return Board(shell, picker, bar, models, seen, stored_person, stored_tab, idle, built)


def _wire(page: gr.Blocks, board: Board, live: Live, store: Store) -> None:
    shell, picker = board.shell, board.people
    outputs = [board.bar, picker.person, picker.row, picker.delete, picker.adding, picker.hint, picker.keep_old,
               shell.timer, board.idle, board.seen, board.models.rows, board.models.installed,
               *(output for name in TABS for output in board.tabs[name].outputs)]  # fmt: skip

    def refresh(person: str | None, seen: Seen) -> list[Any]:
        return _refresh(board, live, person or "", seen)

    def loaded(stored: str | None, tab: str | None) -> list[Any]:
        person = stored or newest_person(live, store.people())
        chosen = gr.Tabs(selected=tab) if tab in TABS[1:] else gr.skip()
        return [*people.chosen_values(live, person), chosen, nudged()]

    stored = [board.stored_person, board.stored_tab]
    shown = [*people.chosen_outputs(picker), shell.tabs, shell.nudge]
    page.load(loaded, stored, shown, **QUIET).then(None, js=READY)
    # One event with many triggers, so that a browser never has two answers under way that could change places.
    triggers = [shell.timer.tick, board.idle.tick, shell.nudge.change, shell.person.change]
    gr.on(triggers, refresh, [shell.person, board.seen], outputs, **{**QUIET, "trigger_mode": "always_last"})
    _wire_stored(board)
    _wire_bar(board, live)


def _wire_stored(board: Board) -> None:
    """Person and tab are kept by the browser, so that a reload leaves everything where it was."""

    def tab_chosen(chosen: gr.SelectData) -> str:
        return next((name for name, title in TITLES.items() if title == chosen.value), "")

    person = board.shell.person
    # In the browser alone, so that not even a reload a moment later finds the former one.
    person.change(None, person, board.stored_person, js="(chosen) => chosen || ''", **QUIET)
    board.shell.tabs.select(tab_chosen, None, board.stored_tab, **QUIET)


def _wire_bar(board: Board, live: Live) -> None:
    def press(event: gr.EventData) -> list[Any]:
        wanted, job_id = str(event.do), str(event.item)
        values: list[Any] = [gr.skip()] * len(people.chosen_outputs(board.people))
        tab: Any = gr.skip()
        models: Any = gr.skip()
        if wanted == "cancel":
            live.cancel(job_id)
        elif wanted == "dismiss":
            live.dismiss(job_id)
        elif wanted == "show" and (job := live.find(job_id)) is not None:
            about = live.person_of(job)
            values = people.chosen_values(live, about) if about else values
            tab = gr.Tabs(selected=live.outcome(job).tab) if about else gr.skip()
            models = gr.skip() if about else gr.Accordion(open=True)
        return [*values, tab, models, nudged()]

    outputs = [*people.chosen_outputs(board.people), board.shell.tabs, board.models.box, board.shell.nudge]
    board.bar.click(press, None, outputs, **CLICK)


def newest_person(live: Live, known: tuple[str, ...]) -> str:
    """Whom a fresh browser shows: the person of the newest job, else the first one."""
    for job in reversed([job for job in live.jobs() if live.person_of(job)]):
        if live.person_of(job) in known or not job.snapshot.finished:
            return live.person_of(job)
    return known[0] if known else ""


def _refresh(board: Board, live: Live, person: str, seen: Seen) -> list[Any]:
    """New values of everything; ``gr.skip()`` where nothing changed."""
    marks = dict(seen.tabs) if seen.person == person else {}
    values: list[Any] = []
    for name in TABS:
        tab = board.tabs[name]
        changed = _look(tab, name, person, marks.get(name))
        if changed is None:
            values += [gr.skip()] * len(tab.outputs)
        else:
            values += changed[0]
            marks[name] = changed[1]
    bar, names = live.bar(), tuple(live.people(person))
    busy = bool(bar["running"] or bar["waiting"])
    models = models_view.panel_mark(live, board.shell.settings)
    now = Seen(person, bar, names, marks, models)
    if now == seen:
        return [gr.skip()] * (OWN_OUTPUTS + len(values))
    was_busy = bool(seen.bar and (seen.bar["running"] or seen.bar["waiting"]))
    timers = [gr.skip()] * 2 if seen.bar and busy == was_busy else [gr.Timer(active=busy), gr.Timer(active=not busy)]
    listed = gr.skip() if names == seen.people else gr.Dropdown(choices=list(names))
    picker: list[Any] = [gr.skip()] * 5
    if person and person not in names:  # deleted in another window: whom this one shows then follows as its own change
        listed = gr.Dropdown(choices=list(names), value=names[0] if names else None)
        picker = [gr.Row(visible=bool(names)), gr.Button(interactive=bool(names)), gr.Column(visible=not names),
                  {"first": not names}, gr.Button(visible=bool(names))]  # fmt: skip
    elif person and person != seen.person:
        picker[:3] = [gr.Row(visible=True), gr.Button(interactive=True), gr.Column(visible=False)]
    return [gr.skip() if bar == seen.bar else bar, listed, *picker, *timers, now,
            *_models(board, live, models, seen.models), *values]  # fmt: skip


def _models(board: Board, live: Live, mark: tuple[Any, ...], seen: tuple[Any, ...] | None) -> list[Any]:
    """Rows of the panel, and the mark by which the tabs know that there are other models to choose from."""
    rows = gr.skip() if mark == seen else models_view.panel_value(live, board.shell.settings)
    before = seen[0] if seen else board.models.built_with
    return [rows, gr.skip() if mark[0] == before else {"mark": repr(mark[0])}]


def _look(tab: Tab, name: str, person: str, mark: Any) -> tuple[list[Any], Any] | None:
    """What a tab says is new. A tab that fails stays as it is and does not take the others with it."""
    try:
        return tab.refresh(person, mark)
    except HeadshotError as error:
        _log.warning("The tab %s cannot be refreshed: %s", name, error)
    except Exception:
        _log.exception("The tab %s cannot be refreshed", name)
    return None
