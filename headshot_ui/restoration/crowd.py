"""Every face of a group photo: the detector looks at the whole picture, then at parts of it if it may have missed some.

The detector looks at a picture shrunk to 640 pixels, where the hundred faces of a group are too small: of a drawn
group of 100 it finds 34 that way and 100 in parts. A portrait is not looked at twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from headshot_ui.dataset.detector import overlaps
from headshot_ui.dataset.types import Face

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from headshot_ui.dataset.types import FaceDetector

PART = 640  # pixels: the largest picture the detector sees unshrunk
SHARED = 160  # pixels that neighbouring parts share, so that a face of that size lies whole in one of them
LONGEST = (1280, 2560)  # of the picture that is cut into parts, at most twice its own; more would cost minutes
LEAST = 256  # a smaller picture has no room for a group
GROUP = 3  # faces from which on there may be more
SAME = 0.4  # share of the smaller box


def find_faces(detector: FaceDetector, image: Image.Image, tick: Callable[[], None] = lambda: None) -> list[Face]:
    """All faces of an RGB picture, largest first. ``tick`` is called before each look but the first; it may raise."""
    found = list(detector.detect(image))
    if max(image.size) < LEAST or 0 < len(found) < GROUP:
        return found
    # Where there is no face at first sight there are hardly a hundred: one more look is enough.
    for longest in sorted({min(longest, 2 * max(image.size)) for longest in (LONGEST if found else LONGEST[:1])}):
        scaled = _scaled(image, longest)
        for part in parts_of(*scaled.size):
            tick()
            seen = (face for face in detector.detect(scaled.crop(part)) if not _cut(face, part, scaled.size))
            whole = (_in_whole(face, part[:2], max(image.size) / longest) for face in seen)
            found += [face for face in whole if not _known(face, found)]
    return sorted(found, key=lambda face: -_area(face))


def parts_of(width: int, height: int) -> Iterator[tuple[int, int, int, int]]:
    """(left, top, right, bottom) of overlapping parts that cover a picture, row by row."""
    step = PART - SHARED
    for top in range(0, max(height - SHARED, 1), step):
        for left in range(0, max(width - SHARED, 1), step):
            yield left, top, min(left + PART, width), min(top + PART, height)


def _scaled(image: Image.Image, longest: int) -> Image.Image:
    from PIL import Image

    factor = longest / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0)


def _in_whole(face: Face, corner: tuple[int, int], scale: float) -> Face:
    left, top, right, bottom = face.box
    x, y = corner
    box = ((left + x) * scale, (top + y) * scale, (right + x) * scale, (bottom + y) * scale)
    return Face(box, tuple(((a + x) * scale, (b + y) * scale) for a, b in face.landmarks), face.score)


def _cut(face: Face, part: tuple[int, int, int, int], size: tuple[int, int]) -> bool:
    """Whether an edge of this part, within the picture, goes through the face."""
    left, top, right, bottom = face.box
    width, height = part[2] - part[0], part[3] - part[1]
    return (
        (left < 1 and part[0] > 0) or (top < 1 and part[1] > 0)
        or (right > width - 1 and part[2] < size[0]) or (bottom > height - 1 and part[3] < size[1])
    )  # fmt: skip


def _known(face: Face, found: list[Face]) -> bool:
    import numpy as np

    if not found:
        return False
    boxes: np.ndarray = np.array([other.box for other in found])
    return bool(overlaps(np.array(face.box), boxes, within=True).max() > SAME)


def _area(face: Face) -> float:
    left, top, right, bottom = face.box
    return max(right - left, 0.0) * max(bottom - top, 0.0)
