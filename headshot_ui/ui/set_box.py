"""Under the pictures of the Generate tab: the contact sheet of the set on view, and all of its pictures in one zip."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from headshot_ui.errors import HeadshotError
from headshot_ui.store import Store
from headshot_ui.ui import set_view as views
from headshot_ui.ui import studio_templates as templates
from headshot_ui.ui.export_box import LATEST_WINS, SENDS
from headshot_ui.ui.headshot_view import View
from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.tab import Shell
from headshot_ui.ui.templates import PROBLEM

ABOUT = "PNGs as they were drawn, with their settings inside. For pictures to hand on, use Export."
#: The button that holds the file is pressed for the person, once the browser knows of the file.
PRESS = "() => setTimeout(() => { const b = document.querySelector('#set-zip-file'); if (b) b.click(); }, 150)"


@dataclass(frozen=True)
class SetBox:
    """The components."""

    row: gr.Row
    sheet: gr.HTML
    download: gr.DownloadButton
    pack: gr.Button
    packed: gr.DownloadButton  # not seen
    problem: gr.HTML
    key: gr.State  # of the set whose sheet is shown


def layout() -> SetBox:
    """All of it; empty until a set is on view."""
    with gr.Row(elem_classes="hs-whole", visible=False, elem_id="whole-set") as row:
        with gr.Column(scale=1, min_width=260):
            sheet = safe_html(views.NOTHING, templates.SHEET, js_on_load=templates.SHEET_JS, elem_id="sheet")
        with gr.Column(scale=2, min_width=260):
            safe_html({"title": "All of this set", "text": ABOUT}, templates.SMALL_HEADING)
            with gr.Row(elem_classes="hs-actions"):
                download = gr.DownloadButton("Download the sheet", elem_id="sheet-file", elem_classes="hs-plain")
                pack = gr.Button("Download all pictures (zip)", elem_id="set-zip", elem_classes="hs-plain")
            packed = gr.DownloadButton("Zip", visible="hidden", elem_id="set-zip-file")
            problem = safe_html({"text": ""}, PROBLEM, elem_id="set-problem", elem_classes="hs-problem-place")
    return SetBox(row, sheet, download, pack, packed, problem, gr.State(""))


def wire(box: SetBox, shell: Shell, view: gr.State, grid: gr.HTML) -> None:
    """``grid`` changes with whatever is on view; the sheet is made anew only when the set or its pictures changed."""
    store = Store(shell.settings)

    def show(person: str | None, view: View, shown: str) -> list[Any]:
        who = person or ""
        on_view = views.set_on_view(store, who, view.set_id)
        key = views.set_key(on_view)
        if key == shown:
            return [gr.skip()] * 6
        said, sheet = "", None
        try:
            sheet = views.sheet_of(on_view, store, shell.shown_dir, who)
        except HeadshotError as error:
            said = f"The contact sheet could not be made: {error}"
        label = views.zip_label(on_view)
        file = gr.DownloadButton(value=str(sheet) if sheet else None, interactive=sheet is not None)
        return [gr.Row(visible=bool(key)), views.sheet_values(sheet, shell.shown_dir, who), file, gr.Button(label),
                {"text": said}, key]  # fmt: skip

    def pack(person: str | None, view: View) -> list[Any]:
        try:
            on_view = views.set_on_view(store, person or "", view.set_id)
            made = views.zip_of(on_view, shell.shown_dir, person or "")
        except HeadshotError as error:
            return [gr.skip(), {"text": str(error)}]
        return [gr.skip() if made is None else gr.DownloadButton(value=str(made)), {"text": ""}]

    outputs = [box.row, box.sheet, box.download, box.pack, box.problem, box.key]
    grid.change(show, [shell.person, view, box.key], outputs, **LATEST_WINS)
    box.pack.click(pack, [shell.person, view], [box.packed, box.problem], **SENDS).success(None, None, None, js=PRESS)
