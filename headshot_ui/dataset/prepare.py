"""Photos in, a checked, cropped and captioned dataset out.

A few photos are in memory at a time (``looking``). What cannot be used is listed with its reason and remedy and
stops nothing; the whole fails only when too little is left. The former dataset stays until the new one is complete.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.dataset import compare
from headshot_ui.dataset.again import Automatic, Edits, edits_in, prepared_json
from headshot_ui.dataset.checks import NO_FACE
from headshot_ui.dataset.decode import without_warnings
from headshot_ui.dataset.describe import OpenCaptioner, describe
from headshot_ui.dataset.intake import Collected, Source, collect
from headshot_ui.dataset.looking import Desk, Judged, looked_at, photos_at_once
from headshot_ui.dataset.originals import safe_stem
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
from headshot_ui.errors import DatasetError, SpecError
from headshot_ui.store import told_plainly, write_bytes_atomic, write_json_atomic

if TYPE_CHECKING:
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


def prepare(
    spec: PrepareSpec,
    store: Store,
    base: BaseInfo,
    detector: FaceDetector,
    report: Reporter,
    recogniser: Recogniser | None = None,
    open_captioner: OpenCaptioner | None = None,
) -> Dataset:
    """Check, crop and caption the photos of ``spec`` for ``base`` and write ``<person>/dataset/``.

    What a person changed by hand in the former dataset (captions, photos left out or taken in) is kept for the photos
    that come again. Copies without place and camera notes of the photos with a face go to ``<person>/photos/``. With a
    recogniser, photos of somebody else are left out too. With a captioner, captions are what it says of clothes, light
    and background; else a fixed phrase and what is measured. Raises DatasetError when too few photos can be used (the
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
        desk = Desk(staged, base.size_px, trigger, spec.class_word, detector, recogniser)
        judged = _look_at_all(desk, collected.sources, report, photos_at_once(store.settings))
        judged = _without_strangers(judged, recogniser)
        if open_captioner is not None:
            judged = _described(judged, desk, open_captioner, report)
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
def _look_at_all(desk: Desk, sources: Sequence[Source], report: Reporter, at_once: int) -> list[Judged]:
    """Judge every photo, and leave out doubles of earlier ones."""
    judged: list[Judged] = []
    seen: dict[str, str] = {}  # digest of a file: name of the photo
    report(stage=STAGE, step=0, total=len(sources))
    with without_warnings(), closing(looked_at(desk, sources, at_once)) as photos:
        for number, (source, looked) in enumerate(zip(sources, photos, strict=True), start=1):
            one = looked.judged
            if looked.digest:
                same_file = seen.setdefault(looked.digest, source.name)
                if same_file != source.name:
                    one = one.rejected(_double(same_file))
                elif looked.copy is not None:
                    one = _settle_doubles(one, judged)
                    copy = _set_aside_original(desk.staged / ORIGINALS, source.name, *looked.copy)
                    one = replace(one, digests=tuple(dict.fromkeys((looked.digest, copy))))
            _log.info("%s: %s", source.name, one.photo.reason or "usable")
            judged.append(one)
            report(stage=STAGE, step=number, total=len(sources))
    return judged


def _settle_doubles(one: Judged, earlier: list[Judged]) -> Judged:
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
def _without_strangers(judged: list[Judged], recogniser: Recogniser | None) -> list[Judged]:
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


def _described(judged: list[Judged], desk: Desk, open_captioner: OpenCaptioner, report: Reporter) -> list[Judged]:
    """With captions written by the captioner, but where a text lies beside the photo."""
    photos = [one.photo for one in judged if one.usable and not one.noted]
    captions = describe(open_captioner, desk.staged, photos, desk.trigger, desk.class_word, report)
    return [
        replace(one, photo=replace(one.photo, caption=captions.get(one.photo.crop, one.photo.caption)))
        for one in judged
    ]  # fmt: skip


def _carried_over(one: Judged, edits: Edits, desk: Desk) -> Judged:
    """With what a person changed about this photo before."""
    if not one.digests:
        return one
    automatic = Automatic(one.photo.caption, one.usable, one.digests, one.noted)
    photo = edits.carried_over(one.photo, automatic, desk.trigger, desk.class_word)
    return replace(one, photo=photo, automatic=automatic)


def _with_held_out(judged: list[Judged], wanted: int | None) -> list[Judged]:
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
def _write_texts(staged: Path, dataset: Dataset, spec: PrepareSpec, judged: Sequence[Judged]) -> None:
    for photo in dataset.photos:
        if photo.crop:
            write_bytes_atomic(staged / Path(photo.crop).with_suffix(".txt"), (photo.caption + "\n").encode())
    prepared = prepared_json([(one.photo.source, one.automatic) for one in judged if one.automatic is not None])
    write_json_atomic(staged / MANIFEST, manifest_of(dataset) | {"spec": spec.to_json()} | prepared)


def _set_aside_original(folder: Path, name: str, suffix: str, data: bytes) -> str:
    """Keep a copy without notes; its SHA-256."""
    write_bytes_atomic(_free_path(folder, safe_stem(name), suffix), data)
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
