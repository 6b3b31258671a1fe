"""Words the model does not know are named beside the prompt, without its weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headshot_ui import families
from headshot_ui.errors import SpecError
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec
from headshot_ui.ui.prompt_words import check_request_words, said_of
from tests.ui.studio_stub import PERSON


@pytest.fixture(scope="module")
def demo():
    return families.find_base("demo-sdxl", Settings.from_environment())


def test_unknown_words_are_named_and_known_ones_are_not(demo):
    said = said_of(demo, "prompt", "portrait of {subject}, wearing a zebra jacket and a quxhat")
    assert "“zebra”" in said and "“quxhat”" in said and "portrait" not in said
    assert said_of(demo, "prompt", "portrait of {subject}, wearing a navy suit") == ""
    assert "“quxhat”" in said_of(demo, "negative_prompt", "quxhat")
    assert said_of(demo, "prompt", None) == said_of(None, "prompt", "zebra") == ""
    assert "only {subject} is filled in" in said_of(demo, "prompt", "a {somebody}")


def test_a_request_with_such_words_names_its_field(demo):
    spec = GenerateSpec(PERSON, demo.id, prompt="portrait of {subject}", negative_prompt="quxhat")
    with pytest.raises(SpecError, match="“quxhat”") as caught:
        check_request_words(demo, spec)
    assert caught.value.field == "negative_prompt"
    check_request_words(demo, replace(spec, negative_prompt=None))


def test_a_base_whose_words_cannot_be_read_says_nothing_here(demo):
    assert said_of(replace(demo, folder=Path("nowhere")), "prompt", "zebra") == ""
