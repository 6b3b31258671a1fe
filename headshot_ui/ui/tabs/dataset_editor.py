"""The checked photos beside the editor of the chosen one: caption, in or out, undo."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from headshot_ui.errors import HeadshotError
from headshot_ui.store import Store
from headshot_ui.ui import templates
from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.page_js import CHOICE_BUTTONS
from headshot_ui.ui.photos import (
    Changed,
    change_caption,
    change_verdict,
    editor_values,
    find,
    grid_values,
    photos_of,
    undo,
)
from headshot_ui.ui.tab import CLICK, QUIET, Shell, problem

LEAVE_OUT, TAKE_IN = "Leave this photo out", "Use this photo"


@dataclass(frozen=True)
class Editor:
    """The components of the editor."""

    box: gr.Column
    head: gr.HTML
    caption: gr.Textbox
    save: gr.Button
    toggle: gr.Button
    problem: gr.HTML
    done: gr.HTML
    undo: gr.Button


def editor_layout() -> tuple[gr.HTML, Editor]:
    """The grid of photos and the editor, for a row."""
    grid = safe_html({"photos": []}, html_template=templates.PHOTO_GRID, js_on_load=CHOICE_BUTTONS, elem_id="photos",
                   scale=3, min_width=280)  # fmt: skip
    with gr.Column(scale=2, min_width=260, elem_id="editor", elem_classes="hs-editor", visible=False) as box:
        head = safe_html({"name": ""}, html_template=templates.EDITOR, elem_id="editing")
        caption = gr.Textbox(
            label="Caption: what the model is told about this photo", lines=3, max_lines=6, max_length=300,
            elem_id="caption",
        )  # fmt: skip
        with gr.Row(elem_classes="hs-actions"):
            save = gr.Button("Save caption", variant="primary", size="sm", elem_id="save-caption", min_width=120)
            toggle = gr.Button(LEAVE_OUT, size="sm", elem_id="toggle-photo", elem_classes="hs-plain", min_width=150)
        changed_problem = problem("editor-problem")
        done = safe_html({"text": ""}, html_template=templates.NOTE, elem_id="editor-done")
        back = gr.Button("Undo", size="sm", elem_id="undo", elem_classes="hs-plain", visible=False)
    return grid, Editor(box, head, caption, save, toggle, changed_problem, done, back)


def wire_editor(editor: Editor, shell: Shell, store: Store, grid: gr.HTML, count: gr.HTML) -> None:
    """Choosing a photo opens the editor; every change is saved at once and can be undone once."""
    chosen, last = gr.State(""), gr.State()
    shown = [editor.box, editor.head, editor.caption, editor.save, editor.toggle]
    told = [editor.problem, editor.done, editor.undo]

    def open_editor(person: str | None, event: gr.EventData) -> list[Any]:
        if any(job.snapshot.kind == "prepare" for job in shell.live.unfinished(person or "-")):
            return [gr.skip()] * 10  # the line above the photos says why
        source = str(event.item)
        return [*_shown(store, person or "", source), source, None, {"text": ""}, {"text": ""},
                gr.Button(visible=False)]  # fmt: skip

    def apply(person: str, source: str, action: str, text: str) -> list[Any]:
        try:
            if action == "caption":
                changed = change_caption(store, person, source, text)
            else:
                photo = find(photos_of(store, person), source)
                out = photo is not None and photo.verdict == "rejected"
                changed = change_verdict(store, person, source, "train" if out else "rejected")
        except HeadshotError as error:
            return [*[gr.skip()] * 8, {"text": str(error)}, gr.skip(), gr.skip()]
        said = [changed, {"text": ""}, {"text": changed.said}, gr.Button(visible=True)]
        return [*_shown(store, person, source), *_grid(store, person), *said]

    def take_back(changed: Changed | None) -> list[Any]:
        if changed is None:
            return [gr.skip()] * 11
        try:
            undo(store, changed)
        except HeadshotError as error:
            return [*[gr.skip()] * 8, {"text": str(error)}, gr.skip(), gr.skip()]
        said = [None, {"text": ""}, {"text": "Undone."}, gr.Button(visible=False)]
        return [*_shown(store, changed.person, changed.source), *_grid(store, changed.person), *said]

    grid.click(open_editor, shell.person, [*shown, chosen, last, *told], **CLICK)
    everything = [*shown, count, grid, last, *told]
    for button, action in ((editor.save, "caption"), (editor.toggle, "verdict")):
        button.click(
            lambda person, source, text, action=action: apply(person or "", source, action, text or ""),
            [shell.person, chosen, editor.caption], everything, **QUIET,
        )  # fmt: skip
    editor.undo.click(take_back, last, everything, **QUIET)
    editor.caption.change(lambda: {"text": ""}, None, editor.problem, **QUIET)


def _shown(store: Store, person: str, source: str) -> list[Any]:
    """Values of the editor for one photo; it closes when the photo is gone."""
    try:
        photo = find(photos_of(store, person), source)
    except HeadshotError:
        photo = None
    if photo is None:
        return [gr.Column(visible=False), *[gr.skip()] * 4]
    used = photo.verdict != "rejected"
    return [
        gr.Column(visible=True),
        editor_values(store, person, photo),
        gr.Textbox(value=photo.caption, visible=used),
        gr.Button(visible=used),
        gr.Button(LEAVE_OUT if used else TAKE_IN, visible=bool(photo.crop)),
    ]


def _grid(store: Store, person: str) -> list[Any]:
    values = grid_values(store, person, photos_of(store, person))
    return [{"count": values["count"], "advice": values["advice"]}, values]
