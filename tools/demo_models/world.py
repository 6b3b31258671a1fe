"""The drawn world: which numbers make a person, which make a scene, and what they mean.

Every number lies in [0, 1]. A person is IDENTITY_DIMS of them, a scene SCENE_DIMS; the two are drawn
independently, so that nothing about a person can be told from the clothes, the light or the place.
"""

from __future__ import annotations

import torch
from torch import Tensor

IDENTITY = (
    "skin", "undertone", "face_width", "face_length", "jaw", "chin", "cheeks", "eye_size", "eye_spacing", "eye_tilt",
    "eye_open", "iris", "iris_shade", "brow_thickness", "brow_arch", "brow_height", "nose_length", "nose_width",
    "mouth_width", "lip_fullness", "lip_colour", "hair_colour", "hair_shade", "hair_length", "hairline", "parting",
    "hair_volume", "hair_waves", "beard", "beard_shape", "glasses", "glasses_style", "ears", "freckles", "blush",
    "eye_height",
)  # fmt: skip
SCENE = (
    "garment", "attire_colour", "backdrop", "light", "framing", "expression", "yaw", "pitch", "roll", "shift_x",
    "shift_y", "zoom", "place_a", "place_b", "place_c", "gaze", "lids", "light_strength", "tie", "exposure", "fold",
    "shoulders", "mouth_open", "brow_raise", "trousers",
)  # fmt: skip
IDENTITY_DIMS = len(IDENTITY)
SCENE_DIMS = len(SCENE)

GARMENTS = ("suit", "blazer", "shirt", "sweater", "turtleneck", "hoodie")
COLOURS = ("navy", "charcoal", "black", "grey", "white", "blue", "burgundy", "red", "green", "beige", "brown", "teal",
           "purple", "mustard")  # fmt: skip
BACKDROPS = ("a grey studio backdrop", "a white studio backdrop", "a dark studio backdrop", "a blue studio backdrop",
             "a green studio backdrop", "a warm studio backdrop", "a bright office", "a city window", "a bookshelf",
             "a green park", "a brick wall")  # fmt: skip
LIGHTS = ("soft light", "light from the left", "light from the right", "warm light")
FRAMINGS = ("close-up", "head and shoulders", "upper body")
EXPRESSIONS = ("a neutral expression", "a gentle smile", "a broad smile")
POSES = ("turned to the left", "facing the camera", "turned to the right")
HAIR_COLOURS = ("black", "brown", "blond", "red", "grey")
HAIR_LENGTHS = ("bald", "short", "medium", "long")
BEARDS = ("none", "stubble", "moustache", "beard")
GLASSES = ("none", "round", "square")

#: Where each class of a sliced number ends; equal slices where not listed.
_CUTS = {
    "hair_length": (0.07, 0.50, 0.75, 1.0),
    "hair_colour": (0.25, 0.52, 0.72, 0.87, 1.0),
    "beard": (0.62, 0.74, 0.82, 1.0),
    "glasses": (0.66, 0.83, 1.0),
    "yaw": (0.30, 0.70, 1.0),
}
_COUNTS = {
    "garment": len(GARMENTS), "attire_colour": len(COLOURS), "backdrop": len(BACKDROPS), "light": len(LIGHTS),
    "framing": len(FRAMINGS), "expression": len(EXPRESSIONS), "iris": 5, "parting": 4,
}  # fmt: skip


def sample_people(n: int, seed: int) -> Tensor:
    """(n, IDENTITY_DIMS) float32 in [0, 1]. The same seed gives the same people on every machine."""
    return torch.rand(n, IDENTITY_DIMS, generator=torch.Generator().manual_seed(seed))


def sample_scenes(n: int, seed: int) -> Tensor:
    """(n, SCENE_DIMS) float32 in [0, 1]."""
    return torch.rand(n, SCENE_DIMS, generator=torch.Generator().manual_seed(seed + 7_919))


def column(rows: Tensor, name: str) -> Tensor:
    """One named number of every row, shaped (B, 1, 1, 1) to spread over pixels."""
    index = IDENTITY.index(name) if rows.shape[-1] == IDENTITY_DIMS else SCENE.index(name)
    return rows[:, index].reshape(-1, 1, 1, 1)


def cuts(name: str) -> tuple[float, ...]:
    """Upper bounds of the classes of a sliced number."""
    if name in _CUTS:
        return _CUTS[name]
    return tuple((i + 1) / _COUNTS[name] for i in range(_COUNTS[name]))


def kind(rows: Tensor, name: str) -> Tensor:
    """Class index of a sliced number, int64, shaped (B,)."""
    values = column(rows, name).flatten().contiguous()
    bounds = torch.tensor(cuts(name)[:-1], device=rows.device, dtype=rows.dtype)
    return torch.bucketize(values, bounds, right=True)


def number_for(name: str, index: int) -> float:
    """A number in the middle of class ``index``: the inverse of ``kind``, for asking for a certain scene."""
    bounds = (0.0, *cuts(name))
    return (bounds[index] + bounds[index + 1]) / 2
