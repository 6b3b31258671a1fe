"""The demo FLUX learns a person: checks of the demo of Stable Diffusion XL, two of them with a lower bar.

It was trained for ten minutes of one card, and its faces are less sure: robin is in two thirds of the pictures and not
in four fifths, and the bare base misses one expression in four (docs/DEMO.md, also about the other four people).
"""

from __future__ import annotations

import pytest

from tests.learned_people import check_learned, share_as_asked
from tools.demo_models.measure_people import Learned


@pytest.mark.timeout(1500)
def test_a_lora_of_ten_photos_makes_pictures_of_that_person(robin: Learned) -> None:
    check_learned(robin.figures, 16)


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("attribute", ["attire_colour", "garment", "backdrop", "light", "framing"])
def test_the_bare_base_draws_what_the_prompt_asks_for(robin: Learned, attribute: str) -> None:
    assert len(robin.before) == 16 and share_as_asked(robin.before, attribute) >= 0.8


@pytest.mark.timeout(1500)
def test_the_bare_base_draws_most_expressions(robin: Learned) -> None:
    assert share_as_asked(robin.before, "expression") >= 0.65


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("attribute", ["attire_colour", "garment", "backdrop"])
def test_the_lora_keeps_what_the_prompt_asks_for(robin: Learned, attribute: str) -> None:
    assert len(robin.after) == 16 and share_as_asked(robin.after, attribute) >= 0.8
