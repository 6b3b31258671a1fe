"""What must hold for a person whom a demo base has learned, whichever base it is."""

from __future__ import annotations

from collections.abc import Sequence

from headshot_ui.generation.records import Picture
from tools.demo_models import measure, measure_people
from tools.demo_models.measure_people import Figures


def check_learned(figures: Figures, pictures: int) -> None:
    """What must hold for every person."""
    assert figures.pictures == pictures and figures.identities == 55
    assert figures.first_match_before <= 3 / 32, "without training, the trigger word must mean nobody"
    assert figures.first_match_after >= 0.5
    assert figures.held_out_similarity > figures.impostor_95
    assert figures.asked_counted >= pictures / 4 and figures.asked_and_worn >= 0.7
    assert figures.nearest_face <= figures.nearest_own, "a picture is a copy of a photo"


def share_as_asked(pictures: Sequence[Picture], attribute: str) -> float:
    """Of these pictures, how many show what their prompt asks for."""
    images = [measure_people.open_picture(picture.path) for picture in pictures]
    shown = measure.judged(measure.load_judge(), measure.to_tensor(images))
    right = [seen[attribute] == measure.asked(picture.prompt)[attribute]
             for seen, picture in zip(shown, pictures, strict=True)]  # fmt: skip
    return sum(right) / len(right)
