"""Each photo by itself: read, faces found, judged, cropped, captioned. Several at once, in the order they were given.

Most of a photo's time is decoding, scaling and compressing, which libraries do without holding up Python, so threads do
it, for photos that come later and those whose faces are known. The networks stay with the thread that asks: how many
threads add up decides the last bits of what they say, and each thread has its own number of them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.dataset import compare
from headshot_ui.dataset.caption import caption_for
from headshot_ui.dataset.checks import Findings, judge
from headshot_ui.dataset.crop import Crop
from headshot_ui.dataset.intake import Photo, Source, read_photo
from headshot_ui.dataset.originals import clean_copy
from headshot_ui.dataset.types import PreparedPhoto
from headshot_ui.errors import PhotoError
from headshot_ui.memory import free_ram_bytes, within_ram_limit
from headshot_ui.store import save_png

if TYPE_CHECKING:
    import numpy as np

    from headshot_ui.dataset.again import Automatic
    from headshot_ui.dataset.types import Face, FaceDetector, Recogniser
    from headshot_ui.settings import Settings

MOST_AT_ONCE = 4
#: Main memory that one of the largest photos takes: its file, its pixels, and once more while they are changed.
PHOTO_BYTES = 600 * 2**20


@dataclass(frozen=True)
class Judged:
    """One photo after its own check, with what is needed to compare it to the others."""

    photo: PreparedPhoto  # rejected ones keep their crop here when they have one
    quality: float = 0.0
    look: np.ndarray | None = None  # fingerprint of the whole photo
    face: np.ndarray | None = None  # identity vector, or the crop's fingerprint without a recogniser
    digests: tuple[str, ...] = ()  # of the file and of its copy without notes
    noted: bool = False  # its caption came from a text beside the photo
    automatic: Automatic | None = None  # what the program made of it, before a person's earlier changes

    def rejected(self, reason: str) -> Judged:
        return replace(self, photo=replace(self.photo, verdict="rejected", reason=reason))

    @property
    def usable(self) -> bool:
        return self.photo.verdict != "rejected"


@dataclass(frozen=True)
class Looked:
    """What came of one photo; its pixels are gone."""

    judged: Judged
    digest: str = ""  # SHA-256 of the file; "" where it could not be read
    copy: tuple[str, bytes] | None = None  # suffix and bytes without notes, of photos with a crop
    crop: Crop | None = None


@dataclass(frozen=True)
class Desk:
    """What is needed to judge one photo."""

    staged: Path
    size_px: int
    trigger: str
    class_word: str
    detector: FaceDetector
    recogniser: Recogniser | None

    def finish(self, photo: Photo, faces: Sequence[Face], number: int) -> Looked:
        """Judge, crop, caption, in any thread. Raises StoreError when the crop cannot be written."""
        findings = judge(photo.image, faces, self.size_px)
        look = compare.fingerprint(photo.image)
        if findings.crop is None:
            rejected = PreparedPhoto(photo.name, "rejected", findings.reason, findings.warnings)
            return Looked(Judged(rejected, look=look), photo.digest)
        judged = self._keep(photo, findings, findings.crop, f"{number:03d}.png", look)
        return Looked(judged, photo.digest, clean_copy(photo.data, photo.image), findings.crop)

    def _keep(self, photo: Photo, findings: Findings, crop: Crop, name: str, look: np.ndarray) -> Judged:
        save_png(self.staged / name, crop.image, {})
        prepared = PreparedPhoto(
            source=photo.name,
            verdict="rejected" if findings.reason else "train",
            reason=findings.reason,
            warnings=findings.warnings,
            crop=name,
            caption=caption_for(self.trigger, self.class_word, crop.image, crop.face, photo.caption),
            face=crop.face,
            original_size=crop.original_size,
            crop_top_left=crop.top_left,
        )
        face = compare.fingerprint(crop.image) if self.recogniser is None else None
        return Judged(prepared, findings.quality, look, face, noted=bool(photo.caption))

    def recognised(self, looked: Looked) -> Looked:
        """With the identity vector, where there is a recogniser, and without the crop's pixels."""
        judged = looked.judged
        if self.recogniser is not None and looked.crop is not None:
            judged = replace(judged, face=self.recogniser.embed(looked.crop.image, looked.crop.face))
        return replace(looked, judged=judged, crop=None)


def photos_at_once(settings: Settings) -> int:
    """How many photos may be in memory: one for each processor, as far as main memory clearly holds them."""
    room = within_ram_limit(free_ram_bytes(), settings) // PHOTO_BYTES
    return max(1, min(MOST_AT_ONCE, os.cpu_count() or 1, room // 2))


def looked_at(desk: Desk, sources: Sequence[Source], at_once: int) -> Generator[Looked, None, None]:
    """Every photo in the order of ``sources``, up to ``at_once`` of them in memory. To be closed.

    Raises StoreError when a crop cannot be written. What threads have begun ends before this does; libraries are to be
    kept quiet meanwhile (``decode.without_warnings``).
    """
    reading: deque[Future[Photo | Looked]] = deque()
    finishing: deque[Future[Looked] | Looked] = deque()
    begun = 0
    pool = ThreadPoolExecutor(at_once, thread_name_prefix="photos")
    try:
        for number in range(1, len(sources) + 1):
            while begun < len(sources) and len(reading) + len(finishing) < at_once:
                reading.append(pool.submit(_read, sources[begun]))
                begun += 1
            photo = reading.popleft().result()
            if isinstance(photo, Looked):
                finishing.append(photo)
            else:
                finishing.append(pool.submit(desk.finish, photo, desk.detector.detect(photo.image), number))
                del photo  # its pixels are the thread's, and go with it
            while finishing and (len(finishing) > at_once // 2 or number == len(sources)):
                done = finishing.popleft()
                yield desk.recognised(done if isinstance(done, Looked) else done.result())
                del done
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _read(source: Source) -> Photo | Looked:
    try:
        return read_photo(source)
    except PhotoError as error:
        return Looked(Judged(PreparedPhoto(source.name, "rejected", str(error))))
