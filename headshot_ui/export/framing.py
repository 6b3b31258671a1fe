"""Where to cut a picture for a layout. Plain geometry in pixels of the picture; no pixel is touched here.

A detector's box reaches from the hairline to the chin. The head around it is an oval, by these proportions of the
box, measured on photographs and on the drawn demo people (full hair fits, wild or long hair does not):

    hair      0.35 of the box's height above it (0.18 of them skull: the crown)
    chin      0.05 of the height below it (beards)
    sides     0.15 of the width on each side (ears and hair)

The wished crop is moved and made tighter or wider until it lies within the picture with the whole head in it. Pixels
are added only where a head that is whole in the picture cannot be whole in any crop of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from headshot_ui.dataset.types import Face
    from headshot_ui.export.layouts import Layout

CROWN, HAIR, CHIN, SIDES = 0.18, 0.35, 0.05, 0.15  # of the face box
CIRCLE_MARGIN = 0.03  # of the circle's radius, between the head and the circle
TIGHTEST, WIDEST, STEP = 0.45, 1.7, 1.02  # height of a crop as a multiple of the wished one, and how finely it is tried
MOST_ADDED = 0.15  # of a crop's side; a picture that lacks more looks worse filled than cut
AT_EDGE = 0.02  # of the head's height: so near to the picture's edge, or beyond, the picture cuts the head itself
OVAL_POINTS = 48

NO_FACE = "No face was found, so this is the middle of the picture."
CUT_BY_PICTURE = "The picture itself cuts off the head."
HAIR_CUT = "The picture is too tight to show all of the hair."
NOT_WHOLE = "The picture is too tight to show the whole head."
EXTENDED = "The picture ends too close to the head, so its edge was continued by {percent} %."

Point = tuple[float, float]


@dataclass(frozen=True)
class Region:
    """Part of a picture in its pixels; with edges between pixels, so that its aspect is exact."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + self.height

    @property
    def box(self) -> tuple[float, float, float, float]:
        return self.left, self.top, self.right, self.bottom


@dataclass(frozen=True)
class Framing:
    """A chosen crop. ``region`` reaches beyond the picture exactly when ``added`` is not 0."""

    region: Region
    added: float = 0.0  # share of the crop's side that is not in the picture
    note: str = ""  # what is not as wished, for people


Holds = Callable[[Region], bool]


def head_oval(face: Face, hair: float = HAIR, sides: float = SIDES) -> Region:
    """The box around the head of a face; the head itself is the oval that touches its sides."""
    left, top, right, bottom = face.box
    width, height = right - left, bottom - top
    return Region(left - sides * width, top - hair * height, (1 + 2 * sides) * width, (1 + hair + CHIN) * height)


def choose(width: int, height: int, face: Face | None, layout: Layout) -> Framing:
    """The crop of a picture of ``width`` x ``height`` pixels for a layout; the largest middle one without a face."""
    if layout.whole:
        return Framing(Region(0, 0, width, height))
    if face is None:
        tall = min(height, width / layout.aspect)
        wide = tall * layout.aspect
        return Framing(Region((width - wide) / 2, (height - tall) / 2, wide, tall), note=NO_FACE)
    return _around(width, height, face, layout)


def _around(width: int, height: int, face: Face, layout: Layout) -> Framing:
    head, skull = head_oval(face), head_oval(face, CROWN, SIDES / 3)
    whole = _in_picture(head, width, height)
    # Only what is certain is said: nobody knows how much hair there is above a picture's edge.
    cut = "" if _in_picture(skull, width, height) else CUT_BY_PICTURE
    tries = tuple(_candidates(width, height, face, layout))

    def best(shape: Region, margin: float = 0.0) -> Region | None:
        return _best(tries, _holds(shape, face, layout, width, height, margin), face, layout)

    if (found := best(head, CIRCLE_MARGIN)) is not None:
        return Framing(found, note=cut)
    if not layout.circle and (found := best(skull)) is not None:  # hair cut at a side looks better than added pixels
        return Framing(found, note=cut or HAIR_CUT)
    if whole and (extended := _extended(width, height, face, layout)) is not None:
        return extended
    bare = Region(*face.box[:2], face.box[2] - face.box[0], face.box[3] - face.box[1])
    for shape, lacking in ((head, ""), (skull, HAIR_CUT), (bare, NOT_WHOLE)):
        if (found := best(shape)) is not None:
            return Framing(found, note=cut or lacking)
    return Framing(_largest(width, height, face, layout), note=cut or NOT_WHOLE)


def _in_picture(head: Region, width: int, height: int) -> bool:
    near = AT_EDGE * head.height
    return head.left > -near and head.top > -near and head.right < width + near and head.bottom < height + near


# --- what a crop has to hold ------------------------------------------------------------------------
def _holds(head: Region, face: Face, layout: Layout, width: int, height: int, margin: float = CIRCLE_MARGIN) -> Holds:
    """Whether a crop shows ``head`` (as far as the picture does): within its edges, or within its circle."""

    def clipped(x: float, y: float) -> Point:
        return min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))

    if layout.circle:
        left, top, right, bottom = face.box
        points = [clipped(*point) for point in oval_points(head)]
        points += [clipped(x, y) for x in (left, right) for y in (top, bottom)]
        return lambda crop: within_circle(points, crop, margin)
    low, high = clipped(head.left, head.top), clipped(head.right, head.bottom)

    def shows(crop: Region) -> bool:
        slack = 1e-6 * crop.height
        return (crop.left <= low[0] + slack and crop.top <= low[1] + slack
                and crop.right >= high[0] - slack and crop.bottom >= high[1] - slack)  # fmt: skip

    return shows


