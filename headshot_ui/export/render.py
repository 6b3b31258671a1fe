"""A chosen crop as pixels, and small views of it for the page."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headshot_ui.export.framing import Framing, Region, choose

if TYPE_CHECKING:
    from PIL import Image

    from headshot_ui.dataset.types import Face
    from headshot_ui.export.layouts import Layout

SOFT_ABOVE = 2.0  # enlarged more than this a picture looks soft, and that is said
ENLARGED = "It was enlarged {times} times and looks soft: enlarge the picture in Restore first."
PREVIEW_PX = 320
_OUTSIDE = (24, 26, 32)
_RING = (255, 255, 255)
_SUPERSAMPLE = 4  # Pillow draws no smooth circles


@dataclass(frozen=True)
class Cut:
    """One finished picture."""

    image: Image.Image  # RGB in exactly the layout's size
    framing: Framing
    enlarged: float  # its pixels per pixel of the picture it came from
    note: str  # everything a person should know about it; "" when all is as wished


def cut(image: Image.Image, face: Face | None, layout: Layout) -> Cut:
    """Cut an upright RGB picture for a layout, around ``face`` (in its pixels) or, without one, its middle."""
    framing = choose(image.width, image.height, face, layout)
    if layout.whole:
        return Cut(image.copy(), framing, 1.0, "")
    enlarged = layout.height / framing.region.height
    notes = [framing.note]
    if enlarged > SOFT_ABOVE:
        notes.append(ENLARGED.format(times=f"{enlarged:.1f}"))
    return Cut(_resized(image, framing, layout.width, layout.height), framing, enlarged, " ".join(filter(None, notes)))


def preview(image: Image.Image, face: Face | None, layout: Layout, longest_px: int = PREVIEW_PX) -> Image.Image:
    """How the export will look, small: RGB with ``longest_px`` pixels on its longer side.

    Where a layout is shown as a circle, the circle is drawn and what lies outside it is darkened.
    """
    framing = choose(image.width, image.height, face, layout)
    scale = longest_px / max(framing.region.width, framing.region.height)
    width, height = (max(1, round(side * scale)) for side in (framing.region.width, framing.region.height))
    small = _resized(image, framing, width, height)
    return _with_circle(small) if layout.circle else small


def _resized(image: Image.Image, framing: Framing, width: int, height: int) -> Image.Image:
    from PIL import Image

    region = framing.region
    if framing.added:
        image, region = _extended(image, region)
    left, top, right, bottom = region.box
    box = (max(left, 0.0), max(top, 0.0), min(right, float(image.width)), min(bottom, float(image.height)))
    return image.resize((width, height), Image.Resampling.LANCZOS, box=box)


def _extended(image: Image.Image, region: Region) -> tuple[Image.Image, Region]:
    """The picture continued at its edges as far as ``region`` reaches, softly, and the region in it."""
    import numpy as np
    from PIL import Image, ImageFilter

    before_x, before_y = (math.ceil(max(0.0, -corner)) for corner in (region.left, region.top))
    after_x = math.ceil(max(0.0, region.right - image.width))
    after_y = math.ceil(max(0.0, region.bottom - image.height))
    sides = ((before_y, after_y), (before_x, after_x), (0, 0))
    whole = Image.fromarray(np.pad(np.asarray(image), sides, mode="edge"))
    # Repeated edge pixels make streaks; blurred they look like the backdrop going on.
    soft = whole.filter(ImageFilter.GaussianBlur(max(1.0, 0.5 * max(before_x, before_y, after_x, after_y))))
    soft.paste(image, (before_x, before_y))
    return soft, Region(region.left + before_x, region.top + before_y, region.width, region.height)


def _with_circle(image: Image.Image) -> Image.Image:
    from PIL import Image, ImageDraw

    large = (image.width * _SUPERSAMPLE, image.height * _SUPERSAMPLE)
    box = (0, 0, large[0] - 1, large[1] - 1)
    inside, ring = Image.new("L", large, 0), Image.new("L", large, 0)
    ImageDraw.Draw(inside).ellipse(box, fill=255)
    ImageDraw.Draw(ring).ellipse(box, outline=255, width=2 * _SUPERSAMPLE)
    dark = Image.blend(image, Image.new("RGB", image.size, _OUTSIDE), 0.65)
    shown = Image.composite(image, dark, inside.resize(image.size, Image.Resampling.LANCZOS))
    shown.paste(_RING, mask=ring.resize(image.size, Image.Resampling.LANCZOS))
    return shown
