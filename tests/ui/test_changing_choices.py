"""Fields whose choices change: an answer that is no longer among them counts as nothing chosen."""

from __future__ import annotations

from typing import Any

import gradio as gr
import pytest

from headshot_ui.ui import changing_choices


@pytest.mark.parametrize(("make", "name"), [(changing_choices.dropdown, "dropdown"), (changing_choices.radio, "radio")])
def test_what_is_no_choice_any_more_is_nothing(make: Any, name: str) -> None:
    with gr.Blocks():
        field = make(choices=[("Newest", "latest"), ("None", "none")], value=None)
        plain = getattr(gr, name.capitalize())(choices=["latest"])
    assert field.preprocess("latest") == "latest" and field.preprocess(None) is None
    for gone in ("file:me.safetensors", ["latest"], {"x": 1}, 3):
        assert field.preprocess(gone) is None
    with pytest.raises(gr.Error):  # else this module were of no use any more
        plain.preprocess("file:me.safetensors")


@pytest.mark.parametrize("make", [changing_choices.dropdown, changing_choices.radio])
def test_it_is_the_same_field_for_the_browser_and_stays_one(make: Any) -> None:
    with gr.Blocks() as page:
        field = make(choices=["a", "b"], value="a", elem_id="x")
    assert field.get_block_name() in {"dropdown", "radio"}
    assert page.get_config_file()["components"][0]["type"] == field.get_block_name()
    again = type(field)(**{**field.constructor_args, "choices": ["b"]})  # as gradio does with new choices
    assert again.preprocess("a") is None and again.preprocess("b") == "b"
