"""Faces whose places are known, restorers without weights, and a request that runs on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from headshot_ui.dataset.types import Face
from headshot_ui.errors import Cancelled
from headshot_ui.likeness import Likeness
from headshot_ui.restoration.protocol import RestorerInfo
from headshot_ui.restoration.runner import RestoreTools
from headshot_ui.restoration.upscale import Lanczos
from headshot_ui.settings import Settings
from headshot_ui.store import Store

#: Landmarks as shares of the box, turned a little so that nothing is axis-parallel.
MARKS = ((0.31, 0.38), (0.71, 0.41), (0.5, 0.61), (0.33, 0.77), (0.65, 0.79))


def face_at(left: float, top: float, width: float, height: float | None = None) -> Face:
    height = width * 1.2 if height is None else height
    marks = tuple((left + x * width, top + y * height) for x, y in MARKS)
    return Face((left, top, left + width, top + height), marks, 0.99)


def noise(width: int, height: int, seed: int = 0, cells: int = 12) -> np.ndarray:
    """Smooth random RGB uint8 (height, width, 3)."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).copy()


@dataclass
class FakeDetector:
    """The same faces in every picture, or those that belong to its size."""

    faces: list[Face] = field(default_factory=list)
    by_size: Mapping[tuple[int, int], list[Face]] = field(default_factory=dict)
    seen: list[Image.Image] = field(default_factory=list)

    def detect(self, image: Image.Image) -> list[Face]:
        self.seen.append(image)
        return list(self.by_size.get(image.size, self.faces))


@dataclass
class FakeRestorer:
    """Adds ``shift`` · (1 - weight) to every pixel, in the network's range; 0 gives every face back as it was."""

    shift: float = 0.5
    side: int = 64
    fail_at: int = 0
    kept: list[frozenset[str]] = field(default_factory=list)
    calls: list[tuple[torch.Tensor, float]] = field(default_factory=list)

    @property
    def info(self) -> RestorerInfo:
        return RestorerInfo("fake", "Fake", "Apache-2.0", "", self.side, True)

    def restore(self, faces: torch.Tensor, fidelity_weight: float) -> torch.Tensor:
        self.calls.append((faces, fidelity_weight))
        if len(self.calls) == self.fail_at:
            raise RuntimeError("out of memory")
        return (faces + self.shift * (1 - fidelity_weight)).clamp(-1, 1)

    def keep(self, parts: frozenset[str]) -> None:
        self.kept.append(parts)

    def release(self) -> None:
        raise AssertionError("the runner owns no model")


class FakeParser:
    """Only the middle of the square is face."""

    def __init__(self) -> None:
        self.kept: list[frozenset[str]] = []

    def mask(self, face: np.ndarray) -> np.ndarray:
        mask = np.zeros(face.shape[:2], np.float32)
        mask[face.shape[0] // 4 : -face.shape[0] // 4, face.shape[0] // 4 : -face.shape[0] // 4] = 1
        return mask

    def keep(self, parts: frozenset[str]) -> None:
        self.kept.append(parts)


@dataclass
class Bench:
    """Tools that write down what was opened and closed."""

    detector: Any = field(default_factory=FakeDetector)
    restorer: Any = field(default_factory=FakeRestorer)
    parser: FakeParser = field(default_factory=FakeParser)
    upscaler: Callable[[int], Any] = Lanczos
    events: list[str] = field(default_factory=list)

    @property
    def tools(self) -> RestoreTools:
        return RestoreTools(
            self.detector,
            lambda: self._opened("restorer", self.restorer),
            lambda times: self._opened(f"upscaler x{times}", self.upscaler(times)),
            lambda: self._opened("parser", self.parser),
        )

    @contextmanager
    def _opened(self, name: str, thing: Any) -> Iterator[Any]:
        self.events.append(f"open {name}")
        try:
            yield thing
        finally:
            self.events.append(f"close {name}")


@dataclass
class Reports:
    """Collects what was reported and cancels at the ``cancel_at``-th report of a stage."""

    cancel_stage: str = ""
    cancel_at: int = 0
    seen: list[tuple[str, int, int]] = field(default_factory=list)
    previews: list[tuple[int, int]] = field(default_factory=list)

    def __call__(
        self, stage: str, step: int, total: int, preview: Path | None = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        self.seen.append((stage, step, total))
        if preview is not None:
            with Image.open(preview) as image:
                self.previews.append(image.size)
        if stage == self.cancel_stage and sum(s == stage for s, _, _ in self.seen) >= self.cancel_at:
            raise Cancelled

    @property
    def stages(self) -> list[str]:
        return list(dict.fromkeys(stage for stage, _, _ in self.seen))


@dataclass
class BrightJudge:
    """The darker, the more alike."""

    sizes: list[tuple[int, int]] = field(default_factory=list)

    def score(self, image: Image.Image) -> Likeness:
        self.sizes.append(image.size)
        percent = 100 - float(np.asarray(image).mean()) / 2.55
        return Likeness(percent / 100, percent, True)


def make_settings(root: Path) -> Settings:
    return Settings.from_environment(root=root, device="cpu", environment={})


def make_store(root: Path) -> Store:
    return Store(make_settings(root))


def save(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path
