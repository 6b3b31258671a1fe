"""Is one photo fit to learn a face from? Everything is measured on what the model would see.

Limits were set on sharp and blurred photographs and drawings: the blur measure is 0.44 to 0.65 for sharp faces
(old grainy photographs included), about 0.75 to 0.88 for a blur of 2 % of the face, above 0.88 for worse.
Brightness is judged by the brightest parts of a face, never by its mean, which depends on the colour of the skin.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headshot_ui.dataset.crop import Crop, crop_face, face_size

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from PIL import Image

    from headshot_ui.dataset.types import Face, FaceDetector

NO_FACE = "No face was found: use a photo that shows the whole face, larger and from the front."
RIVAL_SIZE = 0.5  # a second face of at least this share of the largest one's height makes the photo unclear
MOST_ENLARGED = 3.0
MUCH_ENLARGED = 1.5
BLUR_HEIGHT = 128  # pixels of face height at which blur is measured
MOST_BLUR = 0.83
MUCH_BLUR = 0.74
DARKEST = 40.0  # 95th percentile of the face's luminance, 0 to 255
RATHER_DARK = 60.0
MOST_BURNT = 0.5  # share of the face's pixels that are white
MUCH_BURNT = 0.25
MUCH_PADDED = 0.02
MUCH_CUT_OFF = 0.1


@dataclass(frozen=True)
class Findings:
    """What was found in one photo. With a ``reason`` it is not used; a ``crop`` may be there all the same."""

    reason: str = ""
    warnings: tuple[str, ...] = ()
    crop: Crop | None = None
    quality: float = 0.0  # 0 to 1, only to compare photos of one person


def examine(image: Image.Image, detector: FaceDetector, size: int) -> Findings:
    """Look at an upright RGB photo as training material for a model of ``size`` pixels. Raises nothing of its own."""
    return judge(image, detector.detect(image), size)


def judge(image: Image.Image, faces: Sequence[Face], size: int) -> Findings:
    """``examine`` once the faces are known, largest first; in any thread."""
    if not faces:
        return Findings(NO_FACE)
    largest = faces[0]
    rivals = [face for face in faces[1:] if face_size(face) >= RIVAL_SIZE * face_size(largest)]
    if rivals:
        return Findings(
            f"{len(rivals) + 1} faces of similar size were found: cut the photo to the one person, or use another."
        )
    crop = crop_face(image, largest, size)
    if crop.enlarged > MOST_ENLARGED:
        needed = round(face_size(largest) * crop.enlarged / MOST_ENLARGED)
        return Findings(
            f"The face is too small ({round(face_size(largest))} pixels high, at least {needed} are needed): "
            "use a photo taken from nearer, or the original instead of a copy from a messenger."
        )
    grey = face_luminance(crop.image, crop.face)
    blur, bright, burnt = blur_of(grey), _percentile(grey, 95), float((grey >= 250).mean())
    warnings = _warnings(image, faces, crop, blur, bright, burnt)
    quality = (1 - blur) * min(1.0, 1 / crop.enlarged) * 0.8 ** len(warnings)
    return Findings(_fault(blur, bright, burnt), warnings, crop, quality)


def _fault(blur: float, bright: float, burnt: float) -> str:
    """Why the face itself is of no use; "" when it is."""
    if bright < DARKEST:
        return "The face is too dark: use a photo taken in better light."
    if burnt > MOST_BURNT:
        return "The face is overexposed, mostly plain white: use a photo taken in softer light."
    if blur > MOST_BLUR:
        return "The face is blurred: use a sharp photo, held still and in focus."
    return ""


def _warnings(
    image: Image.Image, faces: Sequence[Face], crop: Crop, blur: float, bright: float, burnt: float
) -> tuple[str, ...]:
    """What is not perfect, in a few words each."""
    said = []
    if blur > MUCH_BLUR:
        said.append("a little blurred")
    if bright < RATHER_DARK:
        said.append("rather dark")
    if burnt > MUCH_BURNT:
        said.append("very bright")
    if crop.enlarged > MUCH_ENLARGED:
        said.append("the face is rather small")
    if crop.padded_share > MUCH_PADDED:
        said.append("the photo ends close to the face, so its edge was mirrored")
    if _cut_off(image, faces[0]) > MUCH_CUT_OFF:
        said.append("the face is cut off by the edge of the photo")
    if any(_is_inside(face, crop) for face in faces[1:]):
        said.append("another face is in the background")
    return tuple(said)


def _cut_off(image: Image.Image, face: Face) -> float:
    """Share of the face box that lies outside the photo."""
    left, top, right, bottom = face.box
    seen = max(0.0, min(right, image.width) - max(left, 0)) * max(0.0, min(bottom, image.height) - max(top, 0))
    return 1 - seen / max((right - left) * (bottom - top), 1e-6)


def _is_inside(face: Face, crop: Crop) -> bool:
    """Whether the middle of a face (in pixels of the photo) lies within the crop."""
    x, y = (face.box[0] + face.box[2]) / 2, (face.box[1] + face.box[3]) / 2
    region = crop.region
    return region.left <= x < region.right and region.top <= y < region.bottom


# --- measures ---------------------------------------------------------------------------------------
def face_luminance(image: Image.Image, face: Face, height: int = BLUR_HEIGHT) -> np.ndarray:
    """(rows, columns) float32, 0 to 255: the face box in grey, shrunk to at most ``height`` rows (never enlarged)."""
    import numpy as np
    from PIL import Image

    left, top = max(0.0, face.box[0]), max(0.0, face.box[1])
    right, bottom = min(float(image.width), face.box[2]), min(float(image.height), face.box[3])
    right, bottom = max(right, left + 1), max(bottom, top + 1)
    factor = min(1.0, height / (bottom - top))
    size = (max(16, round((right - left) * factor)), max(16, round((bottom - top) * factor)))
    grey = image.convert("L").resize(size, Image.Resampling.LANCZOS, (left, top, right, bottom))
    return np.asarray(grey, dtype=np.float32)


def blur_of(grey: np.ndarray) -> float:
    """0 (sharp) to 1 (blurred) of a grey picture, whatever its contrast.

    A sharp picture loses much of its variation when it is blurred once more, a blurred one hardly any. Crété et al.,
    “The blur effect: perception and estimation with a new no-reference perceptual blur metric”, SPIE 2007.
    """
    import numpy as np

    worst = 0.0
    for picture in (grey, grey.T):
        summed = np.cumsum(np.pad(picture, ((1, 0), (0, 0))), axis=0)
        again = (summed[5:] - summed[:-5]) / 5
        variation = np.abs(np.diff(picture[2:-2], axis=0))
        left_over = np.abs(np.diff(again, axis=0))
        total = float(variation.sum())
        if total <= 0:
            return 1.0
        worst = max(worst, 1 - float(np.maximum(variation - left_over, 0).sum()) / total)
    return worst


def _percentile(grey: np.ndarray, percent: float) -> float:
    import numpy as np

    return float(np.percentile(grey, percent))
