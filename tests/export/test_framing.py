"""Where a picture is cut: the head whole, within the circle, nothing invented, the shape exact."""

from __future__ import annotations

import itertools

import pytest

from headshot_ui.export import framing
from headshot_ui.export.framing import choose, head_oval, oval_points, within_circle
from headshot_ui.export.layouts import LAYOUTS, Layout, find_layout
from tests.export.conftest import face_at

CUTTING = [layout for layout in LAYOUTS if not layout.whole]
#: Middles of faces all over the picture (shares of its sides) at which the whole head is still in it.
PLACES = list(itertools.product((0.3, 0.5, 0.7), (0.3, 0.5, 0.65)))
SIZES = [(1024, 1024), (832, 1216), (1216, 832), (256, 256)]


def within(region: framing.Region, width: float, height: float) -> bool:
    return (
        region.left >= -1e-6 and region.top >= -1e-6 and region.right <= width + 1e-6 and region.bottom <= height + 1e-6
    )


@pytest.mark.parametrize("layout", CUTTING, ids=lambda layout: layout.id)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("face_share", [0.1, 0.2, 0.3])
def test_the_whole_head_is_in_every_crop_and_nothing_is_added(layout: Layout, size, face_share: float) -> None:
    width, height = size
    for x, y in PLACES:
        face = face_at(x * width, y * height, face_share * min(size))
        chosen = choose(width, height, face, layout)
        assert chosen.added == 0 and chosen.note == ""
        crop, head = chosen.region, head_oval(face)
        assert within(crop, width, height)
        assert crop.width / crop.height == pytest.approx(layout.aspect, rel=1e-9)
        assert crop.left <= head.left and crop.right >= head.left + head.width
        assert crop.top <= head.top + 1e-6 and crop.bottom >= head.top + head.height - 1e-6


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
@pytest.mark.parametrize("shape", [0.68, 0.78, 0.94])
def test_linkedin_keeps_head_and_face_in_the_circle_with_a_margin(size, shape: float) -> None:
    layout = find_layout("linkedin")
    width, height = size
    for (x, y), share in itertools.product(PLACES, (0.12, 0.2, 0.3)):
        face = face_at(x * width, y * height, share * min(size), shape)
        crop = choose(width, height, face, layout).region
        left, top, right, bottom = face.box
        corners = [(a, b) for a in (left, right) for b in (top, bottom)]
        assert within_circle([*oval_points(head_oval(face)), *corners], crop, margin=0.029)


@pytest.mark.parametrize(
    ("layout_id", "share", "eyes"), [("linkedin", 0.52, 0.45), ("cv", 0.42, 0.40), ("badge", 0.72, 0.5)]
)
def test_with_enough_room_head_and_eyes_are_where_the_layout_wants_them(layout_id, share, eyes) -> None:
    face = face_at(2000, 1800, 400)
    crop = choose(4000, 4000, face, find_layout(layout_id)).region
    left, top, right, bottom = face.box
    assert (bottom - top) * (1 + framing.CROWN) / crop.height == pytest.approx(share, rel=0.02)
    assert (face.landmarks[0][1] - crop.top) / crop.height == pytest.approx(eyes, abs=0.01)
    assert (crop.left + crop.right) / 2 == pytest.approx((left + right) / 2, abs=1)


def test_a_face_near_the_side_makes_the_crop_tighter_rather_than_lopsided() -> None:
    face = face_at(170, 500, 200)
    crop = choose(1024, 1024, face, find_layout("linkedin")).region
    middle = (crop.left + crop.right) / 2
    assert 0.7 < crop.width / (200 * 1.18 / 0.52) < 0.95
    assert abs(middle - 170) < 0.06 * crop.width


def test_the_largest_middle_part_without_a_face() -> None:
    chosen = choose(1000, 600, None, find_layout("cv"))
    assert chosen.region == framing.Region(275, 0, 450, 600)
    assert chosen.note == framing.NO_FACE


def test_a_head_at_the_edge_continues_the_picture_a_little_and_says_so() -> None:
    face = face_at(300, 0.35 * 330 + 165 + 1, 330, 0.94)  # its hair ends 1 pixel below the picture's edge
    chosen = choose(600, 480, face, find_layout("linkedin"))
    assert 0 < chosen.added <= framing.MOST_ADDED
    assert "continued by" in chosen.note
    assert within_circle(list(oval_points(head_oval(face))), chosen.region, margin=0.029)
    assert chosen.region.left >= 0 and chosen.region.right <= 600 + 1e-6


def test_a_head_the_picture_cuts_off_gets_no_invented_hair() -> None:
    face = face_at(256, 220, 420)
    for layout in CUTTING:
        chosen = choose(512, 512, face, layout)
        assert chosen.added == 0 and within(chosen.region, 512, 512)
        assert chosen.note in (framing.CUT_BY_PICTURE, framing.HAIR_CUT, framing.NOT_WHOLE)


def test_a_head_too_wide_for_the_shape_loses_hair_before_pixels_are_added() -> None:
    face = face_at(256, 256, 330, 0.94)
    chosen = choose(512, 512, face, find_layout("cv"))
    assert chosen.added == 0 and chosen.note == framing.HAIR_CUT
    left, _, right, _ = face.box
    assert chosen.region.left < left and chosen.region.right > right


def test_faces_half_outside_and_tiny_pictures_still_give_a_crop() -> None:
    for face in (face_at(0, 0, 100), face_at(5, 5, 30), face_at(500, 90, 400), face_at(20, 10, 3)):
        for layout, (width, height) in itertools.product(CUTTING, [(40, 30), (512, 100), (1, 1)]):
            chosen = choose(width, height, face, layout)
            assert chosen.region.width > 0 and chosen.region.height > 0
            assert chosen.added or within(chosen.region, width, height)


def test_full_is_the_whole_picture() -> None:
    assert choose(123, 45, face_at(60, 20, 20), find_layout("full")).region == framing.Region(0, 0, 123, 45)


def test_layouts_are_those_of_the_requests_and_each_says_what_it_is_for() -> None:
    from headshot_ui.specs import EXPORT_LAYOUTS

    assert tuple(layout.id for layout in LAYOUTS) == EXPORT_LAYOUTS
    assert all(layout.purpose.endswith(".") and layout.title for layout in LAYOUTS)
    badge = find_layout("badge")
    assert (round(badge.width / badge.dpi * 25.4), round(badge.height / badge.dpi * 25.4)) == (35, 45)
    linkedin = find_layout("linkedin")
    assert linkedin.circle and linkedin.width == linkedin.height >= 400
