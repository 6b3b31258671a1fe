"""The square around a face that the model learns from: head, hair and shoulders, never distorted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headshot_ui.dataset.types import Face

if TYPE_CHECKING:
    from PIL import Image

FACE_SHARE = 0.47  # height of the face box (hairline to chin) as a share of the square's side
LEAST_SHARE = 0.36  # how far the square may grow where that saves enlarging the picture
MOST_SHARE = 0.8  # how tight it may get where the photo itself ends: a tight crop teaches more than a mirrored chin
FACE_MIDDLE = 0.455  # middle of the face box, from the top: below it are neck and shoulders


@dataclass(frozen=True)
class Square:
    """A square region of a photo, in its pixels. It may reach beyond the edges."""

    left: int
    top: int
    side: int


@dataclass(frozen=True)
class Crop:
    """A cut-out of ``size`` × ``size`` pixels and where it came from."""

    image: Image.Image
    face: Face  # in pixels of the crop
    square: Square
    padded_share: float  # of the side that was mirrored because the photo ended there
    enlarged: float  # crop pixels per photo pixel; above 1 nothing is gained but size

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the region before resizing, as SDXL's size condition wants it."""
        return self.square.side, self.square.side

    @property
    def top_left(self) -> tuple[int, int]:
        """SDXL's crop condition: the region was composed on purpose, so nothing counts as cut off."""
        return 0, 0


def face_size(face: Face) -> float:
    """Height of a face in pixels; of a face turned aside or tilted, its longer side."""
    left, top, right, bottom = face.box
    return max(right - left, bottom - top, 1.0)


def choose_square(width: int, height: int, face: Face, size: int) -> Square:
    """Where to cut a photo of ``width`` × ``height`` for a model of ``size`` pixels.

    The face takes FACE_SHARE of the side; less (to LEAST_SHARE) where the photo would otherwise be enlarged, more
    (to MOST_SHARE) where it ends. Then the square is moved into the photo; what still sticks out is mirrored later.
    """
    face_px = face_size(face)
    side = face_px / FACE_SHARE
    if side < size:
        side = min(float(size), face_px / LEAST_SHARE)
    shorter = min(width, height)
    if side > shorter:
        side = max(float(shorter), face_px / MOST_SHARE)
    side_px = max(1, round(side))
    left, top, right, bottom = face.box
    corner_x = (left + right) / 2 - side_px / 2
    corner_y = (top + bottom) / 2 - side_px * FACE_MIDDLE
    return Square(_moved_inside(corner_x, side_px, width), _moved_inside(corner_y, side_px, height), side_px)


def _moved_inside(corner: float, side: int, available: int) -> int:
    if side >= available:  # as much on both sides as the face allows: never further than the photo's own edges
        return round(min(max(corner, available - side), 0))
    return round(min(max(corner, 0), available - side))


def crop_face(image: Image.Image, face: Face, size: int) -> Crop:
    """Cut the square around ``face`` (pixels of the upright RGB ``image``) and resize it to ``size`` × ``size``."""
    from PIL import Image

    square = choose_square(image.width, image.height, face, size)
    region, sticking_out = _cut(image, square)
    scaled = region.resize((size, size), Image.Resampling.LANCZOS)
    factor = size / square.side

    def moved(x: float, y: float) -> tuple[float, float]:
        return (x - square.left) * factor, (y - square.top) * factor

    left, top, right, bottom = face.box
    box = (*moved(left, top), *moved(right, bottom))
    moved_face = Face(box, tuple(moved(x, y) for x, y in face.landmarks), face.score)
    return Crop(scaled, moved_face, square, sticking_out / square.side, factor)


def _cut(image: Image.Image, square: Square) -> tuple[Image.Image, int]:
    """The region, mirrored at the photo's edges where it sticks out, and the most pixels added on one side."""
    import numpy as np
    from PIL import Image

    right, bottom = square.left + square.side, square.top + square.side
    before_x, before_y = max(0, -square.left), max(0, -square.top)
    after_x, after_y = max(0, right - image.width), max(0, bottom - image.height)
    inside = image.crop((max(0, square.left), max(0, square.top), min(right, image.width), min(bottom, image.height)))
    most = max(before_x, before_y, after_x, after_y)
    if not most:
        return inside, 0
    mirrored = np.pad(np.asarray(inside), ((before_y, after_y), (before_x, after_x), (0, 0)), mode="symmetric")
    return Image.fromarray(mirrored), most
