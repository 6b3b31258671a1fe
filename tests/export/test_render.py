"""Pixels of a crop come from the place they should, in exactly the wanted size."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from headshot_ui.export.layouts import LAYOUTS, find_layout
from headshot_ui.export.render import cut, preview
from tests.export.conftest import face_at, map_picture

CUTTING = [layout for layout in LAYOUTS if not layout.whole]


@pytest.mark.parametrize("layout", CUTTING, ids=lambda layout: layout.id)
@pytest.mark.parametrize("place", [(125, 125), (75, 75), (190, 155)])
def test_every_pixel_is_the_one_of_its_place(layout, place) -> None:
    picture = map_picture(256, 256)  # one step of colour per pixel
    finished = cut(picture, face_at(*place, 55), layout)
    crop = finished.framing.region
    assert finished.image.size == (layout.width, layout.height) and finished.image.mode == "RGB"
    pixels = np.asarray(finished.image).astype(float)
    x = crop.left + (np.arange(layout.width) + 0.5) / layout.width * crop.width
    y = crop.top + (np.arange(layout.height) + 0.5) / layout.height * crop.height
    assert np.abs(pixels[..., 0] - x[None] / 256 * 255).max() < 1.6
    assert np.abs(pixels[..., 1] - y[:, None] / 256 * 255).max() < 1.6
    assert (pixels[..., 2] == 77).all()


def test_continued_edges_are_plain_and_the_picture_itself_is_untouched() -> None:
    picture = map_picture(600, 480)
    finished = cut(picture, face_at(300, 0.35 * 330 + 166, 330, 0.94), find_layout("linkedin"))
    crop = finished.framing.region
    assert finished.framing.added and "continued" in finished.note
    inside = int(np.ceil(-crop.top / crop.height * 800)) + 3
    assert inside > 3
    pixels = np.asarray(finished.image).astype(float)
    y = crop.top + (np.arange(800) + 0.5) / 800 * crop.height
    last = int((480 - crop.top) / crop.height * 800) - 3
    assert np.abs(pixels[inside:last, :, 1] - y[inside:last, None] / 480 * 255).max() < 3
    assert (pixels[: inside - 6, :, 1] < 10).all() and (pixels[..., 2] == 77).all()


def test_enlarging_is_said_above_twice_only() -> None:
    layout = find_layout("linkedin")
    large = cut(map_picture(1024, 1024), face_at(512, 480, 300), layout)
    small = cut(map_picture(256, 256), face_at(128, 120, 75), layout)
    assert large.enlarged < 2 and large.note == ""
    assert small.enlarged == pytest.approx(4.7, abs=0.3) and f"{small.enlarged:.1f} times" in small.note


def test_full_keeps_size_and_pixels() -> None:
    picture = map_picture(300, 200)
    finished = cut(picture, None, find_layout("full"))
    assert finished.image.tobytes() == picture.tobytes() and finished.note == ""


def test_the_preview_shows_the_same_crop_small() -> None:
    picture, face, layout = map_picture(1024, 1024), face_at(500, 480, 200), find_layout("cv")
    small = preview(picture, face, layout, 320)
    assert small.size == (240, 320)
    whole = cut(picture, face, layout).image.resize((240, 320), Image.Resampling.BOX)
    assert np.abs(np.asarray(small).astype(int) - np.asarray(whole)).max() <= 4


def test_the_preview_darkens_what_the_circle_leaves_out() -> None:
    picture = Image.new("RGB", (600, 600), (200, 180, 160))
    small = preview(picture, face_at(300, 300, 150), find_layout("linkedin"))
    assert small.size == (320, 320)
    assert small.getpixel((160, 160)) == (200, 180, 160)
    assert max(small.getpixel((4, 4))) < 110 and max(small.getpixel((315, 4))) < 110
    assert min(small.getpixel((160, 0))) > 200  # the ring
