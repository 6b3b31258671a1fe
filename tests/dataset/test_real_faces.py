"""Real photographs with real weights: the faces are found where they are, and cut out with hair and shoulders."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headshot_ui.dataset.checks import examine
from headshot_ui.dataset.crop import crop_face
from headshot_ui.dataset.detector import RetinaFaceDetector

#: File → box and eyes, read off the photographs by eye, in pixels.
FACES = {
    "Einstein01.png": ((88, 90, 378, 472), ((193, 236), (322, 240))),
    "Einstein02.png": ((142, 85, 408, 465), ((192, 238), (312, 238))),
    "Solvay_conference_1927_0018.png": ((105, 75, 405, 480), ((195, 240), (325, 242))),
    "Solvay_conference_1927_2_16.png": ((98, 75, 402, 470), ((180, 240), (318, 238))),
}
ASTRONAUT = ((180, 63, 270, 174), ((204, 103), (246, 104)))


@pytest.fixture(scope="module")
def detector(real_data: Path) -> RetinaFaceDetector:
    return RetinaFaceDetector.from_file(real_data / "models" / "mobilenet0.25_Final.pth", "cpu")


def astronaut() -> Image.Image:
    skimage_data = pytest.importorskip("skimage.data")
    return Image.fromarray(skimage_data.astronaut())


def overlap(a, b) -> float:
    wide = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return wide / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - wide)


def check(found, box, eyes):
    assert len(found) == 1 and found[0].score > 0.95
    assert overlap(found[0].box, box) > 0.75, found[0].box
    tolerance = 0.08 * (box[3] - box[1])
    for seen, true in zip(found[0].landmarks[:2], eyes, strict=True):
        assert np.hypot(seen[0] - true[0], seen[1] - true[1]) < tolerance, found[0].landmarks


@pytest.mark.parametrize("name", FACES)
def test_close_ups(detector, real_data, name):
    check(detector.detect(Image.open(real_data / "faces" / name).convert("RGB")), *FACES[name])


def test_a_half_length_portrait(detector):
    check(detector.detect(astronaut()), *ASTRONAUT)


@pytest.mark.parametrize("factor", [0.5, 3.0, 8.0])
def test_the_size_of_the_file_does_not_matter(detector, factor):
    picture = astronaut().resize((round(512 * factor), round(512 * factor)), Image.Resampling.BICUBIC)
    box, eyes = ASTRONAUT
    scaled = tuple(tuple(value * factor for value in eye) for eye in eyes)
    check(detector.detect(picture), tuple(value * factor for value in box), scaled)


def test_a_small_face_in_a_large_scene(detector):
    scene = Image.new("RGB", (4000, 3000), (120, 130, 140))
    scene.paste(astronaut(), (3000, 500))
    box, eyes = ASTRONAUT
    moved = (box[0] + 3000, box[1] + 500, box[2] + 3000, box[3] + 500)
    check(detector.detect(scene), moved, tuple((x + 3000, y + 500) for x, y in eyes))


def test_two_people_are_two_faces(detector):
    pair = Image.new("RGB", (1024, 512))
    pair.paste(astronaut(), (0, 0))
    pair.paste(astronaut(), (512, 0))
    assert len(detector.detect(pair)) == 2
    assert "2 faces" in examine(pair, detector, 256).reason


@pytest.mark.parametrize("name", ["chelsea", "coffee", "rocket", "brick", "moon", "clock", "horse", "page", "coins"])
def test_no_face_where_there_is_none(detector, name):
    skimage_data = pytest.importorskip("skimage.data")
    pixels = np.asarray(getattr(skimage_data, name)())
    pixels = pixels if pixels.dtype == np.uint8 else (pixels * 255).astype(np.uint8)
    assert detector.detect(Image.fromarray(pixels).convert("RGB")) == []


@pytest.mark.parametrize("size", [256, 1024])
def test_crops_hold_head_and_shoulders(detector, size):
    picture = astronaut()
    crop = crop_face(picture, detector.detect(picture)[0], size)
    assert crop.image.size == (size, size) and crop.padded_share == 0
    height = (crop.face.box[3] - crop.face.box[1]) / size
    assert 0.36 <= height <= 0.5
    assert crop.region.top == 0  # all of her hair, which begins at row 15
    assert crop.face.box[1] / size >= 0.08 and crop.face.box[3] / size <= 0.75
    # the detector finds the face in the crop where the crop says it is
    check(detector.detect(crop.image), crop.face.box, crop.face.landmarks[:2])


@pytest.mark.parametrize("name", FACES)
def test_a_photo_that_is_all_face_is_used_whole(detector, real_data, name):
    picture = Image.open(real_data / "faces" / name).convert("RGB")
    found = examine(picture, detector, 256)
    assert found.reason == "" and found.crop.padded_share == 0 and found.crop.region.width == 512


def test_sharp_photographs_pass_and_blurred_ones_do_not(detector):
    from PIL import ImageFilter

    assert examine(astronaut(), detector, 256).warnings == ()
    blurred = astronaut().filter(ImageFilter.GaussianBlur(3.5))
    assert "blurred" in examine(blurred, detector, 256).reason
    assert "too small" in examine(astronaut(), detector, 1024).reason
