"""Photos made of shapes, and a detector that finds them by colour: real enough for everything but detection."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from headshot_ui.dataset.types import Face

SKIN = (224, 172, 105)
OTHER_SKIN = (110, 200, 160)


def face_at(left: float, top: float, width: float, height: float, score: float = 0.99) -> Face:
    """A frontal face whose box is given; landmarks where eyes, nose and mouth are in `draw_face`."""

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x * width, top + y * height

    marks = (at(0.3, 0.4), at(0.7, 0.4), at(0.5, 0.6), at(0.35, 0.78), at(0.65, 0.78))
    return Face((left, top, left + width, top + height), marks, score)


def draw_face(picture: Image.Image, left: int, top: int, height: int, skin: tuple[int, int, int] = SKIN) -> Face:
    """Draw a face of `height` pixels (width four fifths of it) and return it."""
    face = face_at(left, top, height * 0.8, height)
    draw = ImageDraw.Draw(picture)
    draw.ellipse(face.box, fill=skin)
    for x, y in face.landmarks[:2]:
        draw.ellipse((x - height * 0.06, y - height * 0.04, x + height * 0.06, y + height * 0.04), fill=(20, 20, 30))
    (x0, y0), (x1, _) = face.landmarks[3:]
    draw.line((x0, y0, x1, y0), fill=(120, 20, 30), width=max(1, height // 40))
    x, y = face.landmarks[2]
    draw.line((x, y - height * 0.1, x, y), fill=(150, 100, 60), width=max(1, height // 60))
    return face


def make_photo(
    seed: int,
    size: tuple[int, int] = (480, 640),
    height: int = 220,
    second: int = 0,
    blur: float = 0.0,
    brightness: float = 1.0,
) -> Image.Image:
    """A portrait before a backdrop of coloured patches that depends on `seed`. `second`: height of another face."""
    rng = np.random.default_rng(seed)
    # bluish, so that no patch has the colour of a face
    patches = Image.fromarray(rng.integers((20, 50, 120), (110, 120, 250), (6, 5, 3), dtype=np.uint8))
    picture = patches.resize(size, Image.Resampling.BICUBIC)
    if height:
        shift = int(rng.integers(-30, 31))
        draw_face(picture, (size[0] - int(height * 0.8)) // 2 + shift, size[1] // 2 - height // 2, height)
    if second:
        draw_face(picture, 4, 4, second, OTHER_SKIN)
    if blur:
        picture = picture.filter(ImageFilter.GaussianBlur(blur))
    return picture.point(lambda value: value * brightness)


@dataclass(frozen=True)
class ColourDetector:
    """Finds the skins of `draw_face`, even in a dark photo."""

    def detect(self, image: Image.Image) -> list[Face]:
        pixels = np.asarray(image.convert("RGB"), dtype=np.float32)
        found = [face for skin in (SKIN, OTHER_SKIN) if (face := _region(pixels, np.array(skin, np.float32)))]
        return sorted(found, key=lambda face: -(face.box[3] - face.box[1]))


def _region(pixels: np.ndarray, skin: np.ndarray) -> Face | None:
    unit = pixels / np.maximum(np.linalg.norm(pixels, axis=2, keepdims=True), 1)
    alike = (unit @ (skin / np.linalg.norm(skin)) > 0.9985) & (pixels.max(axis=2) > 8)
    rows, columns = np.flatnonzero(alike.sum(1) > 4), np.flatnonzero(alike.sum(0) > 4)
    if alike.sum() < 60 or not len(rows) or not len(columns):
        return None
    left, top, right, bottom = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1
    return face_at(float(left), float(top), float(right - left), float(bottom - top))


def jpeg(picture: Image.Image, **options: object) -> bytes:
    """The picture as JPEG bytes."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", **({"quality": 95, "subsampling": 0} | options))
    return stream.getvalue()
