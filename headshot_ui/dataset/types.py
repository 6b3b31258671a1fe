"""What the dataset stage hands on to training, likeness and the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


@dataclass(frozen=True)
class Face:
    """One face found in a picture, in pixels of that picture."""

    box: tuple[float, float, float, float]  # left, top, right, bottom
    landmarks: tuple[tuple[float, float], ...]  # five, image left first: two eyes, nose, two mouth corners
    score: float  # 0 to 1


class FaceDetector(Protocol):
    """Finds faces in RGB pictures of any size."""

    def detect(self, image: Image.Image) -> list[Face]:
        """All faces, largest first."""


class Recogniser(Protocol):
    """Turns a face into an identity vector."""

    id: str
    note: str

    def embed(self, image: Image.Image, face: Face) -> np.ndarray:
        """Unit-norm float32 vector; cosine similarity compares two faces."""


class Captioner(Protocol):
    """Describes photographs in words."""

    id: str

    def describe(self, image: Image.Image) -> str:
        """Some English sentences about an RGB picture of any size, also about things that no caption may name."""


@dataclass(frozen=True)
class PreparedPhoto:
    """One photo after the checks: either a crop with caption, or a rejection with its reason."""

    source: str  # file name as the person gave it
    verdict: str  # "train", "held_out" or "rejected"
    reason: str  # why rejected and what to do; "" otherwise
    warnings: tuple[str, ...] = ()  # e.g. "a little blurred"
    crop: str = ""  # PNG relative to the dataset folder
    caption: str = ""
    face: Face | None = None  # in pixels of the crop
    original_size: tuple[int, int] = (0, 0)  # (height, width) of the upright photo's cropped region before resizing
    crop_top_left: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Dataset:
    """A person's prepared photos. ``folder/dataset.json`` holds it."""

    person: str
    folder: Path
    size_px: int
    trigger: str
    class_word: str
    photos: tuple[PreparedPhoto, ...]
