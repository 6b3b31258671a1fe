"""The shapes a crop may have: SDXL's published training sizes near a portrait, scaled to the model's own size."""

from __future__ import annotations

import math
from dataclasses import dataclass

PUBLISHED_SIZE = 1024
PUBLISHED = ((1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216))  # (height, width), SDXL report, app. I
MULTIPLE = 32  # every denoiser here halves the latents (an eighth of the picture) at most twice


@dataclass(frozen=True)
class Bucket:
    """Size of a crop in pixels."""

    height: int
    width: int

    @property
    def aspect(self) -> float:
        """Height per width: above 1 for a tall crop."""
        return self.height / self.width


def buckets(size: int) -> tuple[Bucket, ...]:
    """The shapes for a model of ``size`` pixels: its square first, then the others, without doubles."""
    scaled = (Bucket(_rounded(height * size), _rounded(width * size)) for height, width in PUBLISHED[1:])
    others = (bucket for bucket in scaled if bucket.height != bucket.width)
    return tuple(dict.fromkeys((Bucket(size, size), *others)))


def shrunk(bucket: Bucket, size: int, smaller: int) -> Bucket:
    """The shape for a model of ``smaller`` pixels that a crop for one of ``size`` pixels becomes."""
    for height, width in PUBLISHED:
        if bucket == Bucket(_rounded(height * size), _rounded(width * size)):
            return Bucket(_rounded(height * smaller), _rounded(width * smaller))
    factor = PUBLISHED_SIZE * smaller / size
    return Bucket(_rounded(bucket.height * factor), _rounded(bucket.width * factor))


def _rounded(scaled: float) -> int:
    """To the nearest multiple, halves upwards (Python's own rounding would make 304 × 208 a far narrower shape)."""
    return max(1, math.floor(scaled / PUBLISHED_SIZE / MULTIPLE + 0.5)) * MULTIPLE


def nearest_first(aspect: float, size: int) -> tuple[Bucket, ...]:
    """Shapes to try for a photo of ``aspect`` (height per width), the nearest first and the square last.

    For a photo within about an eighth of a square that is the square alone. A tall photo never gives a wide crop,
    nor the other way round.
    """
    square, *others = buckets(size)
    alike = [bucket for bucket in others if (bucket.aspect > 1) == (aspect > 1)]
    ordered = sorted((square, *alike), key=lambda bucket: abs(math.log(aspect / bucket.aspect)))
    return tuple(ordered[: ordered.index(square) + 1])
