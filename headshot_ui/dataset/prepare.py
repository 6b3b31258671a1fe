"""Photos in, a checked, cropped and captioned dataset out.

One photo is in memory at a time. What cannot be used is listed with its reason and remedy and stops nothing;
the whole fails only when too little is left. The former dataset stays until the new one is complete.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.dataset import compare
from headshot_ui.dataset.again import Automatic, Edits, edits_in, prepared_json
from headshot_ui.dataset.caption import caption_for
from headshot_ui.dataset.checks import NO_FACE, Findings, examine
from headshot_ui.dataset.intake import Collected, Photo, Source, collect, read_photo
from headshot_ui.dataset.originals import clean_copy, safe_stem
from headshot_ui.dataset.saved import (
    MANIFEST,
    export_zip,
    load_dataset,
    manifest_of,
    save_dataset,
    staging_folder,
    swap_in,
    with_caption,
    with_verdict,
)
from headshot_ui.dataset.types import Dataset, PreparedPhoto
from headshot_ui.errors import DatasetError, PhotoError, SpecError
from headshot_ui.store import save_png, told_plainly, write_bytes_atomic, write_json_atomic

if TYPE_CHECKING:
    import numpy as np

    from headshot_ui.dataset.types import FaceDetector, Recogniser
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.jobs import Reporter
    from headshot_ui.specs import PrepareSpec
    from headshot_ui.store import Store

__all__ = ["export_zip", "load_dataset", "prepare", "save_dataset", "with_caption", "with_verdict"]

LEAST_PHOTOS = 3
CLEARLY_BETTER = 1.1  # how much better a later copy of a photo must be to take its place
STAGE = "Looking at the photos"
ORIGINALS = "originals"  # within the staged folder, until they are moved to photos/

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Judged:
    """One photo after its own check, with what is needed to compare it to the others."""

    photo: PreparedPhoto  # rejected ones keep their crop here when they have one
    quality: float = 0.0
    look: np.ndarray | None = None  # fingerprint of the whole photo
    face: np.ndarray | None = None  # identity vector, or the crop's fingerprint without a recogniser
    digests: tuple[str, ...] = ()  # of the file and of its copy without notes
    noted: bool = False  # its caption came from a text beside the photo
    automatic: Automatic | None = None  # what the program made of it, before a person's earlier changes

    def rejected(self, reason: str) -> _Judged:
        return replace(self, photo=replace(self.photo, verdict="rejected", reason=reason))

    @property
    def usable(self) -> bool:
        return self.photo.verdict != "rejected"


def prepare(
    spec: PrepareSpec,
    store: Store,
    base: BaseInfo,
    detector: FaceDetector,
    report: Reporter,
    recogniser: Recogniser | None = None,
) -> Dataset:
    """Check, crop and caption the photos of ``spec`` for ``base`` and write ``<person>/dataset/``.

    What a person changed by hand in the former dataset (captions, photos left out or taken in) is kept for the photos
    that come again. Copies without place and camera notes of the photos with a face go to ``<person>/photos/``. With a
    recogniser, photos of somebody else are left out too. Raises DatasetError when too few photos can be used (the
    notes of the error list every photo with its reason), SpecError when more are to be held out than there are,
    StoreError when writing fails, and Cancelled out of ``report``; in all these cases a former dataset is as it was.
    """
    collected = collect(spec.photos)
    if not collected.sources:
        raise _nothing_usable(_refused(collected), base)
    target = store.dataset_dir(spec.person)
    edits = edits_in(target)
    staged = staging_folder(target)
    try:
        trigger = spec.trigger or base.defaults.trigger
        desk = _Desk(staged, base.size_px, trigger, spec.class_word, detector, recogniser)
        judged = _look_at_all(desk, collected.sources, report)
        judged = _without_strangers(judged, recogniser)
        judged = [_carried_over(one, edits, desk) for one in judged]
        if sum(one.usable for one in judged) < LEAST_PHOTOS:
            raise _nothing_usable([one.photo for one in judged] + _refused(collected), base)
        judged = _with_held_out(judged, spec.held_out)
        photos = [one.photo for one in judged] + _refused(collected)
        whole = Dataset(spec.person, target, base.size_px, trigger, spec.class_word, tuple(photos))
        _write_texts(staged, whole, spec, judged)
        _keep_originals(staged / ORIGINALS, store.photos_dir(spec.person))
        swap_in(staged, target)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
        with suppress(OSError):  # a person of whom nothing could be kept must not show up later; others are not empty
            target.parent.rmdir()
    return load_dataset(target)


def _refused(collected: Collected) -> list[PreparedPhoto]:
    return [PreparedPhoto(refusal.name, "rejected", refusal.reason) for refusal in collected.refusals]


# --- one photo after the other ----------------------------------------------------------------------
@dataclass(frozen=True)
class _Desk:
    """What is needed to judge one photo."""

    staged: Path
    size_px: int
    trigger: str
    class_word: str
    detector: FaceDetector
    recogniser: Recogniser | None

    def judge(self, source: Source, number: int) -> tuple[_Judged, Photo | None]:
        """Read, examine, crop, caption. Raises StoreError when the crop cannot be written."""
        try:
            photo = read_photo(source)
        except PhotoError as error:
            return _Judged(PreparedPhoto(source.name, "rejected", str(error))), None
        findings = examine(photo.image, self.detector, self.size_px)
        look = compare.fingerprint(photo.image)
        if findings.crop is None:
            rejected = PreparedPhoto(source.name, "rejected", findings.reason, findings.warnings)
            return _Judged(rejected, look=look), photo
        return self._keep(photo, findings, f"{number:03d}.png", look), photo

    def _keep(self, photo: Photo, findings: Findings, name: str, look: np.ndarray) -> _Judged:
        crop = findings.crop
        assert crop is not None
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
        if self.recogniser is not None:
            vector = self.recogniser.embed(crop.image, crop.face)
        else:
            vector = compare.fingerprint(crop.image)
        return _Judged(prepared, findings.quality, look, vector, noted=bool(photo.caption))


def _look_at_all(desk: _Desk, sources: Sequence[Source], report: Reporter) -> list[_Judged]:
    """Judge every photo, and leave out doubles of earlier ones."""
    judged: list[_Judged] = []
    seen: dict[str, str] = {}  # digest of a file: name of the photo
    report(stage=STAGE, step=0, total=len(sources))
    for number, source in enumerate(sources, start=1):
        one, photo = desk.judge(source, number)
        if photo is not None:
            same_file = seen.setdefault(photo.digest, source.name)
            if same_file != source.name:
                one = one.rejected(_double(same_file))
            elif one.photo.crop:
                one = _settle_doubles(one, judged)
                copy = _set_aside_original(desk.staged / ORIGINALS, photo)
                one = replace(one, digests=tuple(dict.fromkeys((photo.digest, copy))))
        _log.info("%s: %s", source.name, one.photo.reason or "usable")
        judged.append(one)
        report(stage=STAGE, step=number, total=len(sources))
    return judged


def _settle_doubles(one: _Judged, earlier: list[_Judged]) -> _Judged:
    """Leave out the lesser of two copies (one from a messenger, say): ``one`` or one of ``earlier``."""
    for index, other in enumerate(earlier):
        if not (one.usable and other.usable) or one.look is None or other.look is None:
            continue
        if compare.same_picture(one.look, other.look):
            if one.quality <= other.quality * CLEARLY_BETTER:
                return one.rejected(_double(other.photo.source))
            earlier[index] = other.rejected(_double(one.photo.source))
    return one


def _double(source: str) -> str:
    return f"This is the same photo as “{source}”: nothing needs to be done."


# --- all photos together ----------------------------------------------------------------------------
def _without_strangers(judged: list[_Judged], recogniser: Recogniser | None) -> list[_Judged]:
    """Leave out photos of somebody else, and mark doubtful ones."""
    import numpy as np

    usable = [index for index, one in enumerate(judged) if one.usable]
    if recogniser is None or len(usable) < compare.LEAST_FOR_STRANGERS:
        return judged
    verdicts = compare.odd_ones_out(
        np.stack([vector for index in usable if (vector := judged[index].face) is not None])
    )
    result = list(judged)
    for index, verdict in zip(usable, verdicts, strict=True):
        one = judged[index]
        if verdict == "stranger":
            result[index] = one.rejected("This seems to be somebody else than the other photos show: check who it is.")
        elif verdict == "doubtful":
            warnings = (*one.photo.warnings, "looks unlike the other photos")
            result[index] = replace(one, photo=replace(one.photo, warnings=warnings))
    return result


def _carried_over(one: _Judged, edits: Edits, desk: _Desk) -> _Judged:
    """With what a person changed about this photo before."""
    if not one.digests:
        return one
    automatic = Automatic(one.photo.caption, one.usable, one.digests, one.noted)
    photo = edits.carried_over(one.photo, automatic, desk.trigger, desk.class_word)
    return replace(one, photo=photo, automatic=automatic)


def _with_held_out(judged: list[_Judged], wanted: int | None) -> list[_Judged]:
    """Keep some photos back from training. Raises SpecError when too few would be left."""
    usable = [index for index, one in enumerate(judged) if one.usable]
    count = compare.default_held_out(len(usable)) if wanted is None else wanted
    most = len(usable) - LEAST_PHOTOS
    if count > most:
        raise SpecError(
            "held_out",
            f"{count} of {len(usable)} usable photos cannot be held out: choose at most {max(most, 0)}, or add photos.",
        )
    vectors = [vector for index in usable if (vector := judged[index].face) is not None]
    chosen = compare.choose_held_out(vectors, [judged[index].quality for index in usable], count)
    result = list(judged)
    for place in chosen:
        one = judged[usable[place]]
        result[usable[place]] = replace(one, photo=replace(one.photo, verdict="held_out"))
    return result


def _nothing_usable(photos: Sequence[PreparedPhoto], base: BaseInfo) -> DatasetError:
    """One sentence on why the photos do not suffice; its notes list each photo."""
    usable = sum(photo.verdict != "rejected" for photo in photos)
    reasons = Counter(photo.reason for photo in photos if photo.verdict == "rejected")
    common = reasons.most_common(1)[0][0] if reasons else ""
    if not photos:
        message = (
            "No photos were found: add about twelve photos of one person (JPEG, PNG, HEIC, WebP, or a zip of them)."
        )
    elif len(photos) == 1 and not usable:
        return DatasetError(f"“{photos[0].source}” cannot be used. {photos[0].reason}")
    elif usable == len(photos):
        message = f"{usable} usable photo{'s' * (usable > 1)} and at least {LEAST_PHOTOS} are needed: add about twelve."
    elif usable:
        missing = f"; most of the others: {common[:1].lower()}{common[1:]}"
        message = f"Only {usable} of {len(photos)} photos can be used and at least {LEAST_PHOTOS} are needed{missing}"
    elif all(photo.reason == NO_FACE for photo in photos):
        hint = " The demo models know drawn people only." if base.demo else ""
        message = (
            f"No face was found in any of the {len(photos)} photos: use photos of one whole face, from near.{hint}"
        )
    else:
        message = f"None of the {len(photos)} photos can be used. Most often: {common}"
    error = DatasetError(message)
    for photo in photos:
        if photo.verdict == "rejected":
            error.add_note(f"{photo.source}: {photo.reason}")
    return error


# --- writing ----------------------------------------------------------------------------------------
def _write_texts(staged: Path, dataset: Dataset, spec: PrepareSpec, judged: Sequence[_Judged]) -> None:
    for photo in dataset.photos:
        if photo.crop:
            write_bytes_atomic(staged / Path(photo.crop).with_suffix(".txt"), (photo.caption + "\n").encode())
    prepared = prepared_json([(one.photo.source, one.automatic) for one in judged if one.automatic is not None])
    write_json_atomic(staged / MANIFEST, manifest_of(dataset) | {"spec": spec.to_json()} | prepared)


def _set_aside_original(folder: Path, photo: Photo) -> str:
    """Keep a copy without notes; its SHA-256."""
    suffix, data = clean_copy(photo.data, photo.image)
    write_bytes_atomic(_free_path(folder, safe_stem(photo.name), suffix), data)
    return hashlib.sha256(data).hexdigest()


def _keep_originals(staged: Path, folder: Path) -> None:
    """Move the copies to the person's photos; those already there stay, and the same file is not kept twice."""
    if not staged.is_dir():
        return
    with told_plainly(folder, "written"):
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(staged.iterdir()):
            same = folder / path.name
            if not (same.is_file() and same.read_bytes() == path.read_bytes()):
                path.replace(_free_path(folder, path.stem, path.suffix))
        shutil.rmtree(staged, ignore_errors=True)


def _free_path(folder: Path, stem: str, suffix: str) -> Path:
    number = 1
    while True:
        path = folder / (f"{stem}{suffix}" if number == 1 else f"{stem} ({number}){suffix}")
        if not path.exists():
            return path
        number += 1
