"""Free prompts: {subject} is filled in and nothing else."""

from __future__ import annotations

import pytest

from headshot_ui.errors import SpecError
from headshot_ui.generation.prompts import render_free, subject_of


def test_subject_is_trigger_and_class_word():
    assert subject_of("tok", "person") == "tok person"
    assert subject_of("", "person") == "person"


def test_every_subject_is_filled_in():
    assert render_free(" {subject} beside {subject} ", "tok", "person") == "tok person beside tok person"


def test_a_prompt_without_subject_stays_as_it_is():
    assert render_free("a brick wall", "tok", "person") == "a brick wall"


@pytest.mark.parametrize("prompt", ["{gender} in a suit", "{subject} {", "} {subject}", "{}"])
def test_other_placeholders_are_refused(prompt: str):
    with pytest.raises(SpecError, match="only {subject}") as caught:
        render_free(prompt, "tok", "person")
    assert caught.value.field == "prompt"
