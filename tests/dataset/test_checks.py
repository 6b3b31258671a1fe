import numpy as np
import pytest
from PIL import Image, ImageFilter

from headshot_ui.dataset.checks import blur_of, examine
from headshot_ui.dataset.types import Face
from tests.dataset.drawn_faces import ColourDetector, draw_face, make_photo

DETECTOR = ColourDetector()


def test_a_good_photo_passes():
    found = examine(make_photo(1), DETECTOR, 256)
    assert found.reason == "" and found.warnings == () and found.crop is not None and 0 < found.quality <= 1


@pytest.mark.parametrize(
    ("photo", "said"),
    [
        (make_photo(1, height=0), "No face"),
        (make_photo(1, second=200), "2 faces"),
        (make_photo(1, height=24), "too small (2"),
        (make_photo(1, blur=6), "blurred"),
        (make_photo(1, brightness=0.12), "too dark"),
    ],
)
def test_bad_photos_are_refused_with_a_remedy(photo, said):
    found = examine(photo, DETECTOR, 256)
    assert said in found.reason and ": " in found.reason and found.reason.endswith(".")


def test_an_overexposed_face_is_refused():
    class Everywhere:
        def detect(self, image):
            return [Face((150, 150, 330, 370), ((200, 240), (280, 240), (240, 280), (210, 320), (270, 320)), 0.99)]

    assert "overexposed" in examine(Image.new("RGB", (480, 640), "white"), Everywhere(), 256).reason


def test_the_needed_size_depends_on_the_model():
    photo = make_photo(1, height=100)
    assert examine(photo, DETECTOR, 256).reason == ""
    reason = examine(photo, DETECTOR, 1024).reason
    assert "too small" in reason and "at least" in reason


def test_dark_skin_in_good_light_is_not_called_dark():
    class Known:
        def __init__(self, face):
            self.face = face

        def detect(self, image):
            return [self.face]

    photo = make_photo(1, height=0)
    found = examine(photo, Known(draw_face(photo, 150, 210, 220, skin=(74, 47, 32))), 256)
    assert found.reason == "" and found.warnings == ()


def test_small_faces_behind_the_person_are_only_mentioned():
    photo = make_photo(2, second=60)
    found = examine(photo, DETECTOR, 256)
    assert found.reason == ""
    assert ("another face is in the background" in found.warnings) == (found.crop.region.top < 30)


def test_flaws_are_warned_about_and_lower_the_quality():
    good = examine(make_photo(1), DETECTOR, 256)
    dim = examine(make_photo(1, brightness=0.25), DETECTOR, 256)
    small = examine(make_photo(1, height=55), DETECTOR, 256)
    assert dim.reason == "" and "rather dark" in dim.warnings and dim.quality < good.quality
    assert small.reason == "" and "the face is rather small" in small.warnings and small.quality < good.quality


def test_a_face_cut_off_by_the_edge_is_warned_about():
    photo = make_photo(1, height=0)
    face = draw_face(photo, -60, 200, 220)

    class Known:
        def detect(self, image):
            return [face]

    assert "the face is cut off by the edge of the photo" in examine(photo, Known(), 256).warnings


def test_blur_grows_with_blurring_and_not_with_contrast():
    fields = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.uint8)
    sharp = Image.fromarray(np.kron(fields, np.ones((16, 16), np.uint8)))
    steps = [blur_of(np.asarray(sharp.filter(ImageFilter.GaussianBlur(s)), np.float32)) for s in (0, 1, 2, 4)]
    assert steps == sorted(steps) and steps[0] < 0.4 and steps[-1] > 0.8
    faint = np.asarray(sharp, np.float32) * 0.3 + 50
    assert blur_of(faint) == pytest.approx(steps[0], abs=1e-3)
    assert blur_of(np.full((40, 40), 7, np.float32)) == 1.0
