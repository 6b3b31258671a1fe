"""Values for the templates of gr.HTML, made safe for the second thing gradio does with them.

The browser fills a template in with Handlebars, which escapes HTML, and then evaluates the *result* as a JavaScript
template literal. A file called ``${…}.jpg`` would therefore run as a script, and a backslash of a Windows path would
break the whole component. Both are taken away here.
"""

from __future__ import annotations

from abc import ABCMeta
from functools import lru_cache
from typing import Any

import gradio as gr


def literal(value: Any) -> Any:
    """``value`` with every string in it (in dicts, lists and tuples too) meaning itself in a template literal."""
    if isinstance(value, str):
        return value.replace("\\", "\\\\").replace("$", "\\$")
    if isinstance(value, dict):
        return {name: literal(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [literal(each) for each in value]
    return value


def safe_html(value: Any, html_template: str, **options: Any) -> gr.HTML:
    """A gr.HTML whose every value, now and later, goes through ``literal``.

    Texts in its value come back changed when it is the input of an event.
    """
    made = _safe_class()(value, html_template=html_template, apply_default_css=False, **options)
    assert isinstance(made, gr.HTML)
    return made


@lru_cache(maxsize=1)
def _safe_class() -> Any:
    """gr.HTML with another ``postprocess``.

    Gradio makes a component anew from its class whenever it is left as it is (``gr.skip``) or gets another property,
    so a method set on one component would be lost. A plain subclass would make gradio write a stub file beside this
    one; ``ABCMeta.__new__`` goes around that.
    """
    own = {"is_template": True, "postprocess": lambda self, value: literal(value), "__module__": __name__}
    return ABCMeta.__new__(type(gr.HTML), "HTML", (gr.HTML,), own)
