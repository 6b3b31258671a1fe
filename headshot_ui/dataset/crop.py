"""The part of a photo that the model learns from: head, hair and shoulders, never distorted.

First a square is chosen around the head; where the photo goes on, it becomes a tall or wide shape (``buckets``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headshot_ui.dataset.buckets import Bucket, nearest_first
from headshot_ui.dataset.types import Face

if TYPE_CHECKING:
    from PIL import Image

FACE_SHARE = 0.47  # height of the face box (hairline to chin) as a share of the square's side
LEAST_SHARE = 0.36  # how far the square may grow where that saves enlarging the picture, or a tall crop beyond it
MOST_SHARE = 0.8  # how tight it may get where the photo itself ends: a tight crop teaches more than a mirrored chin
FACE_MIDDLE = 0.455  # middle of the face box, from the top: below it are neck and shoulders


@dataclass(frozen=True)
class Region:
    """A part of a photo, in its pixels. It may reach beyond the edges."""

    left: int
    top: int
    width: int
    height: int

    @property
    def right(self) -> int:
        return self.left + self.width

    @property
    def bottom(self) -> int:
        return self.top + self.height


@dataclass(frozen=True)
class Crop:
    """A cut-out in the size of one of the model's buckets and where it came from."""

    image: Image.Image
    face: Face  # in pixels of the crop
    region: Region
    padded_share: float  # of the shorter side that was mirrored because the photo ended there
    enlarged: float  # crop pixels per photo pixel; above 1 nothing is gained but size

    @property
    def original_size(self) -> tuple[int, int]:
        """(height, width) of the region before resizing, as SDXL's size condition wants it."""
        return self.region.height, self.region.width

    @property
    def top_left(self) -> tuple[int, int]:
        """SDXL's crop condition: the region was composed on purpose, so nothing counts as cut off."""
        return 0, 0


def face_size(face: Face) -> float:
    """Height of a face in pixels; of a face turned aside or tilted, its longer side."""
    left, top, right, bottom = face.box
    return max(right - left, bottom - top, 1.0)


def choose_square(width: int, height: int, face: Face, size: int) -> Region:
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
    left_px, top_px = _moved_inside(corner_x, side_px, width), _moved_inside(corner_y, side_px, height)
    return Region(left_px, top_px, side_px, side_px)


def _moved_inside(corner: float, side: int, available: int) -> int:
    if side >= available:  # as much on both sides as the face allows: never further than the photo's own edges
        return round(min(max(corner, available - side), 0))
    return round(min(max(corner, 0), available - side))


def choose_region(width: int, height: int, face: Face, size: int) -> tuple[Region, Bucket]:
    """What to cut out of a photo of ``width`` × ``height`` for a model of ``size`` pixels, and its size afterwards.

    The shape nearest to the photo's own for which the photo has room around the square; in the end the square itself.
    """
    square = choose_square(width, height, face, size)
    *others, whole = nearest_first(height / width, size)
    for bucket in others:
        tall = bucket.aspect > 1
        region = _taller(square, bucket, width, height, face, size) if tall else _wider(square, bucket, width)
        if region is not None:
            return region, bucket
    return square, whole


def _taller(square: Region, bucket: Bucket, width: int, height: int, face: Face, size: int) -> Region | None:
    """``square`` and more of the body; None where the photo ends too early below.

    As wide as the square where the photo allows it and the face keeps LEAST_SHARE of the height, else narrower, but
    never enlarged more than the square would be (then the face has as many pixels as in the square). The face is
    never lower than in the square: a photo with room only above the head shows no more of the person.
    """
    left, top, right, bottom = face.box
    middle = (top + bottom) / 2
    lowest = min(0.9, max((middle - square.top) / square.height, FACE_MIDDLE))  # share of the height
    tallest = min(height, (height - middle) / (1 - lowest))
    least = square.width / size  # photo pixels per crop pixel
    wanted = min(square.width / bucket.width, face_size(face) / LEAST_SHARE / bucket.height)
    scale = max(least, min(wanted, width / bucket.width, tallest / bucket.height))
    wide, high = _pixels(scale * bucket.width), _pixels(scale * bucket.height)
    if high > tallest + 1:
        return None
    region_top = _moved_inside(square.top, min(high, height), height)
    return Region(_moved_inside((left + right) / 2 - wide / 2, wide, width), region_top, wide, min(high, height))


def _wider(square: Region, bucket: Bucket, width: int) -> Region | None:
    """``square`` and more on both sides; None where the photo has no room for it."""
    wide = _pixels(square.height / bucket.aspect)
    if wide > width:
        return None
    left = _moved_inside(square.left + square.width / 2 - wide / 2, wide, width)
    return Region(left, square.top, wide, square.height)


def _pixels(length: float) -> int:
    """Whole pixels, upwards, so that rounding never enlarges the picture."""
    return math.ceil(length - 1e-6)


def crop_face(image: Image.Image, face: Face, size: int) -> Crop:
    """Cut head and shoulders around ``face`` (pixels of the upright RGB ``image``) for a model of ``size`` pixels."""
    from PIL import Image

    region, bucket = choose_region(image.width, image.height, face, size)
    part, sticking_out = _cut(image, region)
    scaled = part.resize((bucket.width, bucket.height), Image.Resampling.LANCZOS)
    factor_x, factor_y = bucket.width / region.width, bucket.height / region.height  # the same but for rounding

    def moved(x: float, y: float) -> tuple[float, float]:
        return (x - region.left) * factor_x, (y - region.top) * factor_y

    left, top, right, bottom = face.box
    box = (*moved(left, top), *moved(right, bottom))
    moved_face = Face(box, tuple(moved(x, y) for x, y in face.landmarks), face.score)
    return Crop(scaled, moved_face, region, sticking_out / min(region.width, region.height), factor_y)


def _cut(image: Image.Image, region: Region) -> tuple[Image.Image, int]:
    """The region, mirrored at the photo's edges where it sticks out, and the most pixels added on one side."""
    import numpy as np
    from PIL import Image

    before_x, before_y = max(0, -region.left), max(0, -region.top)
    after_x, after_y = max(0, region.right - image.width), max(0, region.bottom - image.height)
    corner = (min(region.right, image.width), min(region.bottom, image.height))
    inside = image.crop((max(0, region.left), max(0, region.top), *corner))
    most = max(before_x, before_y, after_x, after_y)
    if not most:
        return inside, 0
    mirrored = np.pad(np.asarray(inside), ((before_y, after_y), (before_x, after_x), (0, 0)), mode="symmetric")
    return Image.fromarray(mirrored), most
