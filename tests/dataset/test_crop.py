import numpy as np
import pytest
from PIL import Image

from headshot_ui.dataset.buckets import Bucket, buckets
from headshot_ui.dataset.crop import FACE_SHARE, MOST_SHARE, choose_region, choose_square, crop_face, face_size
from tests.dataset.drawn_faces import face_at, make_photo


def share(square, face) -> float:
    return (face.box[3] - face.box[1]) / square.width


def test_a_face_with_room_takes_just_under_half_the_side():
    face = face_at(1500, 1200, 480, 600)
    square = choose_square(4000, 3000, face, 1024)
    assert share(square, face) == pytest.approx(FACE_SHARE, abs=0.002)
    assert square.left + square.width / 2 == pytest.approx(1740, abs=1)
    above, below = face.box[1] - square.top, square.top + square.width - face.box[3]
    assert above > 0.4 * 600 and below > 0.6 * 600  # hair; neck and shoulders


def test_the_square_grows_rather_than_enlarge_the_photo():
    face = face_at(100, 100, 80, 100)  # 100 / 0.47 would be 213 pixels, enlarged to 256
    assert choose_square(500, 500, face, 256).width == 256
    assert choose_square(500, 500, face, 1024).width == pytest.approx(100 / 0.36, abs=1)  # but not without end


@pytest.mark.parametrize("corner", [(0, 0), (700, 0), (0, 700), (700, 700)])
def test_the_square_is_moved_into_the_photo_before_anything_is_mirrored(corner):
    face = face_at(*corner, 80, 100)
    crop = crop_face(Image.new("RGB", (780, 800), "gray"), face, 128)
    square = crop.region
    assert square.left >= 0 and square.top >= 0
    assert square.left + square.width <= 780 and square.top + square.width <= 800
    assert crop.padded_share == 0


def test_a_tight_photo_is_used_whole():
    square = choose_square(500, 600, face_at(80, 90, 320, 400), 256)
    assert (square.left, square.width) == (0, 500)


def test_only_a_photo_smaller_than_the_head_is_mirrored():
    photo = make_photo(1, size=(300, 320), height=290)
    photo.paste("white", (12, 0, 24, 320))
    face = face_at(34, 15, 232, 290)
    crop = crop_face(photo, face, 256)
    assert share(crop.region, face) == pytest.approx(MOST_SHARE, abs=0.01)
    assert -crop.region.left > 24 and 0 < crop.padded_share < 0.2
    # the white stripe beside the photo's edge is there twice, as far from the edge on either side
    bright = np.flatnonzero(np.asarray(crop.image.convert("L"))[20] > 240)
    edge = -crop.region.left * crop.enlarged
    left, right = edge - bright[bright < edge], bright[bright > edge] - edge
    assert len(left) and len(right) and left.mean() == pytest.approx(right.mean(), abs=2)


def test_the_face_moves_with_the_crop():
    photo = make_photo(3, size=(900, 1200), height=330)
    face = face_at(318, 435, 264, 330)
    crop = crop_face(photo, face, 256)
    assert crop.image.size == (224, 288)
    factor = 224 / crop.region.width
    for moved, seen in zip(crop.face.landmarks, face.landmarks, strict=True):
        assert moved[0] == pytest.approx((seen[0] - crop.region.left) * factor, abs=0.3)
        assert moved[1] == pytest.approx((seen[1] - crop.region.top) * factor, abs=0.3)
    assert crop.original_size == (crop.region.height, crop.region.width) and crop.top_left == (0, 0)
    assert crop.enlarged == pytest.approx(factor, abs=0.002)


def test_nothing_is_distorted():
    photo = Image.new("RGB", (1000, 1400), "white")
    photo.paste("black", (450, 600, 550, 700))  # a square of 100 pixels
    crop = crop_face(photo, face_at(300, 400, 400, 500), 512)
    dark = np.asarray(crop.image.convert("L")) < 128
    wide, high = dark.any(axis=0).sum(), dark.any(axis=1).sum()
    assert abs(int(wide) - int(high)) <= 1 and wide == pytest.approx(100 * crop.enlarged, abs=1.5)


@pytest.mark.parametrize("size", [(1, 1), (50, 2000), (2000, 50), (3, 5)])
@pytest.mark.parametrize("model", [64, 256])
def test_odd_shapes_give_a_crop_all_the_same(size, model):
    face = face_at(size[0] * 0.1, size[1] * 0.1, size[0] * 0.8, size[1] * 0.8)
    crop = crop_face(Image.new("RGB", size), face, model)
    assert Bucket(crop.image.height, crop.image.width) in buckets(model)


