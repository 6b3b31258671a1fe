"""From repaired pixels to a finished picture: saved with what it is, compared with the person, shown while it waits."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.dataset.originals import safe_stem
from headshot_ui.restoration.pictures import Item, Opened, on_white
from headshot_ui.restoration.records import BEFORE, Record, RestoredFace, RestoredPicture, picture_metadata
from headshot_ui.store import atomic_file, save_png

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from headshot_ui.likeness import Judge, Likeness

PREVIEW = "preview.png"  # beside the folders with the pictures
PREVIEW_PX = 512
PREVIEW_EVERY_S = 0.5
BEFORE_PX = 2048
LESS_LIKE = 5.0  # percentage points of likeness that may be lost without a word

_log = logging.getLogger(__name__)


@dataclass
class Previews:
    """The one small picture of what is being worked on."""

    folder: Path
    last_at: float = float("-inf")

    @property
    def path(self) -> Path:
        return self.folder / PREVIEW

    def pair(self, before: np.ndarray, after: np.ndarray) -> Path | None:
        """A face before and after side by side; None when the last preview is too fresh."""
        import numpy as np
        from PIL import Image

        if time.monotonic() - self.last_at < PREVIEW_EVERY_S:
            return None
        return self.whole(Image.fromarray(np.hstack([before, after])))

    def whole(self, image: Image.Image) -> Path:
        """A finished picture, RGB."""
        from PIL import Image

        small = image.copy()
        small.thumbnail((PREVIEW_PX, PREVIEW_PX), Image.Resampling.BILINEAR)
        save_png(self.path, small, {})
        self.last_at = time.monotonic()
        return self.path

    def remove_folder(self, folder: Path) -> None:
        """Take an empty result's folder away."""
        with suppress(OSError):
            shutil.rmtree(folder)


def finished(
    record: Record, item: Item, opened: Opened, pixels: np.ndarray, faces: Sequence[RestoredFace],
    judge: Judge | None, previews: Previews, enlarged_by: str, *, skipped: str, notes: tuple[str, ...],
) -> RestoredPicture:  # fmt: skip
    """Save one picture, RGB uint8 (H, W, 3), with its transparency. Raises StoreError."""
    from PIL import Image

    image, alpha = Image.fromarray(pixels), opened.alpha
    if alpha is not None:
        alpha = alpha if alpha.size == image.size else alpha.resize(image.size, Image.Resampling.LANCZOS)
    shown = image if alpha is None else on_white(pixels, alpha)
    previews.whole(shown)
    stem = free_stem(item.name, record.folder, [picture.path.stem for picture in record.pictures])
    path, before = record.folder / f"{stem}.png", record.folder / BEFORE / f"{stem}.jpg"
    _save_before(before, opened.shown)
    if alpha is not None:
        image.putalpha(alpha)
    metadata = picture_metadata(record.spec, Path(item.name).name, opened, faces, record.restorer, enlarged_by)
    save_png(path, image, metadata)
    was, now = _score(judge, opened.shown), _score(judge, shrunk_to(shown, opened.shown.size))
    return RestoredPicture(
        source=item.source,
        path=path,
        faces=tuple(faces),
        skipped=skipped,
        likeness_before=was,
        likeness_after=now,
        warning=less_like(record.spec.person, was, now),
        notes=notes,
        before=before,
        size=image.size,
        enlarged_by=enlarged_by,
    )


def free_stem(name: str, folder: Path, taken: Sequence[str]) -> str:
    """The stem of the source, with a number behind it where another picture has it; small and capital are one."""
    stem = safe_stem(name)
    used = {other.casefold() for other in taken}
    names = (stem if number == 1 else f"{stem}-{number}" for number in range(1, len(used) + 2))
    return next(free for free in names if free.casefold() not in used)


def less_like(person: str, before: Likeness | None, after: Likeness | None) -> str:
    """A sentence when the picture lost more than LESS_LIKE percentage points of likeness; else ""."""
    if before is None or after is None or before.percent - after.percent <= LESS_LIKE:
        return ""
    return (
        f"Less like {person} than before ({before.percent:.0f} % became {after.percent:.0f} %): try a higher fidelity "
        "weight, which keeps more."
    )


def shrunk_to(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Compared at one size, for the recogniser sees more in a larger picture."""
    from PIL import Image

    return image if image.size == size else image.resize(size, Image.Resampling.BOX)


def _score(judge: Judge | None, image: Image.Image) -> Likeness | None:
    if judge is None:
        return None
    try:
        return judge.score(image)
    except Exception:  # a picture without a score is better than none
        _log.exception("The likeness of a restored picture could not be measured")
        return None


def _save_before(path: Path, shown: Image.Image) -> None:
    small = shown.copy()
    small.thumbnail((BEFORE_PX, BEFORE_PX))
    with atomic_file(path) as temporary:
        small.save(temporary, format="JPEG", quality=95, subsampling=0)
