"""Cutting an upright square face out of a picture and putting the repaired one back.

The same steps, with the same numbers, as ``FaceRestoreHelper`` of facexlib 0.3 (a test compares the two), which
cannot be used itself: making one downloads two networks. Different on purpose:

- Only the part of the picture around a face is worked on, so a hundred faces in a large picture cost little.
- Pictures shrunk by more than half are averaged first, where the helper skips over pixels.
- In an enlarged picture faces lie where the enlargement puts them; the helper is half a pixel off.

All pictures here are RGB uint8 arrays (H, W, 3). Matrices are (2, 3) and map pixel middles to pixel middles.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from headshot_ui.dataset.types import Face

#: facexlib's landmarks of a face in a square of 512: two eyes, nose, two mouth corners (image left first).
TEMPLATE_SIDE = 512
TEMPLATE = (
    (192.98138, 239.94708),
    (318.90277, 240.1936),
    (256.63416, 314.01935),
    (201.26117, 371.41043),
    (313.08905, 371.15118),
)
OUTSIDE = (132, 133, 135)  # RGB of what lies beyond the picture's edge, as in facexlib
LEAST_FACE_PX = 16  # shorter side of the box; below it a network invents a face instead of repairing one


def unfit(face: Face, size: tuple[int, int]) -> str:
    """Why a face of a picture of (width, height) is left alone, in one sentence; "" when it can be repaired."""
    left, top, right, bottom = face.box
    shorter = min(right - left, bottom - top)
    if shorter < LEAST_FACE_PX:
        return f"It is too small to repair ({max(shorter, 0):.0f} pixels; {LEAST_FACE_PX} are needed)."
    seen = max(min(right, size[0]) - max(left, 0), 0) * max(min(bottom, size[1]) - max(top, 0), 0)
    if seen < 0.4 * (right - left) * (bottom - top):
        return "Most of it lies outside the picture."
    return "" if alignment(face.landmarks, TEMPLATE_SIDE) is not None else "Eyes, nose and mouth are not clear enough."


def alignment(landmarks: Sequence[tuple[float, float]], side: int) -> np.ndarray | None:
    """Matrix from picture pixels to those of the aligned square; None when the landmarks make no face."""
    import cv2
    import numpy as np

    template = np.array(TEMPLATE) * (side / TEMPLATE_SIDE)
    matrix, _ = cv2.estimateAffinePartial2D(np.array(landmarks, np.float64), template, method=cv2.LMEDS)
    if matrix is None or not np.isfinite(matrix).all() or not 1e-3 < _zoom(matrix) < 1e3:
        return None
    found: np.ndarray = matrix
    return found


def aligned(picture: np.ndarray, matrix: np.ndarray, side: int) -> np.ndarray:
    """The face as (side, side, 3), its landmarks on the template."""
    import cv2

    picture, matrix = _window(picture, matrix, side)
    times = int(1 / _zoom(matrix))
    if times >= 2:
        picture = _averaged(picture, times)
        matrix = matrix @ _enlarging(times)
    face: np.ndarray = cv2.warpAffine(
        picture, matrix, (side, side), borderMode=cv2.BORDER_CONSTANT, borderValue=OUTSIDE
    )
    return face


def paste(
    picture: np.ndarray, face: np.ndarray, matrix: np.ndarray, times: int = 1, mask: np.ndarray | None = None
) -> None:
    """Put a repaired face (S, S, 3) back into ``picture``, in place; pixels outside its mask are not touched.

    ``matrix`` belongs to the picture as it was, ``picture`` may be ``times`` as large. ``mask`` (S, S) float32 of
    0 to 1 is the outline of the face; without it the edges of the square fade out.
    """
    import cv2
    import numpy as np

    side = face.shape[0]
    back = _enlarging(times)[:2] @ np.vstack([cv2.invertAffineTransform(matrix), [0, 0, 1]])
    corners = (back @ np.array([[-1, -1, 1], [side, -1, 1], [-1, side, 1], [side, side, 1]]).T).T
    (left, top), (right, bottom) = np.floor(corners.min(0)).astype(int) - 2, np.ceil(corners.max(0)).astype(int) + 3
    left, top = max(int(left), 0), max(int(top), 0)
    right, bottom = min(int(right), picture.shape[1]), min(int(bottom), picture.shape[0])
    if right <= left or bottom <= top:
        return
    back = back - np.array([[0, 0, left], [0, 0, top]])
    size = (right - left, bottom - top)
    if mask is None:
        soft, inside = _soft_square(side, back, size, times)
        put = _put_back(face, back, size) * inside[:, :, None]
    else:
        soft, put = cv2.warpAffine(mask, back, size), _put_back(face, back, size)
    part = picture[top:bottom, left:right]
    soft = soft[:, :, None]
    blended = np.where(soft > 0, np.rint(soft * put + (1 - soft) * part), part)
    part[...] = np.clip(blended, 0, 255).astype(np.uint8)


def _soft_square(side: int, back: np.ndarray, size: tuple[int, int], times: int) -> tuple[np.ndarray, np.ndarray]:
    """(mask that fades towards the edges, the square without its outermost pixels), both float32 of 0 to 1.

    The fading edge is a twentieth of the face's own width in the picture.
    """
    import cv2
    import numpy as np

    square = cv2.warpAffine(np.ones((side, side), np.float32), back, size)
    inside = cv2.erode(square, np.ones((2 * times, 2 * times), np.uint8))
    edge = 2 * max(int(float(inside.sum()) ** 0.5) // 20, 1)
    centre = cv2.erode(inside, np.ones((edge, edge), np.uint8))
    # An even kernel lets the blur reach a pixel beyond the square on one side.
    return np.minimum(cv2.GaussianBlur(centre, (edge + 1, edge + 1), 0), inside), inside


def _put_back(face: np.ndarray, back: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The face turned and scaled as it lies in the picture, as uint8 (height, width, 3); black around it."""
    import cv2

    times = int(1 / _zoom(back))
    if times >= 2:
        face, back = _averaged(face, times), back @ _enlarging(times)
    warped: np.ndarray = cv2.warpAffine(face, back, size)
    return warped


