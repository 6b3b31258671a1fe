"""The demo models learn a person from ten photos: seeds are fixed, no picture is chosen by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.demo_models import measure, measure_people
from tools.demo_models.measure_people import PEOPLE, Bench, Figures, Learned


def check_learned(figures: Figures, pictures: int) -> None:
    """What must hold for every person."""
    assert figures.pictures == pictures and figures.identities == 55
    assert figures.first_match_before <= 3 / 32, "without training, the trigger word must mean nobody"
    assert figures.first_match_after >= 0.5
    assert figures.held_out_similarity > figures.impostor_95
    assert figures.asked_counted >= pictures / 4 and figures.asked_and_worn >= 0.7
    assert figures.nearest_face <= figures.nearest_own, "a picture is a copy of a photo"


@pytest.mark.timeout(1500)
def test_a_lora_of_ten_photos_makes_pictures_of_that_person(robin: Learned) -> None:
    check_learned(robin.figures, 16)
    assert robin.figures.first_match_after >= 0.8


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("attribute", ["attire_colour", "garment", "backdrop", "light", "framing", "expression"])
def test_the_bare_base_draws_what_the_prompt_asks_for(robin: Learned, attribute: str) -> None:
    pictures = [measure_people.open_picture(picture.path) for picture in robin.before]
    shown = measure.judged(measure.load_judge(), measure.to_tensor(pictures))
    right = [seen[attribute] == measure.asked(picture.prompt)[attribute]
             for seen, picture in zip(shown, robin.before, strict=True)]  # fmt: skip
    assert len(right) == 16 and sum(right) / 16 >= 0.8


@pytest.mark.timeout(1500)
def test_the_lora_keeps_what_the_prompt_asks_for(robin: Learned) -> None:
    pictures = [measure_people.open_picture(picture.path) for picture in robin.after]
    shown = measure.judged(measure.load_judge(), measure.to_tensor(pictures))
    for attribute in ("attire_colour", "garment", "backdrop"):
        right = [seen[attribute] == measure.asked(picture.prompt)[attribute]
                 for seen, picture in zip(shown, robin.after, strict=True)]  # fmt: skip
        assert len(right) == 16 and sum(right) / 16 >= 0.8, attribute


@pytest.mark.slow
@pytest.mark.timeout(5400)
def test_all_five_people_are_learned(bench: Bench, tmp_path: Path) -> None:
    figures = [measure_people.learn(bench, name, tmp_path).figures for name in PEOPLE]
    for one in figures:
        check_learned(one, 32)
    assert sum(one.first_match_after for one in figures) / len(figures) >= 0.8
