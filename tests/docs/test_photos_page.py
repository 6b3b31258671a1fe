"""docs/PHOTOS.md: every limit it tells is the one that the program applies."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from headshot_ui.dataset import checks, compare, crop, decode, intake, prepare
from headshot_ui.dataset.types import Face
from headshot_ui.ui.tabs import dataset_editor

PAGE = (Path(__file__).parents[2] / "docs" / "PHOTOS.md").read_text("utf-8")
ROWS = {line.split("|")[1].strip().split(":")[0]: line for line in PAGE.splitlines() if line.startswith("| ")}


def numbers(row: str) -> list[float]:
    (line,) = (line for name, line in ROWS.items() if name.startswith(row))
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", line.split("|", 2)[2])]


def least_face(limit: float, size: int) -> int:
    """The smallest face, in whole pixels, that is enlarged no more than ``limit`` times in a large photo."""

    def enlarged(height: int) -> float:
        middle = Face((2000 - height / 2, 2000 - height / 2, 2000 + height / 2, 2000 + height / 2), (), 1.0)
        return size / crop.choose_square(4000, 4000, middle, size).width

    return next(height for height in range(10, 1000) if enlarged(height) <= limit)


def test_the_size_of_a_face():
    most, demo_most, much, demo_much = (
        least_face(limit, size) for limit in (checks.MOST_ENLARGED, checks.MUCH_ENLARGED) for size in (1024, 256)
    )
    told = [checks.MOST_ENLARGED, most, demo_most, checks.MUCH_ENLARGED, much, demo_much]
    assert numbers("size of the face") == pytest.approx(told, abs=1)


@pytest.mark.parametrize(
    ("row", "limits"),
    [
        ("sharpness", [checks.MOST_BLUR, checks.MUCH_BLUR]),
        ("darkness", [checks.DARKEST, checks.RATHER_DARK]),
        ("glare", [100 * checks.MOST_BURNT, 100 * checks.MUCH_BURNT]),
        ("edge", [100 * checks.MUCH_PADDED, 100 * checks.MUCH_CUT_OFF]),
        ("somebody else", [100 * compare.STRANGER, 100 * compare.DOUBTFUL]),
    ],
)
def test_a_limit(row, limits):
    assert numbers(row) == pytest.approx(limits)


def test_what_is_told_in_words():
    assert checks.RIVAL_SIZE == 0.5 and "at least half as high" in PAGE
    assert compare.LEAST_FOR_STRANGERS == 4 and "among four photos or more" in PAGE
    assert prepare.LEAST_PHOTOS == 3 and "Fewer than three" in PAGE
    assert f"{decode.MAX_FILE_BYTES // 2**20} MB each and {intake.MAX_PHOTOS} at once" in PAGE
    assert f"{crop.FACE_SHARE:.0%}".replace("%", " %") in PAGE
    assert [compare.default_held_out(count) for count in (10, 9, 5, 4)] == [2, 1, 1, 0]
    assert f"*{dataset_editor.TAKE_IN}*" in PAGE
