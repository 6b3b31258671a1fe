"""The demo models learn a person from ten photos: seeds are fixed, no picture is chosen by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.learned_people import check_learned, share_as_asked
from tools.demo_models import measure_people
from tools.demo_models.measure_people import PEOPLE, Bench, Learned


@pytest.mark.timeout(1500)
def test_a_lora_of_ten_photos_makes_pictures_of_that_person(robin: Learned) -> None:
    check_learned(robin.figures, 16)
    assert robin.figures.first_match_after >= 0.8


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("attribute", ["attire_colour", "garment", "backdrop", "light", "framing", "expression"])
def test_the_bare_base_draws_what_the_prompt_asks_for(robin: Learned, attribute: str) -> None:
    assert len(robin.before) == 16 and share_as_asked(robin.before, attribute) >= 0.8


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("attribute", ["attire_colour", "garment", "backdrop"])
def test_the_lora_keeps_what_the_prompt_asks_for(robin: Learned, attribute: str) -> None:
    assert len(robin.after) == 16 and share_as_asked(robin.after, attribute) >= 0.8


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_all_five_people_are_learned(bench: Bench, tmp_path: Path) -> None:
    figures = [measure_people.learn(bench, name, tmp_path).figures for name in PEOPLE]
    for one in figures:
        check_learned(one, 32)
    assert sum(one.first_match_after for one in figures) / len(figures) >= 0.8
