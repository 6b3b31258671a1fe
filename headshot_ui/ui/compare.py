"""Two pictures over each other with a slider that mouse, finger and keyboard can move."""

from __future__ import annotations

import gradio as gr

from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.studio_templates import COMPARE, COMPARE_JS


def compare(elem_id: str) -> gr.HTML:
    """Its value is {"before": address, "after": address, "alt": what is seen}; nothing is shown without an address.

    gr.ImageSlider has neither keyboard access nor descriptions for people who cannot see the pictures.
    """
    return safe_html({"before": "", "after": "", "alt": ""}, COMPARE, js_on_load=COMPARE_JS, elem_id=elem_id)