# --- tall and wide photos -------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("photo", "face", "shape"),
    [
        ((3000, 4000), (1300, 1000, 480, 600), (1152, 896)),  # a phone held upright
        ((3000, 4000), (1300, 1000, 160, 200), (1152, 896)),  # from far away
        ((1080, 1920), (400, 500, 240, 300), (1216, 832)),
        ((2000, 3000), (600, 100, 800, 1000), (1216, 832)),
        ((1000, 1500), (260, 300, 480, 600), (1216, 832)),  # at arm's length: the square would be all face
        ((3000, 4000), (1300, 3300, 480, 600), (1024, 1024)),  # only room above the head
        ((4000, 3000), (1500, 1200, 480, 600), (896, 1152)),
        ((4000, 2000), (100, 300, 480, 600), (832, 1216)),
        ((3000, 3300), (1300, 1000, 480, 600), (1024, 1024)),
        ((3300, 3000), (1300, 1000, 480, 600), (1024, 1024)),
    ],
)
def test_the_shape_follows_what_the_photo_offers(photo, face, shape):
    seen = face_at(*face)
    region, bucket = choose_region(*photo, seen, 1024)
    square = choose_square(*photo, seen, 1024)
    assert (bucket.height, bucket.width) == shape
    assert min(region.left, region.top) >= 0 and region.right <= photo[0] and region.bottom <= photo[1]
    # never enlarged more than the square, and a face of comparable size in pixels of the crop
    enlarged = bucket.height / region.height
    assert enlarged <= 1024 / square.width + 1e-9
    assert enlarged > 0.81 * 1024 / square.width
    # head and shoulders: hair above the face, the square's lower edge at least, sides about two face heights wide
    left, top, right, bottom = seen.box
    assert region.top <= max(0, top - 0.3 * face_size(seen)) and region.bottom >= square.bottom - 1
    assert region.width >= min(1.88 * face_size(seen), photo[0]) and region.height >= square.height * 0.999
    off_centre = abs((left + right) / 2 - (region.left + region.right) / 2)
    assert off_centre <= 1 or region.left in (0, photo[0] - region.width)
    assert region.height / region.width == pytest.approx(bucket.aspect, rel=0.004)


def test_every_photo_keeps_its_face_whole_and_is_never_enlarged_more_than_its_square():
    """Photos and faces of all sorts: what holds for the examples above holds for any."""
    rng = np.random.default_rng(7)
    shapes = set()
    for _ in range(3000):
        width, height = (int(2 ** rng.uniform(8, 12)) for _ in range(2))
        high = rng.uniform(0.05, 0.9) * min(width / 0.8, height)
        seen = face_at(rng.uniform(0, width - high * 0.8), rng.uniform(0, height - high), high * 0.8, high)
        region, bucket = choose_region(width, height, seen, 256)
        square = choose_square(width, height, seen, 256)
        shapes.add((bucket.height, bucket.width))
        left, top, right, bottom = seen.box
        assert region.left <= left and region.top <= top and region.right >= right and region.bottom >= bottom
        assert bucket.height / region.height <= 256 / square.width + 1e-9
        sticks_out = max(-region.left, -region.top, region.right - width, region.bottom - height, 0)
        assert sticks_out <= max(-square.left, -square.top, square.right - width, square.bottom - height, 0)
        assert abs(region.height - region.width * bucket.aspect) < 1.5 * max(1, bucket.aspect)
        assert region == square or (region.height >= square.height and bucket.aspect > 1) or region.width > square.width
    assert shapes == {(each.height, each.width) for each in buckets(256)}


def test_a_tall_crop_is_not_distorted_either():
    photo = Image.new("RGB", (1000, 1500), "white")
    photo.paste("black", (450, 600, 550, 700))  # a square of 100 pixels
    crop = crop_face(photo, face_at(300, 400, 400, 500), 512)
    assert crop.image.size == (416, 608)
    dark = np.asarray(crop.image.convert("L")) < 128
    wide, high = dark.any(axis=0).sum(), dark.any(axis=1).sum()
    assert abs(int(wide) - int(high)) <= 1 and wide == pytest.approx(100 * crop.enlarged, abs=1.5)
