"""The export box under the pictures of the Generate and Restore tabs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from headshot_ui.errors import HeadshotError, SpecError
from headshot_ui.specs import EXPORT_LAYOUTS
from headshot_ui.stars import starred
from headshot_ui.store import Store
from headshot_ui.ui import studio_templates as templates
from headshot_ui.ui.export_view import (
    FILE_TYPES,
    cut_values,
    export_mark,
    export_request,
    layout_choices,
    newest_export,
)
from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.tab import CLICK, QUIET, Shell, nudged
from headshot_ui.ui.templates import PROBLEM

#: For handlers that set a state others listen to: the browser learns of changed states through the queue only.
SENDS: dict[str, Any] = {**CLICK, "queue": True}
#: While an answer is awaited only the newest change is remembered.
LATEST_WINS: dict[str, Any] = {**QUIET, "trigger_mode": "always_last"}
DISCLOSE = "Say in the file that the picture is AI-generated"


@dataclass(frozen=True)
class ExportBox:
    """The components. ``tab`` outputs are refreshed with the page, ``stars`` after a star was given or taken."""

    layouts: gr.CheckboxGroup
    layouts_problem: gr.HTML
    cuts: gr.HTML
    file_type: gr.Radio
    disclose: gr.Checkbox
    these: gr.Button
    this: gr.Button
    problem: gr.HTML
    told: gr.HTML
    archive: gr.DownloadButton

    @property
    def refreshed(self) -> list[Any]:
        return [self.told, self.archive]


def layout(prefix: str) -> ExportBox:
    """``prefix`` makes the element ids of two boxes on one page different."""
    with gr.Accordion("Export", open=True, elem_id=f"{prefix}-export", elem_classes="hs-export"):
        layouts = gr.CheckboxGroup(layout_choices(), value=list(EXPORT_LAYOUTS), label="For what",
                                   elem_id=f"{prefix}-layouts")  # fmt: skip
        layouts_problem = _problem(f"{prefix}-layouts-problem")
        cuts = safe_html({"cuts": []}, templates.CUTS, elem_id=f"{prefix}-cuts", elem_classes="hs-place")
        with gr.Row(elem_classes="hs-fields"):
            file_type = gr.Radio(FILE_TYPES, value="jpeg", label="Kind of file", elem_id=f"{prefix}-file-type")
            disclose = gr.Checkbox(True, label=DISCLOSE, elem_id=f"{prefix}-disclose",
                                   info="Honest, and asked for by many sites.")  # fmt: skip
        with gr.Row(elem_classes="hs-actions"):
            these = gr.Button(_starred_label(0), variant="primary", interactive=False, elem_id=f"{prefix}-starred")
            this = gr.Button("Export this", elem_id=f"{prefix}-this", elem_classes="hs-plain")
        problem = _problem(f"{prefix}-export-problem")
        told = safe_html({"lines": []}, templates.LINES, elem_id=f"{prefix}-told", elem_classes="hs-place")
        archive = gr.DownloadButton("Download the zip", visible=False, elem_id=f"{prefix}-zip", elem_classes="hs-plain")
    return ExportBox(layouts, layouts_problem, cuts, file_type, disclose, these, this, problem, told, archive)


def _problem(elem_id: str) -> gr.HTML:
    return safe_html({"text": ""}, PROBLEM, elem_id=elem_id, elem_classes="hs-problem-place")


def wire(
    box: ExportBox, shell: Shell, view: gr.State, seen: gr.HTML, picture_of: Callable[[str, Any], Path | None]
) -> None:
    """``seen`` changes with the picture seen large, which ``picture_of(person, view)`` looks up on disk every time."""

    def export(person: str | None, pictures: Sequence[Path], choices: Sequence[Any]) -> list[Any]:
        nothing: list[Any] = [{"text": ""}, {"text": ""}, gr.skip()]
        try:
            shell.live.submit(export_request(person or "", pictures, *choices))
        except SpecError as error:
            at = 0 if error.field == "layouts" else 1
            nothing[at] = {"text": str(error)}
        except HeadshotError as error:
            nothing[1] = {"text": str(error)}
        else:
            nothing[2] = nudged()
        return nothing

    def export_this(person: str | None, view: Any, *choices: Any) -> list[Any]:
        picture = picture_of(person or "", view)
        if picture is None:
            return [{"text": ""}, {"text": "No picture is chosen: click one first."}, gr.skip()]
        return export(person, (picture,), choices)

    def export_starred(person: str | None, *choices: Any) -> list[Any]:
        return export(person, (), choices)

    def cut(person: str | None, view: Any, layouts: list[str]) -> list[Any]:
        picture = picture_of(person or "", view)
        return [cut_values(shell.settings, shell.shown_dir, picture, layouts or []), {"text": ""},
                gr.Button(interactive=picture is not None)]  # fmt: skip

    choices = [box.layouts, box.file_type, box.disclose]
    answers = [box.layouts_problem, box.problem, shell.nudge]
    box.this.click(export_this, [shell.person, view, *choices], answers, **SENDS)
    box.these.click(export_starred, [shell.person, *choices], answers, **SENDS)
    gr.on([box.layouts.change, seen.change], cut, [shell.person, view, box.layouts],
          [box.cuts, box.layouts_problem, box.this], **LATEST_WINS)  # fmt: skip


def starred_value(store: Store, person: str) -> Any:
    """Update of the button that exports the starred pictures."""
    count = len(starred(store, person)) if person else 0
    return gr.Button(_starred_label(count), interactive=count > 0)


def _starred_label(count: int) -> str:
    return f"Export starred ({count})"


def refreshed_values(shell: Shell, store: Store, person: str) -> list[Any]:
    """Values of ``ExportBox.refreshed``: what runs or was made."""
    made = newest_export(shell.live, store, person, shell.shown_dir)
    return [{"lines": list(made.lines)}, gr.DownloadButton(value=made.archive or None, visible=bool(made.archive))]


__all__ = ["ExportBox", "export_mark", "layout", "refreshed_values", "starred_value", "wire"]
