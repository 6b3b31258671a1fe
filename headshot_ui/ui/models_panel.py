"""“Models”, folded away above the tabs: what can be downloaded, and buttons to get, check and remove it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from headshot_ui.ui import models_view, templates
from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.page_js import BUTTONS
from headshot_ui.ui.tab import CLICK, nudged, problem

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.settings import Settings
    from headshot_ui.ui.live import Live


ACCOUNT = (
    "Some models are given only to accounts that accepted their terms, on their page at Hugging Face. Make a token at "
    "huggingface.co/settings/tokens (it needs to read only) and enter it here: it is kept in Hugging Face's own store "
    "on this computer, and nowhere else."
)


@dataclass(frozen=True)
class ModelsPanel:
    """The components."""

    box: gr.Accordion
    rows: gr.HTML
    token: gr.Textbox
    log_in: gr.Button
    told: gr.HTML  # of the login
    problem: gr.HTML
    installed: gr.HTML  # shows nothing; its value changes when models were downloaded or removed
    built_with: tuple[Any, ...]  # mark of the models that the tabs were laid out with


def layout(settings: Settings) -> ModelsPanel:
    """Closed at first; the first refresh fills it."""
    with gr.Accordion("Models", open=False, elem_id="models") as box:
        rows = safe_html({"rows": []}, html_template=templates.MODELS, js_on_load=BUTTONS, elem_id="model-rows")
        with gr.Accordion("Account at Hugging Face", open=False, elem_id="hub-account"):
            safe_html({"text": ACCOUNT}, html_template=templates.NOTE)
            with gr.Row(elem_classes="hs-fields"):
                token = gr.Textbox(label="Token", type="password", max_lines=1, max_length=400, elem_id="hub-token")
                log_in = gr.Button("Log in", scale=0, min_width=140, elem_id="hub-login")
            told = safe_html({"text": ""}, html_template=templates.NOTE, elem_id="hub-told")
            wrong = problem("hub-problem")
    # Not a gr.State: a change of one by a timer's answer starts no event (gradio 6.31).
    installed = safe_html({"mark": ""}, html_template=templates.MARK, elem_id="installed", elem_classes="hs-hidden")
    return ModelsPanel(box, rows, token, log_in, told, wrong, installed, models_view.models_mark(settings))


def wire(panel: ModelsPanel, live: Live, settings: Settings, nudge: gr.State) -> None:
    """Its buttons. What is new of it is sent with the refresh of the page."""

    def press(event: gr.EventData) -> list[Any]:
        asked = models_view.press(live, settings, str(event.do), str(event.item))
        return [models_view.panel_value(live, settings, asked), nudged()]

    panel.rows.click(press, None, [panel.rows, nudge], **CLICK)

    def log_in(token: str | None) -> list[Any]:
        """The field is emptied whatever comes: a token stays nowhere on the page."""
        said = models_view.log_in(token or "")
        return ["", {"text": said["text"]}, {"text": said["problem"]}]

    for press_it in (panel.log_in.click, panel.token.submit):
        press_it(log_in, panel.token, [panel.token, panel.told, panel.problem], **CLICK)


def base_dropdown(
    bases: Sequence[BaseInfo], sent: str | None, usual: BaseInfo | None, wanted: str | None = None, **more: Any
) -> gr.Dropdown:
    """New choices of a tab's base model.

    What the browser ``sent`` stays, or becomes ``wanted`` where that is given; what is not there any more becomes the
    usual one. A value that stays is not sent back: somebody may have chosen another while this answer was under way.
    """
    kept = wanted or sent
    if kept not in [info.id for info in bases]:
        kept = usual.id if usual else None
    if kept != sent:
        more["value"] = kept
    return gr.Dropdown(choices=[(info.title, info.id) for info in bases], **more)
