"""Numbers and lists as people say them."""

from __future__ import annotations

import pytest

from headshot_ui.wording import listed, place_in_line


@pytest.mark.parametrize(
    ("names", "text"), [([], ""), (["a"], "a"), (["a", "b"], "a and b"), (["a", "b", "c"], "a, b and c")]
)
def test_lists(names: list[str], text: str) -> None:
    assert listed(names) == text


def test_places_in_line() -> None:
    said = [place_in_line(place) for place in (0, 1, 2, 3, 4, 11, 12, 13, 21, 22, 111)]
    assert said == [
        "", "next in line", "2nd in line", "3rd in line", "4th in line", "11th in line", "12th in line",
        "13th in line", "21st in line", "22nd in line", "111th in line",
    ]  # fmt: skip
