"""Fields whose choices change while the page is open, above all with the person.

The server remembers the new choices when it sends them, and a request that the browser had sent just before still names
an old one. Gradio answers that with an error; here it counts as nothing chosen, and the browser asks again anyway.
"""

from __future__ import annotations

from abc import ABCMeta
from functools import lru_cache
from typing import Any

import gradio as gr


def dropdown(**options: Any) -> gr.Dropdown:
    """A gr.Dropdown whose choices change."""
    made = _forgiving(gr.Dropdown)(**options)
    assert isinstance(made, gr.Dropdown)
    return made


def radio(**options: Any) -> gr.Radio:
    """A gr.Radio whose choices change."""
    made = _forgiving(gr.Radio)(**options)
    assert isinstance(made, gr.Radio)
    return made


@lru_cache(maxsize=2)
def _forgiving(kind: Any) -> Any:
    """The component with another ``preprocess``; why in this way: see ``literal``."""

    def preprocess(self: Any, payload: Any) -> Any:
        known = any(payload == value for _, value in self.choices)
        return kind.preprocess(self, payload) if known else None

    own = {"is_template": True, "preprocess": preprocess, "__module__": __name__}
    return ABCMeta.__new__(type(kind), kind.__name__, (kind,), own)
