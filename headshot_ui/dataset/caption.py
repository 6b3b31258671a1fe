"""One caption for each photo: a fixed phrase, and of the rest only what can be measured for certain.

What a caption names, the model does not blame on the person. So light, framing and a plain backdrop are named
where they are clear, and the face, hair or age never: they are what the trigger word has to take up.
Words are those of the presets, so that a small vocabulary knows them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headshot_ui.dataset.crop import face_size

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from headshot_ui.dataset.types import Face

CLOSE_UP = 0.53  # face height as a share of the picture
UPPER_BODY = 0.405
SIDE_LIGHT = 0.14  # log ratio of the two cheeks' brightness
FACING = 0.06  # offset of the nose from the middle of the face box, as a share of its width
TURNED = 0.125


def caption_for(trigger: str, class_word: str, image: Image.Image, face: Face, note: str = "") -> str:
    """Caption of a crop (RGB) with its face.

    ``note`` is text the person put beside the photo: it takes the place of what is measured, and is taken whole
    when it has the trigger word already.
    """
    if note:
        if trigger.casefold() in note.casefold().replace(",", " ").split():
            return note
        return f"portrait of {trigger} {class_word}, {note}"
    measured = (backdrop(image), light(image, face), framing(image, face), pose(face))
    return ", ".join([f"portrait of {trigger} {class_word}", *filter(None, measured)])


def framing(image: Image.Image, face: Face) -> str:
    """How much of the person is in the picture."""
    share = face_size(face) / image.height
    return "close-up" if share >= CLOSE_UP else "upper body" if share <= UPPER_BODY else "head and shoulders"


def turn(face: Face) -> float:
    """How far the nose is from the middle of the face box, as a share of its width; negative: to the image's left."""
    left, _, right, _ = face.box
    return (face.landmarks[2][0] - (left + right) / 2) / max(right - left, 1e-6)


def pose(face: Face) -> str:
    """Where the face looks, as seen in the picture; "" in between."""
    offset = turn(face)
    if abs(offset) <= FACING:
        return "facing the camera"
    return "" if abs(offset) < TURNED else f"turned to the {'left' if offset < 0 else 'right'}"


def light(image: Image.Image, face: Face) -> str:
    """The side the light comes from, as seen in the picture; "" unless one cheek of a frontal face is brighter."""
    import numpy as np

    if abs(turn(face)) > FACING:
        return ""
    grey = np.asarray(image.convert("L"), dtype=np.float32)
    left_eye, right_eye, nose, left_mouth, right_mouth = face.landmarks
    eyes, mouth = (left_eye[1] + right_eye[1]) / 2, (left_mouth[1] + right_mouth[1]) / 2
    width = face.box[2] - face.box[0]
    rows = slice(max(0, round(eyes + 0.25 * (mouth - eyes))), max(0, round(mouth)))

    def cheek(inner: float, outer: float) -> float:
        a, b = sorted((nose[0] + inner * width, nose[0] + outer * width))
        pixels = grey[rows, max(0, round(a)) : max(0, round(b))]
        return float(pixels.mean()) if pixels.size else 0.0

    ratio = float(np.log((cheek(0.1, 0.32) + 4) / (cheek(-0.1, -0.32) + 4)))
    return "" if abs(ratio) < SIDE_LIGHT else f"light from the {'left' if ratio < 0 else 'right'}"


def backdrop(image: Image.Image) -> str:
    """The colour of a plain backdrop; "" when it has a pattern, objects or a colour without a word."""
    import numpy as np
    from PIL import Image

    small = np.asarray(image.resize((64, 64), Image.Resampling.BOX), dtype=np.float32)
    sides = np.stack([small[:26, :6], small[:26, -6:]])  # (2, 26, 6, 3): both upper edges, where no head is
    if not _is_plain(sides):
        return ""
    colour = sides.reshape(-1, 3).mean(axis=0)
    name = _colour_name(colour)
    return f"in front of a {name} studio backdrop" if name else ""


def _is_plain(sides: np.ndarray) -> bool:
    """Neither steps within the edges nor different left and right; a soft gradient is allowed."""
    import numpy as np

    steps = max(float(np.abs(np.diff(sides, axis=axis)).mean(axis=-1).max()) for axis in (1, 2))
    difference = float(np.abs(sides[0].mean(axis=(0, 1)) - sides[1].mean(axis=(0, 1))).max())
    return steps <= 9 and difference <= 30 and float(sides.std(axis=(1, 2)).max()) <= 24


def _colour_name(colour: np.ndarray) -> str:
    """One of the six studio colours for a mean RGB (0 to 255); "" between them."""
    red, green, blue = (float(value) for value in colour)
    high, low = max(red, green, blue), min(red, green, blue)
    grey = high - low < 24
    if high < 80:
        return "dark"
    if grey:
        return "white" if low > 205 else "grey" if high < 195 else ""
    if blue == high and blue - red > 30:
        return "blue"
    if green == high and green - red > 15 and green - blue > 5:
        return "green"
    if red == high and blue == low and red - blue > 30 and low < 175:  # paler may be white in warm light
        return "warm"
    return ""
