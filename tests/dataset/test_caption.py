import numpy as np
import pytest
from PIL import Image

from headshot_ui.dataset.caption import backdrop, caption_for, framing, light, pose
from headshot_ui.dataset.types import Face
from tests.dataset.drawn_faces import face_at

#: Words that the presets and the demo's vocabulary know.
KNOWN = """portrait of tok person in front a grey white dark blue green warm studio backdrop light from the left right
close-up upper body head and shoulders facing camera turned to"""


def turned(by: float) -> Face:
    """A face whose nose is `by` of its width beside the middle."""
    face = face_at(64, 60, 96, 120)
    x, y = face.landmarks[2]
    return Face(face.box, (*face.landmarks[:2], (x + by * 96, y), *face.landmarks[3:]), 1.0)


def lit(left: int, right: int, around: tuple[int, int, int] = (128, 128, 128)) -> Image.Image:
    """A crop whose left and right halves of the face are of these greys."""
    pixels = np.full((256, 256, 3), around, np.uint8)
    pixels[60:180, 64:112] = left
    pixels[60:180, 112:160] = right
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("left", "right", "said"),
    [
        (180, 120, "light from the left"),
        (120, 180, "light from the right"),
        (150, 145, ""),
        (60, 35, "light from the left"),
    ],
)
def test_light_is_named_only_where_one_cheek_is_clearly_brighter(left, right, said):
    assert light(lit(left, right), turned(0)) == said
    assert light(lit(left, right), turned(0.2)) == ""  # a turned face is shaded by its shape


@pytest.mark.parametrize(
    ("by", "said"), [(0, "facing the camera"), (-0.2, "turned to the left"), (0.2, "turned to the right"), (0.09, "")]
)
def test_pose(by, said):
    assert pose(turned(by)) == said


@pytest.mark.parametrize(("height", "said"), [(150, "close-up"), (120, "head and shoulders"), (95, "upper body")])
def test_framing(height, said):
    assert framing(Image.new("RGB", (256, 256)), face_at(60, 50, height * 0.8, height)) == said


@pytest.mark.parametrize(
    ("colour", "name"),
    [
        ((150, 152, 155), "grey"),
        ((240, 240, 238), "white"),
        ((40, 40, 46), "dark"),
        ((70, 120, 200), "blue"),
        ((90, 150, 110), "green"),
        ((210, 160, 110), "warm"),
        ((200, 60, 190), None),
        ((255, 240, 205), None),
    ],
)
def test_plain_backdrops_are_named(colour, name):
    assert backdrop(Image.new("RGB", (256, 256), colour)) == (f"in front of a {name} studio backdrop" if name else "")


def test_a_soft_gradient_is_still_plain_but_a_pattern_or_two_colours_are_not():
    ramp = np.linspace(110, 150, 256)[:, None, None] * np.ones((1, 256, 3))
    assert "grey" in backdrop(Image.fromarray(ramp.astype(np.uint8)))
    stripes = np.tile(np.where(np.arange(256) // 16 % 2, 90, 170)[:, None, None], (1, 256, 3))
    assert backdrop(Image.fromarray(stripes.astype(np.uint8))) == ""
    halves = np.tile(np.where(np.arange(256) < 128, 90, 170)[None, :, None], (256, 1, 3))
    assert backdrop(Image.fromarray(halves.astype(np.uint8))) == ""


def test_the_whole_caption_uses_known_words_and_says_nothing_about_the_face():
    text = caption_for("tok", "person", lit(180, 120), turned(0))
    expected = "in front of a grey studio backdrop, light from the left, head and shoulders, facing the camera"
    assert text == f"portrait of tok person, {expected}"
    assert set(text.replace(",", "").split()) <= set(KNOWN.split())


def test_a_text_beside_the_photo_takes_the_place_of_measuring():
    picture = lit(180, 120)
    assert caption_for("tok", "man", picture, turned(0), "wearing a hat") == "portrait of tok man, wearing a hat"
    assert caption_for("tok", "man", picture, turned(0), "photo of Tok, at sea") == "photo of Tok, at sea"
