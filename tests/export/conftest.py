"""Pictures whose every pixel says where it was, faces anywhere, and a detector that finds them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from headshot_ui.dataset.types import Face
from headshot_ui.settings import Settings
from headshot_ui.store import Store, save_png


def face_at(x: float, y: float, height: float, width_over_height: float = 0.78) -> Face:
    """A frontal face whose box has its middle at (x, y); eyes and mouth where detectors put them."""
    wide = height * width_over_height
    left, top = x - wide / 2, y - height / 2
    eyes, mouth = top + 0.41 * height, top + 0.78 * height
    points = ((x - 0.2 * wide, eyes), (x + 0.2 * wide, eyes), (x, top + 0.6 * height), (x - 0.15 * wide, mouth),
              (x + 0.15 * wide, mouth))  # fmt: skip
    return Face((left, top, left + wide, top + height), points, 0.99)


def map_picture(width: int, height: int) -> Image.Image:
    """Red is the share of the way to the right, green of the way down; blue is 77 everywhere."""
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    pixels[..., 0] = (np.arange(width) + 0.5)[None] / width * 255
    pixels[..., 1] = (np.arange(height) + 0.5)[:, None] / height * 255
    pixels[..., 2] = 77
    return Image.fromarray(pixels)


@dataclass
class FakeDetector:
    """Finds the same faces in every picture, and counts how often it was asked."""

    faces: list[Face]
    asked: list[tuple[int, int]] = field(default_factory=list)

    def detect(self, image: Image.Image) -> list[Face]:
        self.asked.append(image.size)
        return self.faces


@dataclass
class Told:
    """A reporter that keeps everything, and cancels after ``most`` files."""

    most: int | None = None
    steps: list[tuple[int, int, Path | None]] = field(default_factory=list)

    def __call__(self, stage, step, total, preview=None, metrics=None) -> None:
        from headshot_ui.errors import Cancelled

        self.steps.append((step, total, preview))
        if self.most is not None and step >= self.most:
            raise Cancelled


def xmp_of(image: Image.Image) -> ElementTree.Element | None:
    """The parsed XMP packet of an opened picture; None without one."""
    packet = image.info.get("xmp")
    return ElementTree.fromstring(packet) if packet else None


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Settings.from_environment(root=tmp_path, outputs_dir=tmp_path / "outputs", device="cpu"))


SECRET = {
    "ai_generated": "yes",
    "request": {"prompt": "portrait of anna secretprompt", "person": "anna", "lora": "secretlora"},
    "picture": {"prompt": "secretprompt"},
}


@pytest.fixture
def headshot(store: Store):
    """Save a picture of anna as the program would, with its request inside."""

    def save(name: str = "001-navy-suit-7.png", size: tuple[int, int] = (1024, 1024)) -> Path:
        path = store.headshots_dir("anna") / "2026-01-02_10-11-12" / name
        save_png(path, map_picture(*size), SECRET)
        return path

    return save
