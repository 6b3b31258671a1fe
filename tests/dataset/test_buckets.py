"""The shapes crops may have, and that the bundled demo photos, all nearly square, keep square crops bit for bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headshot_ui.dataset.buckets import buckets, nearest_first
from headshot_ui.dataset.crop import choose_square, crop_face
from tests.dataset.drawn_faces import face_at

PEOPLE = Path(__file__).parents[2] / "models" / "demo" / "people"


def shapes(found) -> list[tuple[int, int]]:
    return [(bucket.height, bucket.width) for bucket in found]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        (1024, [(1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216)]),
        (512, [(512, 512), (576, 448), (448, 576), (608, 416), (416, 608)]),
        (256, [(256, 256), (288, 224), (224, 288), (320, 224), (224, 320)]),
        (64, [(64, 64)]),
    ],
)
def test_the_published_shapes_at_the_models_size(size, expected):
    assert shapes(buckets(size)) == expected


@pytest.mark.parametrize("size", [128, 256, 384, 512, 640, 768, 1024])
def test_every_shape_can_be_halved_and_holds_about_as_many_pixels_as_the_square(size):
    for bucket in buckets(size):
        assert bucket.height % 32 == bucket.width % 32 == 0
        assert 0.9 <= bucket.height * bucket.width / size**2 <= 1.26


@pytest.mark.parametrize("aspect", [0.89, 1.0, 1.08, 1.12])
def test_nearly_square_photos_are_offered_the_square_only(aspect):
    assert shapes(nearest_first(aspect, 1024)) == [(1024, 1024)]


def test_the_nearest_shape_comes_first_and_the_square_last():
    assert shapes(nearest_first(4 / 3, 1024)) == [(1152, 896), (1216, 832), (1024, 1024)]
    assert shapes(nearest_first(16 / 9, 1024)) == [(1216, 832), (1152, 896), (1024, 1024)]
    assert shapes(nearest_first(1.16, 1024)) == [(1152, 896), (1024, 1024)]
    assert shapes(nearest_first(2 / 3, 1024)) == [(832, 1216), (896, 1152), (1024, 1024)]


@pytest.mark.parametrize("size", [256, 1024])
def test_bundled_demo_photos_keep_their_square_crops_bit_for_bit(size):
    paths = sorted(PEOPLE.glob("*/*.jpg"))
    assert len(paths) >= 50
    for path in paths[:: 1 if size == 256 else 10]:
        with Image.open(path) as file:
            photo = file.convert("RGB")
        for share, place in ((0.45, 0.5), (0.3, 0.35)):  # face heights and places as in these photos, and smaller
            high = share * photo.height
            face = face_at(photo.width * 0.5 - high * 0.4, photo.height * place - high / 2, high * 0.8, high)
            square = choose_square(photo.width, photo.height, face, size)
            box = (square.left, square.top, square.left + square.width, square.top + square.width)
            expected = photo.crop(box).resize((size, size), Image.Resampling.LANCZOS)
            crop = crop_face(photo, face, size)
            assert crop.original_size == (square.width, square.width) and crop.padded_share == 0
            assert np.array_equal(np.asarray(crop.image), np.asarray(expected))
