"""Values of gr.HTML survive being evaluated as a JavaScript template literal."""

from __future__ import annotations

import gradio as gr

from headshot_ui.ui.literal import literal, safe_html


def read_as_template_literal(text: str) -> str:
    """What JavaScript makes of the text between two backticks, as far as it matters here."""
    result, rest = "", text
    while rest:
        if rest[0] == "\\":
            result, rest = result + rest[1], rest[2:]
        else:
            assert not rest.startswith("${"), "this would run as a script"
            result, rest = result + rest[0], rest[1:]
    return result


def test_every_text_comes_out_as_it_went_in():
    for text in ("plain", "C:\\users\\new", "${document.body.remove()}.jpg", "\\${x}", "5 $", "$", "{{x}}", "\\"):
        assert read_as_template_literal(literal(text)) == text


def test_a_dollar_at_the_end_of_one_value_cannot_join_a_brace_of_the_next():
    assert read_as_template_literal(literal("costs $") + literal("{alert(1)}")) == "costs ${alert(1)}"


def test_texts_are_found_inside_lists_and_dicts():
    assert literal({"a": ["$", ("\\", 3, None)], "b": True}) == {"a": ["\\$", ["\\\\", 3, None]], "b": True}


def test_later_values_of_a_component_are_made_safe_too():
    component = safe_html({"text": "$1"}, "{{value.text}}")
    assert component.value == {"text": "\\$1"}
    assert component.postprocess({"text": "${x}"}) == {"text": "\\${x}"}
    assert gr.HTML("x").postprocess("${x}") == "${x}", "other components are as they were"


def test_values_stay_safe_after_gradio_has_made_the_component_anew():
    component = safe_html({"text": ""}, "{{value.text}}", elem_id="said")
    again = component.__class__(**component.constructor_args)  # as it does for gr.skip()
    assert again.postprocess({"text": "${x}"}) == {"text": "\\${x}"}
    assert component.get_block_name() == "html" and component.get_config()["component_class_name"] == "HTML"
