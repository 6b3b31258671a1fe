"""What the shell of the page gives a tab, and what a tab gives back.

A tab is one file in ``ui/tabs`` with ``build(shell) -> Tab``. It lays out its components and wires its own buttons;
the shell asks every tab what is new, in one request for the whole page: once a second while a job is unfinished,
every few seconds otherwise, after every ``nudge``, when the person is changed and when the page is loaded.

How to write one:

- ``build`` is called inside ``with gr.Tab(…)``; begin with your components. The four modules are
  ``tabs/dataset.py``, ``tabs/train.py``, ``tabs/generate.py`` and ``tabs/restore.py``.
- Start a job: ``shell.live.submit(spec)`` in a handler wired with ``**CLICK``, then return ``nudged()`` for
  ``shell.nudge``: the page is refreshed at once and its timer starts by itself. An equal spec that is not finished is
  not started twice, so a spec must not hold anything drawn by lot in the handler (two clicks would be two specs).
- The job bar above the tabs already shows title, stage, percent, time left, Cancel, the queue, errors and what was
  made, on every tab. A tab shows what is its own: previews, pictures, choices.
- ``SpecError.field`` names the field: show the sentence right under it with ``problem()``; clear it when the field
  changes. Other ``HeadshotError`` sentences go under the button that was pressed.
- ``refresh`` is called with the mark of what *this* browser shows (``None`` at first). Compare, and return None when
  nothing changed. It runs for every open browser, so keep no per-browser state in the module. Whatever it raises is
  logged and leaves the tab as it is.
- Models come and go while the page is open: choices of them are kept up with by
  ``shell.installed.change(…)``.
- Outputs of a tab nobody has opened yet are kept by gradio and shown when it is opened.
- Values people typed, file names, paths and captions go into templates of ``safe_html`` (``ui/literal.py``) through
  ``{{…}}`` only (escaped), never ``${…}``; a plain ``gr.HTML`` would run a file called ``${…}.jpg``.
- Buttons inside a template: ``<button data-do="open" data-item="3">`` with ``js_on_load=BUTTONS`` from
  ``ui/page_js.py``; then ``html.click(handler, …)`` where the handler takes ``event: gr.EventData`` and reads
  ``event.do`` and ``event.item`` (text).
- Pictures in templates are data: addresses (``thumbnails.data_uri``); pictures for ``gr.Gallery`` or a download must
  lie in ``shell.shown_dir`` (``thumbnails.small_copy`` or a plain copy).
- Cards: ``gr.Column(elem_classes="hs-card")``; two columns: ``gr.Row(elem_classes="hs-columns")``; soft text
  ``hs-soft``; quiet buttons ``elem_classes="hs-plain"``. Colours only as ``var(--hs-…)`` (see ``theme.py``).
- An empty state says what is missing (template ``EMPTY``) and has a button that leads there: see ``tabs/train.py``.
- ``shell.lora`` holds the run "Use for pictures" was pressed for, as (person, run folder name); Generate listens to
  its ``change``. ``shell.to_restore`` holds pictures for "Restore this", as (person, (path, …)); Restore listens to it.
- Style sheets: ``page.css`` (shell) and ``studio.css`` (Generate, Restore) are both given to gradio by ``serve.py``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import gradio as gr

    from headshot_ui.settings import Settings
    from headshot_ui.ui.live import EngineLike, Live

#: Options of every event: no spinner over what is shown, no API entry, one small request.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
#: A click counts even while an earlier one is being answered; ``Live.submit`` sees to it that two start one job.
CLICK: dict[str, Any] = {**QUIET, "trigger_mode": "multiple"}
TABS = ("dataset", "train", "generate", "restore")


@dataclass(frozen=True)
class Shell:
    """What every tab is built with."""

    engine: EngineLike
    settings: Settings
    live: Live
    shown_dir: Path  # private folder; only files in it are handed out by the page
    person: gr.Dropdown  # at the top of the page; its value is the person's name or None
    timer: gr.Timer  # ticks while a job is unfinished; started by ``nudge``
    tabs: gr.Tabs  # to send people on: gr.Tabs(selected="train"); ids are in TABS
    nudge: gr.State  # output of handlers that changed something: ``nudged()`` refreshes the whole page at once
    new_name: gr.Textbox  # name of a new person, typed but perhaps not yet added
    name_problem: gr.HTML  # the sentence under it
    lora: gr.State  # (person, run) chosen in the history of trainings, or None
    to_restore: gr.State  # (person, paths of pictures) chosen for restoring, or None
    installed: gr.HTML  # changes when models were downloaded or removed: choices of models listen to it


@dataclass(frozen=True)
class Tab:
    """What the shell keeps of a tab."""

    outputs: tuple[Any, ...]  # components that ``refresh`` has values for
    #: (person or "", mark of what this browser already shows or None) → (one value per output, new mark);
    #: None when nothing changed. Marks are small and comparable; gr.skip() is allowed as a value.
    refresh: Callable[[str, Any], tuple[list[Any], Any] | None]


def nudged() -> float:
    """A new value for ``Shell.nudge``."""
    return time.monotonic()


def problem(elem_id: str) -> gr.HTML:
    """The place for one sentence right under the field it is about; its value is {"text": sentence or ""}."""
    from headshot_ui.ui.literal import safe_html
    from headshot_ui.ui.templates import PROBLEM

    return safe_html({"text": ""}, html_template=PROBLEM, elem_id=elem_id, elem_classes="hs-problem-place")
