import numpy as np
import pytest
from PIL import Image

from headshot_ui.dataset.crop import FACE_SHARE, MOST_SHARE, choose_square, crop_face
from tests.dataset.drawn_faces import face_at, make_photo


def share(square, face) -> float:
    return (face.box[3] - face.box[1]) / square.side


def test_a_face_with_room_takes_just_under_half_the_side():
    face = face_at(1500, 1200, 480, 600)
    square = choose_square(4000, 3000, face, 1024)
    assert share(square, face) == pytest.approx(FACE_SHARE, abs=0.002)
    assert square.left + square.side / 2 == pytest.approx(1740, abs=1)
    above, below = face.box[1] - square.top, square.top + square.side - face.box[3]
    assert above > 0.4 * 600 and below > 0.6 * 600  # hair; neck and shoulders


def test_the_square_grows_rather_than_enlarge_the_photo():
    face = face_at(100, 100, 80, 100)  # 100 / 0.47 would be 213 pixels, enlarged to 256
    assert choose_square(500, 500, face, 256).side == 256
    assert choose_square(500, 500, face, 1024).side == pytest.approx(100 / 0.36, abs=1)  # but not without end


@pytest.mark.parametrize("corner", [(0, 0), (700, 0), (0, 700), (700, 700)])
def test_the_square_is_moved_into_the_photo_before_anything_is_mirrored(corner):
    face = face_at(*corner, 80, 100)
    crop = crop_face(Image.new("RGB", (780, 800), "gray"), face, 128)
    square = crop.square
    assert square.left >= 0 and square.top >= 0
    assert square.left + square.side <= 780 and square.top + square.side <= 800
    assert crop.padded_share == 0


def test_a_tight_photo_is_used_whole():
    square = choose_square(500, 600, face_at(80, 90, 320, 400), 256)
    assert (square.left, square.side) == (0, 500)


def test_only_a_photo_smaller_than_the_head_is_mirrored():
    photo = make_photo(1, size=(300, 700), height=290)
    photo.paste("white", (12, 0, 24, 700))
    face = face_at(34, 205, 232, 290)
    crop = crop_face(photo, face, 256)
    assert share(crop.square, face) == pytest.approx(MOST_SHARE, abs=0.01)
    assert -crop.square.left > 24 and 0 < crop.padded_share < 0.2
    # the white stripe beside the photo's edge is there twice, as far from the edge on either side
    bright = np.flatnonzero(np.asarray(crop.image.convert("L"))[20] > 240)
    edge = -crop.square.left * crop.enlarged
    left, right = edge - bright[bright < edge], bright[bright > edge] - edge
    assert len(left) and len(right) and left.mean() == pytest.approx(right.mean(), abs=2)


def test_the_face_moves_with_the_crop():
    photo = make_photo(3, size=(900, 1200), height=330)
    face = face_at(318, 435, 264, 330)
    crop = crop_face(photo, face, 256)
    factor = 256 / crop.square.side
    for moved, seen in zip(crop.face.landmarks, face.landmarks, strict=True):
        assert moved[0] == pytest.approx((seen[0] - crop.square.left) * factor)
        assert moved[1] == pytest.approx((seen[1] - crop.square.top) * factor)
    assert crop.original_size == (crop.square.side,) * 2 and crop.top_left == (0, 0)
    assert crop.enlarged == pytest.approx(factor)


def test_nothing_is_distorted():
    photo = Image.new("RGB", (1000, 1400), "white")
    photo.paste("black", (450, 600, 550, 700))  # a square of 100 pixels
    crop = crop_face(photo, face_at(300, 400, 400, 500), 512)
    dark = np.asarray(crop.image.convert("L")) < 128
    wide, high = dark.any(axis=0).sum(), dark.any(axis=1).sum()
    assert abs(int(wide) - int(high)) <= 1 and wide == pytest.approx(100 * crop.enlarged, abs=1.5)


@pytest.mark.parametrize("size", [(1, 1), (50, 2000), (2000, 50)])
def test_odd_shapes_give_a_crop_all_the_same(size):
    face = face_at(size[0] * 0.1, size[1] * 0.1, size[0] * 0.8, size[1] * 0.8)
    assert crop_face(Image.new("RGB", size), face, 64).image.size == (64, 64)