def _window(picture: np.ndarray, matrix: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The part of the picture that the square can see, and the matrix for it."""
    import cv2
    import numpy as np

    back = cv2.invertAffineTransform(matrix)
    corners = (back @ np.array([[0, 0, 1], [side, 0, 1], [0, side, 1], [side, side, 1]]).T).T
    margin = 4 + int(np.ceil(2 / _zoom(matrix)))
    left, top = (max(int(v) - margin, 0) for v in corners.min(0))
    right, bottom = (int(v) + margin for v in corners.max(0))
    # an empty window would be an error of OpenCV's; one pixel of the picture at its edge is never seen
    left, top = min(left, picture.shape[1] - 1), min(top, picture.shape[0] - 1)
    part = picture[top : max(bottom, top + 1), left : max(right, left + 1)]
    return part, matrix @ np.array([[1, 0, left], [0, 1, top], [0, 0, 1.0]])


def _averaged(picture: np.ndarray, times: int) -> np.ndarray:
    """Shrunk by a whole number, each pixel the mean of ``times`` x ``times``; the last ones are repeated to fit."""
    import cv2

    height, width = picture.shape[:2]
    down, across = -height % times, -width % times
    whole = cv2.copyMakeBorder(picture, 0, down, 0, across, cv2.BORDER_REPLICATE)
    size = ((width + across) // times, (height + down) // times)
    small: np.ndarray = cv2.resize(whole, size, interpolation=cv2.INTER_AREA)
    return small


def _enlarging(times: int) -> np.ndarray:
    """(3, 3) from pixels of a picture to those of one ``times`` as large: x → times · x + (times - 1) / 2."""
    import numpy as np

    shift = (times - 1) / 2
    return np.array([[times, 0, shift], [0, times, shift], [0, 0, 1.0]])


def _zoom(matrix: np.ndarray) -> float:
    """How many times larger things are after a similarity."""
    area = float(abs(matrix[0, 0] * matrix[1, 1] - matrix[0, 1] * matrix[1, 0]))
    return math.sqrt(area)
