"""What only shows when the photos lie side by side: doubles, another person, and which ones to keep back.

All vectors are float32 with norm 1; N photos, D numbers each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

FINGERPRINT_SIDE = 32
SAME_PICTURE = 0.995  # correlation of two fingerprints from which on they are the same photo
LEAST_FOR_STRANGERS = 4  # photos needed before one can be called the odd one out
STRANGER = 0.45  # similarity to all the others, as a share of the median photo's
DOUBTFUL = 0.7


def fingerprint(image: Image.Image) -> np.ndarray:
    """(3072,) coarse look of a picture, the same for copies of another size, quality, brightness or contrast."""
    import numpy as np
    from PIL import Image

    small = image.resize((FINGERPRINT_SIDE, FINGERPRINT_SIDE), Image.Resampling.BOX, reducing_gap=4.0)
    values = np.asarray(small.convert("RGB"), dtype=np.float32)
    values = values - values.mean(axis=(0, 1))
    unit: np.ndarray = (values / max(float(np.linalg.norm(values)), 1e-6)).ravel()
    return unit


def same_picture(fingerprint_a: np.ndarray, fingerprint_b: np.ndarray) -> bool:
    """Whether two fingerprints belong to copies of one photo (or shots within a blink)."""
    return float(fingerprint_a @ fingerprint_b) >= SAME_PICTURE


def odd_ones_out(embeddings: np.ndarray) -> list[str]:
    """For (N, D) identity vectors: "stranger", "doubtful" or "" each, by likeness to all the other photos.

    Relative to the median photo, because networks differ in how alike two photos of one person come out.
    """
    import numpy as np

    if len(embeddings) < LEAST_FOR_STRANGERS:
        return [""] * len(embeddings)
    alike = embeddings @ embeddings.T
    np.fill_diagonal(alike, np.nan)
    # The median over the others, so that two strangers among ten do not vouch for each other.
    each = np.nanmedian(alike, axis=1)
    usual = float(np.median(each))
    if usual <= 0:
        return ["doubtful"] * len(embeddings)
    return ["stranger" if one < STRANGER * usual else "doubtful" if one < DOUBTFUL * usual else "" for one in each]


def default_held_out(usable: int) -> int:
    """How many photos to keep back for measuring likeness."""
    return 2 if usable >= 10 else 1 if usable >= 5 else 0


def choose_held_out(vectors: Sequence[np.ndarray], quality: Sequence[float], count: int) -> list[int]:
    """Indices of ``count`` photos to keep back from training, always the same for the same photos.

    Good ones, for likeness is measured on them; not the most unusual third, for the training needs what only they
    show; and after the first, unlike those already chosen.
    """
    import numpy as np

    if count <= 0:
        return []
    alike = np.stack(vectors) @ np.stack(vectors).T
    typical = alike.mean(axis=1)
    by_typical = sorted(range(len(vectors)), key=lambda i: (-typical[i], i))
    candidates = by_typical[: max(count, len(vectors) - len(vectors) // 3)]
    chosen: list[int] = []
    while len(chosen) < count:
        rest = [i for i in candidates if i not in chosen]
        best = max(rest, key=lambda i: (quality[i] * (2 - max((alike[i, j] for j in chosen), default=1.0)), -i))
        chosen.append(best)
    return sorted(chosen)
