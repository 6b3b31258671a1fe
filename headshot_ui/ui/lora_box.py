"""Under the list of trainings: one of them as a LoRA file for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from headshot_ui.errors import HeadshotError
from headshot_ui.store import Store
from headshot_ui.ui import changing_choices, templates
from headshot_ui.ui import lora_view as views
from headshot_ui.ui.export_box import LATEST_WINS, SENDS
from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.page_js import BACK_TO_TAKE, PRESS_LORA, SHOW_LORA
from headshot_ui.ui.tab import QUIET, Shell, problem

WRITING = "() => ({writing: true})"


@dataclass(frozen=True)
class LoraBox:
    """The components."""

    box: gr.Column
    person: gr.State  # whose run it is, "" while none is offered
    run: gr.State  # name of the run, "" while none is offered
    head: gr.HTML
    layouts: gr.Radio
    help: gr.HTML
    take: gr.Button
    close: gr.Button
    file: gr.DownloadButton  # not seen: it is pressed for the person
    problem: gr.HTML
    told: gr.HTML

    @property
    def outputs(self) -> list[Any]:
        """Components that ``offered`` and ``closed`` have values for."""
        return [self.box, self.person, self.run, self.head, self.layouts, self.help, self.file, self.problem,
                self.told]  # fmt: skip


def layout() -> LoraBox:
    with gr.Column(elem_id="take-lora", elem_classes="hs-asking", visible=False) as box:
        head = safe_html(views.NO_HEAD, html_template=templates.TAKE_LORA, elem_id="take-lora-head")
        layouts = changing_choices.radio(choices=[], label="For which program?", elem_id="take-lora-layout")
        help_ = safe_html(views.NO_HELP, html_template=templates.LORA_HELP, elem_id="take-lora-help")
        with gr.Row(elem_classes="hs-actions"):
            take = gr.Button("Download the LoRA", variant="primary", scale=0, min_width=220, elem_id="take-lora-file")
            close = gr.Button("Close", elem_classes="hs-plain", scale=0, min_width=120, elem_id="take-lora-close")
        file = gr.DownloadButton("LoRA", visible="hidden", elem_id="take-lora-button")
        wrong = problem("take-lora-problem")
        told = safe_html(views.NOT_TOLD, html_template=templates.TAKEN_LORA, elem_id="take-lora-told",
                         elem_classes="hs-place")  # fmt: skip
    return LoraBox(box, gr.State(""), gr.State(""), head, layouts, help_, take, close, file, wrong, told)


def offered(store: Store, person: str, run: str) -> list[Any]:
    """Values of ``LoraBox.outputs`` that offer a run. Raises HeadshotError when it cannot be taken along."""
    found = views.offer(store, person, run)
    first = found.layouts[0].id
    return [gr.Column(visible=True), person, run, found.head_values(), gr.Radio(choices=found.choices, value=first),
            found.help_values(first), None, {"text": ""}, views.NOT_TOLD]  # fmt: skip


def closed() -> list[Any]:
    """Values of ``LoraBox.outputs`` when nothing is offered any more."""
    return [gr.Column(visible=False), "", "", views.NO_HEAD, gr.skip(), views.NO_HELP, None, {"text": ""},
            views.NOT_TOLD]  # fmt: skip


def wire(box: LoraBox, shell: Shell, store: Store) -> None:
    """Its own buttons; what opens it is in ``tabs/train_runs.py``. No job: it takes seconds and needs no device."""

    def chosen(person: str, run: str, layout: str | None) -> list[Any]:
        try:
            values = views.offer(store, person, run).help_values(layout) if run else views.NO_HELP
        except HeadshotError as error:
            return [gr.skip(), {"text": str(error)}, views.NOT_TOLD]
        return [values, {"text": ""}, views.NOT_TOLD]

    def take(person: str, run: str, layout: str | None) -> list[Any]:
        try:
            taken = views.take(store, person, run, layout, shell.shown_dir)
        except HeadshotError as error:
            return [None, {"text": str(error)}, views.NOT_TOLD]
        return [str(taken.copy), {"text": ""}, taken.told]

    def other_person(person: str | None, opened_for: str) -> list[Any]:
        # The list of people tells of a change also when it has only got new choices.
        return [gr.skip()] * len(box.outputs) if opened_for in ("", person) else closed()

    asked = [box.person, box.run, box.layouts]
    box.head.change(None, None, None, js=SHOW_LORA, **QUIET)
    box.layouts.input(chosen, asked, [box.help, box.problem, box.told], **LATEST_WINS)
    box.take.click(None, None, box.told, js=WRITING, **QUIET)
    box.take.click(take, asked, [box.file, box.problem, box.told], **{**SENDS, "trigger_mode": "once"}).then(
        None, box.file, None, js=PRESS_LORA, **QUIET
    )
    box.close.click(closed, None, box.outputs, js=BACK_TO_TAKE, **QUIET)
    shell.person.change(other_person, [shell.person, box.person], box.outputs, **QUIET)
