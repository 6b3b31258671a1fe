"""Colours and shapes of gradio's own components; ``page.css`` does the rest from the same palette.

Every text colour has at least 4.5 to 1 contrast with its background, light and dark (a test computes it).
"""

from __future__ import annotations

import gradio as gr

#: name: (light, dark). The same names are CSS variables (``--hs-…``) in page.css.
PALETTE = {
    "paper": ("#f6f3ee", "#14171a"),
    "card": ("#ffffff", "#1c2125"),
    "field": ("#fbfaf7", "#14181b"),
    "line": ("#ddd6ca", "#343c43"),
    "edge": ("#8b8578", "#75808a"),  # borders of controls: 3 to 1 with the card
    "ink": ("#22262b", "#ece8e1"),
    "soft": ("#5b5f66", "#a9b0b7"),
    "accent": ("#1d5c56", "#7ccabf"),
    "accent-hover": ("#17493f", "#9adcd2"),
    "on-accent": ("#ffffff", "#0c2421"),
    "problem": ("#a3261b", "#ff9f92"),
    "problem-fill": ("#fcebe8", "#3a1d1a"),
}


def palette_css() -> str:
    """The palette as CSS variables, light and dark."""
    light = "".join(f"--hs-{name}:{pair[0]};" for name, pair in PALETTE.items())
    dark = "".join(f"--hs-{name}:{pair[1]};" for name, pair in PALETTE.items())
    return f":root{{{light}}}.dark{{{dark}}}"


def theme() -> gr.themes.Base:
    """Fonts are the system's own, so that nothing is fetched."""
    colours = {
        "body_background_fill": "paper", "background_fill_primary": "card", "background_fill_secondary": "paper",
        "body_text_color": "ink", "body_text_color_subdued": "soft",
        "block_background_fill": "card", "block_border_color": "line", "border_color_primary": "line",
        "block_label_background_fill": "field", "block_label_text_color": "ink", "block_label_border_color": "line",
        "block_title_text_color": "ink", "block_info_text_color": "soft",
        "input_background_fill": "field", "input_border_color": "edge", "input_border_color_focus": "accent",
        "input_placeholder_color": "soft",
        "button_primary_background_fill": "accent", "button_primary_background_fill_hover": "accent-hover",
        "button_primary_text_color": "on-accent", "button_primary_text_color_hover": "on-accent",
        "button_secondary_background_fill": "card", "button_secondary_background_fill_hover": "paper",
        "button_secondary_text_color": "ink", "button_secondary_text_color_hover": "ink",
        "button_secondary_border_color": "edge", "button_secondary_border_color_hover": "ink",
        "button_cancel_background_fill": "problem", "button_cancel_background_fill_hover": "problem",
        "button_cancel_text_color": "card", "button_cancel_text_color_hover": "card",
        "button_cancel_border_color": "problem", "button_cancel_border_color_hover": "ink",
        "link_text_color": "accent", "color_accent_soft": "paper",
    }  # fmt: skip
    values = {name: PALETTE[colour][0] for name, colour in colours.items()}
    values |= {f"{name}_dark": PALETTE[colour][1] for name, colour in colours.items()}
    system = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica", "Arial", "sans-serif")
    base = gr.themes.Base(font=system, font_mono=("ui-monospace", "Consolas", "monospace"), radius_size="lg")
    return base.set(
        **values,
        color_accent=PALETTE["accent"][0],
        block_border_width="0px",
        block_padding="0px",
        block_shadow="none",
        block_label_border_width="0px",
        block_label_text_size="*text_md",
        block_label_text_weight="600",
        block_title_text_weight="600",
        input_border_width="1px",
        button_border_width="1px",
        button_primary_border_color="transparent",
        button_primary_border_color_dark="transparent",
        button_large_text_weight="600",
        button_large_padding="14px 22px",
    )
