"""“Models”, folded away above the tabs: what can be downloaded, and buttons to get, check and remove it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from headshot_ui.downloads.records import installed_mark
from headshot_ui.ui import models_view, templates
from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.page_js import BUTTONS
from headshot_ui.ui.tab import CLICK, nudged

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.settings import Settings
    from headshot_ui.ui.live import Live


@dataclass(frozen=True)
class ModelsPanel:
    """The components."""

    box: gr.Accordion
    rows: gr.HTML
    installed: gr.HTML  # shows nothing; its value changes when models were downloaded or removed
    built_with: tuple[Any, ...]  # mark of the models that the tabs were laid out with


def layout(settings: Settings) -> ModelsPanel:
    """Closed at first; the first refresh fills it."""
    with gr.Accordion("Models", open=False, elem_id="models") as box:
        rows = safe_html({"rows": []}, html_template=templates.MODELS, js_on_load=BUTTONS, elem_id="model-rows")
    # Not a gr.State: a change of one by a timer's answer starts no event (gradio 6.31).
    installed = safe_html({"mark": ""}, html_template=templates.MARK, elem_id="installed", elem_classes="hs-hidden")
    return ModelsPanel(box, rows, installed, installed_mark(settings))


def wire(panel: ModelsPanel, live: Live, settings: Settings, nudge: gr.State) -> None:
    """Its buttons. What is new of it is sent with the refresh of the page."""

    def press(event: gr.EventData) -> list[Any]:
        asked = models_view.press(live, settings, str(event.do), str(event.item))
        return [models_view.panel_value(live, settings, asked), nudged()]

    panel.rows.click(press, None, [panel.rows, nudge], **CLICK)


def base_dropdown(bases: Sequence[BaseInfo], chosen: str | None, **more: Any) -> gr.Dropdown:
    """New choices of a tab's base model; what is chosen stays, if it is still there."""
    ids = [info.id for info in bases]
    kept = chosen if chosen in ids else (ids[0] if ids else None)
    return gr.Dropdown(choices=[(info.title, info.id) for info in bases], value=kept, **more)
