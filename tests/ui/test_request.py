"""From the form to a request."""

from __future__ import annotations

import pytest

from headshot_ui.errors import SpecError
from headshot_ui.ui.request import folder_name, headshots_request, prepare_request


@pytest.mark.parametrize(
    ("name", "folder"),
    [("Anna", "anna"), (" Anna Müller ", "anna-muller"), ("José_2", "jose_2"), ("../../etc", "etc"), ("Weiß", "weiss"),
     ("a" * 60, "a" * 40), ("李", ""), ("--", ""), ("O'Neill, Pat", "o-neill-pat")],
)  # fmt: skip
def test_names_become_folder_names(name, folder):
    assert folder_name(name) == folder


def test_a_request_uses_the_new_lora_for_one_person():
    spec = headshots_request("Anna", ["a.jpg", "b.zip"], "demo-sdxl")
    assert (spec.prepare.photos, spec.generate.lora) == (("a.jpg", "b.zip"), "latest")
    assert {spec.prepare.person, spec.train.person, spec.generate.person} == {"anna"}
    assert {spec.prepare.base, spec.train.base, spec.generate.base} == {"demo-sdxl"}


@pytest.mark.parametrize(
    ("name", "photos", "base", "field"),
    [("", ["a.jpg"], "b", "person"), ("anna", [], "b", "photos"), ("anna", ["a.jpg"], "", "base")],
)
def test_each_problem_names_its_field(name, photos, base, field):
    with pytest.raises(SpecError) as raised:
        headshots_request(name, photos, base)
    assert raised.value.field == field


def test_automatic_captions_are_asked_for_only_where_they_are_chosen():
    assert headshots_request("Anna", ["a.jpg"], "demo-sdxl").prepare.captions is None
    assert headshots_request("Anna", ["a.jpg"], "sdxl", "automatic").prepare.captions == "automatic"
    assert prepare_request("Anna", ["a.jpg"], "sdxl", "phrase") == prepare_request("Anna", ["a.jpg"], "sdxl")