def oval_points(box: Region) -> Iterator[Point]:
    """Points on the oval that touches the sides of ``box``."""
    for cosine, sine in _unit_circle():
        yield box.left + box.width * (0.5 + cosine / 2), box.top + box.height * (0.5 + sine / 2)


@cache
def _unit_circle() -> tuple[Point, ...]:
    turns = [2 * math.pi * index / OVAL_POINTS for index in range(OVAL_POINTS)]
    return tuple((math.cos(turn), math.sin(turn)) for turn in turns)


def within_circle(points: list[Point], crop: Region, margin: float = 0.0) -> bool:
    """Whether all points lie in the circle that touches the sides of a square crop, ``margin`` (of its radius) away."""
    radius = crop.width / 2 * (1 - margin)
    x, y = crop.left + crop.width / 2, crop.top + crop.height / 2
    return all((px - x) ** 2 + (py - y) ** 2 <= radius**2 * (1 + 1e-9) for px, py in points)


# --- which crops there are --------------------------------------------------------------------------
def _wished(face: Face, layout: Layout, factor: float = 1.0) -> Region:
    """The crop as the layout wants it, or ``factor`` times as high, wherever the picture ends."""
    left, top, right, bottom = face.box
    tall = (bottom - top) * (1 + CROWN) / layout.head_share * factor
    wide = tall * layout.aspect
    eyes = (face.landmarks[0][1] + face.landmarks[1][1]) / 2
    return Region((left + right) / 2 - wide / 2, eyes - layout.eye_level * tall, wide, tall)


def _candidates(width: int, height: int, face: Face, layout: Layout) -> Iterator[Region]:
    """Crops within the picture, each as near to its wished place as the picture allows, or around the head's middle."""
    head = head_oval(face)
    for factor in _factors():
        wished = _wished(face, layout, factor)
        if wished.width > width or wished.height > height:
            continue
        middle = head.top + head.height / 2 - wished.height / 2
        for top in (wished.top, middle):
            yield _moved_inside(Region(wished.left, top, wished.width, wished.height), width, height)
    yield _largest(width, height, face, layout)


@cache
def _factors() -> tuple[float, ...]:
    steps = range(math.ceil(math.log(TIGHTEST, STEP)), math.floor(math.log(WIDEST, STEP)) + 1)
    return tuple(STEP**step for step in steps)


def _largest(width: int, height: int, face: Face, layout: Layout) -> Region:
    """The largest crop of the layout's aspect that the picture has room for."""
    tall = min(height, width / layout.aspect)
    wished = _wished(face, layout, tall / _wished(face, layout).height)
    return _moved_inside(wished, width, height)


def _moved_inside(region: Region, width: float, height: float) -> Region:
    left = min(max(region.left, 0.0), width - region.width)
    top = min(max(region.top, 0.0), height - region.height)
    return Region(max(left, 0.0), max(top, 0.0), min(region.width, width), min(region.height, height))


def _best(tries: tuple[Region, ...], holds: Holds, face: Face, layout: Layout) -> Region | None:
    """The crop nearest to the wished one among those that show what they must; None when none does."""
    return min((crop for crop in tries if holds(crop)), key=lambda crop: _unlike(crop, face, layout), default=None)


def _unlike(crop: Region, face: Face, layout: Layout) -> float:
    """How far a crop is from what the layout wants: a head off the middle disturbs most, one too low or high less."""
    wished = _wished(face, layout)
    factor = crop.height / wished.height
    same_size = _wished(face, layout, factor)
    aside = abs(crop.left - same_size.left) / crop.width
    lifted = abs(crop.top - same_size.top) / crop.height
    return abs(math.log(factor)) + 3.0 * aside + 1.5 * lifted


def _extended(width: int, height: int, face: Face, layout: Layout) -> Framing | None:
    """The crop with the whole head that lacks the fewest pixels; None when more than MOST_ADDED were missing."""
    holds = _holds(head_oval(face), face, layout, width, height, CIRCLE_MARGIN)
    found: list[tuple[float, float, Region]] = []
    for factor in _factors():
        crop = _wished(face, layout, factor)
        if not holds(crop):
            crop = Region(crop.left, _head_middle(face) - crop.height / 2, crop.width, crop.height)
        if holds(crop):
            crop = _towards_picture(crop, holds, width, height)
            found.append((_missing(crop, width, height), _unlike(crop, face, layout), crop))
    if not found:
        return None
    missing, _, crop = min(found, key=lambda item: (round(item[0], 2), item[1]))
    if missing > MOST_ADDED:
        return None
    return Framing(crop, missing, EXTENDED.format(percent=max(1, round(100 * missing))))


def _head_middle(face: Face) -> float:
    head = head_oval(face)
    return head.top + head.height / 2


def _towards_picture(crop: Region, holds: Holds, width: int, height: int) -> Region:
    """``crop`` moved as far into the picture as the head allows; a crop that is larger lies around its middle."""
    left = _nearest(crop.left, crop.width, width)
    top = _nearest(crop.top, crop.height, height)
    low, high = 0.0, 1.0
    for _ in range(24):
        share = (low + high) / 2
        moved = Region(crop.left + share * (left - crop.left), crop.top + share * (top - crop.top),
                       crop.width, crop.height)  # fmt: skip
        low, high = (share, high) if holds(moved) else (low, share)
    return Region(crop.left + low * (left - crop.left), crop.top + low * (top - crop.top), crop.width, crop.height)


def _nearest(corner: float, side: float, available: float) -> float:
    if side >= available:
        return (available - side) / 2
    return min(max(corner, 0.0), available - side)


def _missing(crop: Region, width: int, height: int) -> float:
    """Share of the crop's side that lies outside the picture, on the worst side."""
    aside = max(0.0, -crop.left, crop.right - width) / crop.width
    return max(aside, max(0.0, -crop.top, crop.bottom - height) / crop.height)
