"""Pictures to choose several of, by mouse, finger or keyboard."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr

from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.studio_templates import TILES, TILES_JS

#: One tile: id, title, group, picture (an address or "") and letter (seen where there is no picture).
Tile = dict[str, str]


def tiles_html(value: dict[str, Any], elem_id: str, visible: bool = True) -> gr.HTML:
    """The component. As an input of an event it gives its value; ``chosen_ids`` reads that."""
    return safe_html(value, TILES, js_on_load=TILES_JS, elem_id=elem_id, visible=visible)


def tiles_value(name: str, tiles: Sequence[Tile], chosen: Sequence[str] | None, title: str = "") -> dict[str, Any]:
    """``name`` is said to people who cannot see the tiles, ``title`` stands above; ``chosen`` None leaves what is."""
    ids = None if chosen is None else [each for each in chosen if any(tile["id"] == each for tile in tiles)]
    return {"name": name, "title": title, "tiles": list(tiles), "groups": groups_of(tiles), "chosen": ids}


def groups_of(tiles: Sequence[Tile]) -> list[str]:
    """The kinds of tiles, in their order; [] where all are of one kind."""
    groups = list(dict.fromkeys(tile["group"] for tile in tiles))
    return groups if len(groups) > 1 else []


def chosen_ids(value: Any) -> list[str]:
    """The chosen ids as the browser sent them: texts to compare with what there is, and nothing else."""
    chosen = value.get("chosen") if isinstance(value, dict) else None
    return [each for each in chosen if isinstance(each, str)] if isinstance(chosen, list) else []
