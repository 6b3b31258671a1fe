"""The lower half of the Generate tab: what was drawn, best first, and what can be done with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr

from headshot_ui.errors import HeadshotError
from headshot_ui.store import Store
from headshot_ui.ui import changing_choices, export_box, set_box
from headshot_ui.ui import headshot_view as views
from headshot_ui.ui import studio_templates as templates
from headshot_ui.ui.export_box import SENDS, ExportBox
from headshot_ui.ui.headshot_view import Seen, View
from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.page_js import BUTTONS
from headshot_ui.ui.picture_sets import ALL, delete_picture, picture_id, settings_of, undelete_picture
from headshot_ui.ui.set_box import SetBox
from headshot_ui.ui.tab import CLICK, QUIET, Shell, nudged
from headshot_ui.ui.templates import PROBLEM


@dataclass(frozen=True)
class Results:
    """The components."""

    card: gr.Column
    heading: gr.HTML
    switches: gr.Row
    sets: gr.Dropdown
    which: gr.Radio
    closer: gr.Row
    large: gr.HTML
    facts: gr.HTML
    star: gr.Button
    restore: gr.Button
    again: gr.Button
    use: gr.Button
    delete: gr.Button
    undo: gr.Button
    problem: gr.HTML
    grid: gr.HTML
    whole: SetBox
    box: ExportBox
    export_column: gr.Column
    view: gr.State
    aside: gr.State  # path of the picture that "Undo" brings back, or None

    @property
    def shown(self) -> list[Any]:
        """What ``values`` has values for."""
        return [self.heading, self.switches, self.sets, self.which, self.closer, self.large, self.facts, self.star,
                self.grid, self.export_column, self.box.these, self.view]  # fmt: skip


def layout() -> Results:
    """All of it; ``box`` is the export box."""
    view, aside = gr.State(View()), gr.State(None)
    with gr.Column(elem_classes="hs-card", elem_id="headshots", visible=False) as card:
        heading = safe_html({"title": "", "text": ""}, templates.HEADING, elem_id="headshots-heading")
        with gr.Row(elem_classes="hs-fields", visible=False) as switches:
            sets = changing_choices.dropdown(choices=[], value=None, label="Drawn on", filterable=False, elem_id="sets",
                                             min_width=280)  # fmt: skip
            which = changing_choices.radio(choices=[("All", ALL)], value=ALL, label="Show", elem_id="which",
                                           min_width=280)  # fmt: skip
        with gr.Row(elem_classes="hs-closer", visible=False) as closer:
            with gr.Column(scale=3, min_width=280):
                large = safe_html({"picture": "", "alt": ""}, templates.LARGE, js_on_load=templates.LARGE_JS,
                                  elem_id="large")  # fmt: skip
            with gr.Column(scale=2, min_width=280):
                facts = safe_html({"facts": []}, templates.FACTS, elem_id="facts")
                with gr.Row(elem_classes="hs-picture-actions"):
                    star = gr.Button("☆ Star", elem_id="star")
                    restore = gr.Button("Restore this", elem_id="restore-this")
                    again = gr.Button("Draw this again with other seeds", elem_id="draw-again")
                    use = gr.Button("Use as settings", elem_id="use-settings")
                    delete = gr.Button("Delete", elem_id="delete-picture")
        undo = gr.Button("Undo", visible=False, elem_id="undo-delete", elem_classes="hs-plain hs-narrow")
        problem = safe_html({"text": ""}, PROBLEM, elem_id="headshots-problem", elem_classes="hs-problem-place")
        grid = safe_html({"shots": []}, templates.GRID, js_on_load=BUTTONS, elem_id="grid")
        whole = set_box.layout()
        with gr.Column(visible=False) as export_column:
            box = export_box.layout("headshots")
    return Results(card, heading, switches, sets, which, closer, large, facts, star, restore, again, use, delete, undo,
                   problem, grid, whole, box, export_column, view, aside)  # fmt: skip


def values(store: Store, shown_dir: Path, person: str, seen: Seen) -> list[Any]:
    """Values of ``Results.shown``."""
    there, any_set = seen.picture is not None, seen.shown is not None
    starred = there and seen.picture is not None and seen.picture.path in seen.stars
    return [
        views.heading(seen, person),
        gr.Row(visible=any_set),
        gr.Dropdown(choices=views.set_choices(seen), value=seen.view.set_id or None),
        gr.Radio(choices=views.which_choices(seen), value=seen.view.which),
        gr.Row(visible=there),
        views.large_values(seen, shown_dir),
        views.fact_values(seen),
        gr.Button("★ Starred" if starred else "☆ Star"),
        views.grid_values(seen, shown_dir),
        gr.Column(visible=any_set),
        export_box.starred_value(store, person),
        seen.view,
    ]


def wire(results: Results, shell: Shell, use_settings: Callable[[Any], list[Any]], form_outputs: list[Any]) -> None:
    """``use_settings(spec)`` gives values of ``form_outputs`` that make a request again."""
    store = Store(shell.settings)

    def answer(person: str | None, view: View) -> list[Any]:
        seen = views.look(store, person or "", view)
        return values(store, shell.shown_dir, person or "", seen)

    def change_set(person: str | None, view: View, set_id: str | None, which: str | None) -> list[Any]:
        if (set_id or "", which or ALL) == (view.set_id, view.which):
            return [gr.skip()] * len(results.shown)  # it was the page itself that changed it
        return answer(person, View(set_id or "", which or ALL))

    def press(person: str | None, view: View, event: gr.EventData) -> list[Any]:
        wanted, item = str(event.do), str(event.item)
        seen = views.look(store, person or "", view)
        if wanted == "open":
            view = views.opened(seen, item)
        elif wanted == "page":
            view = views.turned(seen, item)
        elif wanted == "star":
            try:
                views.toggle_star(store, person or "", seen, item)
            except HeadshotError as error:
                return [{"text": str(error)}, *[gr.skip()] * len(results.shown)]
        return [{"text": ""}, *answer(person, view)]

    def star(person: str | None, view: View) -> list[Any]:
        seen = views.look(store, person or "", view)
        try:
            views.toggle_star(store, person or "", seen, seen.view.picture)
        except HeadshotError as error:
            return [{"text": str(error)}, *[gr.skip()] * len(results.shown)]
        return [{"text": ""}, *answer(person, seen.view)]

    shown = [shell.person, results.view]
    gr.on([results.sets.change, results.which.change], change_set, [*shown, results.sets, results.which], results.shown,
          **QUIET)  # fmt: skip
    results.grid.click(press, shown, [results.problem, *results.shown], **CLICK)
    results.star.click(star, shown, [results.problem, *results.shown], **CLICK)
    set_box.wire(results.whole, shell, results.view, results.grid)
    _wire_deleting(results, shell, store, answer)
    _wire_leaving(results, shell, store, use_settings, form_outputs)
    export_box.wire(results.box, shell, results.view, results.large, lambda person, view: _path_of(store, person, view))


def _path_of(store: Store, person: str, view: View) -> Path | None:
    picture = views.look(store, person, view).picture
    return None if picture is None else picture.path


def _wire_deleting(results: Results, shell: Shell, store: Store, answer: Callable[..., list[Any]]) -> None:
    """A deleted picture can be brought back until the next one is deleted."""

    def delete(person: str | None, view: View) -> list[Any]:
        seen = views.look(store, person or "", view)
        if seen.picture is None:
            return [gr.skip()] * (len(results.shown) + 3)
        try:
            aside = delete_picture(store, person or "", seen.picture.path)
        except HeadshotError as error:
            return [{"text": str(error)}, gr.skip(), gr.skip(), *[gr.skip()] * len(results.shown)]
        undo = gr.Button(f"“{seen.picture.path.name}” is deleted. Undo", visible=True)
        return [{"text": ""}, str(aside), undo, *answer(person, views.neighbour(seen))]

    def undo(person: str | None, view: View, aside: str | None) -> list[Any]:
        try:
            path = undelete_picture(Path(aside or ""))
        except HeadshotError as error:
            return [{"text": str(error)}, None, gr.Button(visible=False), *[gr.skip()] * len(results.shown)]
        back = replace(view, set_id=path.parent.name, picture=picture_id(path))
        return [{"text": ""}, None, gr.Button(visible=False), *answer(person, back)]

    outputs = [results.problem, results.aside, results.undo, *results.shown]
    results.delete.click(delete, [shell.person, results.view], outputs, **CLICK)
    results.undo.click(undo, [shell.person, results.view, results.aside], outputs, **CLICK)


def _wire_leaving(
    results: Results, shell: Shell, store: Store, use_settings: Callable[[Any], list[Any]], form_outputs: list[Any]
) -> None:
    """From a picture to another tab, another request, or the form above."""

    def restore(person: str | None, view: View) -> list[Any]:
        path = _path_of(store, person or "", view)
        if path is None:
            return [gr.skip(), gr.skip()]
        return [(person or "", (str(path),)), gr.Tabs(selected="restore")]

    def again(person: str | None, view: View) -> list[Any]:
        try:
            shell.live.submit(views.again_request(views.look(store, person or "", view)))
        except HeadshotError as error:
            return [{"text": str(error)}, gr.skip()]
        return [{"text": ""}, nudged()]

    def use(person: str | None, view: View) -> list[Any]:
        seen = views.look(store, person or "", view)
        try:
            if seen.picture is None:
                return [gr.skip()] * (1 + len(form_outputs))
            return [{"text": ""}, *use_settings(settings_of(seen.picture))]
        except HeadshotError as error:
            return [{"text": str(error)}, *[gr.skip()] * len(form_outputs)]

    shown = [shell.person, results.view]
    results.restore.click(restore, shown, [shell.to_restore, shell.tabs], **SENDS)
    results.again.click(again, shown, [results.problem, shell.nudge], **SENDS)
    to_form = "() => document.querySelector('#generate-form').scrollIntoView({block: 'start', behavior: 'smooth'})"
    results.use.click(use, shown, [results.problem, *form_outputs], **CLICK).then(None, None, None, js=to_form)
