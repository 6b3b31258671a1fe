"""Pictures in, the same pictures with repaired faces out: find all faces, repair them, enlarge, paste, save.

Pictures are opened one at a time, and again for the next stage, so that a folder of large ones needs no more memory
than the largest. Repaired faces of a few pictures wait until these are enlarged, so that restorer and upscaler take
turns on the device seldom. A picture is saved as soon as it is finished, and stays after a cancel or an error.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeVar

from headshot_ui.dataset.decode import MAX_PIXELS
from headshot_ui.dataset.intake import Refusal
from headshot_ui.errors import Cancelled, ModelError, PhotoError, StoreError
from headshot_ui.restoration import parser as parsing
from headshot_ui.restoration.crowd import find_faces
from headshot_ui.restoration.faces import aligned, alignment, paste, unfit
from headshot_ui.restoration.finish import Previews, finished
from headshot_ui.restoration.pictures import Item, Opened, collect_pictures, open_picture
from headshot_ui.restoration.records import NOT_CHOSEN, Record, RestoredFace, RestoreResult
from headshot_ui.specs import RestoreSpec
from headshot_ui.store import Store, check_free_space, new_folder

if TYPE_CHECKING:
    import numpy as np

    from headshot_ui.dataset.types import Face, FaceDetector
    from headshot_ui.jobs import Reporter
    from headshot_ui.likeness import Judge
    from headshot_ui.restoration.parser import FaceParser
    from headshot_ui.restoration.protocol import LoadedRestorer
    from headshot_ui.restoration.upscale import LoadedUpscaler

FINDING, REPAIRING, ENLARGING = "Finding faces", "Repairing faces", "Enlarging"
NETWORK = frozenset({"network"})  # all that there is of each model here
MOST_HELD = 256  # repaired faces waiting to be pasted: about 200 MB of 512 x 512, with outlines twice that

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RestoreTools:
    """What the runner works with. Each ``open_…`` loads its model when its stage begins."""

    detector: FaceDetector
    open_restorer: Callable[[], AbstractContextManager[LoadedRestorer]]
    open_upscaler: Callable[[int], AbstractContextManager[LoadedUpscaler]]  # given how many times to enlarge
    open_parser: Callable[[], AbstractContextManager[FaceParser]]


@dataclass(frozen=True)
class _Planned:
    """One picture after the faces were found."""

    item: Item
    size: tuple[int, int]  # width, height
    faces: tuple[Face, ...]  # largest first
    told: tuple[RestoredFace, ...]  # the same, with why some are left alone
    skipped: str  # why none is repaired; ""
    notes: tuple[str, ...]

    @property
    def chosen(self) -> tuple[Face, ...]:
        return tuple(face for face, told in zip(self.faces, self.told, strict=True) if not told.skipped)


@dataclass(frozen=True)
class RepairedFace:
    """A face between its repair and its return into the picture."""

    pixels: np.ndarray  # (S, S, 3) uint8 RGB
    matrix: np.ndarray  # (2, 3) from picture pixels to its own
    mask: np.ndarray | None  # (S, S) float32 outline; None fades out along the square


@dataclass
class _Work:
    """One request while it runs."""

    spec: RestoreSpec
    store: Store
    tools: RestoreTools
    report: Reporter
    judge: Judge | None
    record: Record
    previews: Previews
    planned: tuple[_Planned, ...]
    gone: set[Item] = field(default_factory=set)  # could no longer be opened
    faces_done: int = 0
    windows_done: int = 0
    windows_total: int = 0
    began: float = field(default_factory=time.monotonic)

    @property
    def faces_total(self) -> int:
        return sum(len(plan.chosen) for plan in self.planned)


def restore(
    spec: RestoreSpec, store: Store, tools: RestoreTools, report: Reporter, judge: Judge | None = None
) -> RestoreResult:
    """Repair the faces of every picture of ``spec``, and enlarge the pictures if asked for.

    PNGs and ``restored.json`` go to a new folder named after the time in ``store.restored_dir``. Raises before any
    work: ModelError when a network is missing, StoreError for a full disk, PhotoError when no picture can be opened.
    A cancel or an error later on keeps what was finished and is raised at the end.
    """
    began = time.monotonic()
    if spec.parse_face and (reason := parsing.missing(store.settings)):
        raise ModelError(reason)
    planned, refused = _find(spec, tools.detector, report)
    if not planned:
        raise _nothing(refused)
    # A PNG is smaller than its pixels; the copy for comparing is within the fourth byte.
    check_free_space(store.restored_dir(spec.person), sum(4 * p.size[0] * p.size[1] * spec.upscale**2 for p in planned))
    folder = new_folder(store.restored_dir(spec.person), datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    record = Record(folder, spec, refused=refused)
    previews = Previews(store.restored_dir(spec.person))
    work = _Work(spec, store, tools, report, judge, record, previews, planned, began=began)
    problem: Exception | None = None
    try:
        _restore_all(work)
    except Exception as error:  # whatever it is, the pictures finished before it stay
        problem = error
    return _end(work, problem)


def _end(work: _Work, problem: Exception | None) -> RestoreResult:
    record, seconds = work.record, time.monotonic() - work.began
    state = "done" if problem is None else "cancelled" if isinstance(problem, Cancelled) else "failed"
    if record.pictures:
        try:
            record.write(state, seconds)
        except StoreError as error:  # the first problem is the one to tell
            problem = problem or error
    else:
        work.previews.remove_folder(record.folder)
        problem = problem or _nothing(record.refused)
    if problem is not None:
        raise problem
    return RestoreResult(record.folder, tuple(record.pictures), seconds, tuple(record.refused), record.restorer, state)


def _nothing(refused: Sequence[Refusal]) -> PhotoError:
    if not refused:
        return PhotoError("No picture was found in what was given: choose picture files, a folder or a zip with some.")
    if len(refused) == 1:
        return PhotoError(f"{refused[0].name}: {refused[0].reason}")
    return PhotoError(
        f"None of the {len(refused)} pictures can be restored; the first was {refused[0].name}: {refused[0].reason}"
    )


# --- finding ------------------------------------------------------------------------------------
def _find(spec: RestoreSpec, detector: FaceDetector, report: Reporter) -> tuple[tuple[_Planned, ...], list[Refusal]]:
    """Every picture that can be opened with its faces, and what cannot be opened."""
    items, refusals = collect_pictures(spec.pictures)
    planned, refused = [], list(refusals)
    for number, item in enumerate(items):
        report(FINDING, number, len(items))
        try:
            opened = open_picture(item)
            _check_size(opened.shown.size, spec.upscale)
        except PhotoError as error:
            _log.info("%s is left out: %s", item.name, error)
            refused.append(Refusal(item.name, str(error)))
            continue
        faces = find_faces(detector, opened.shown, partial(report, FINDING, number, len(items)))
        planned.append(_plan(item, opened, tuple(faces), spec.faces))
    if items:
        report(FINDING, len(items), len(items))
    return tuple(planned), refused


def _check_size(size: tuple[int, int], times: int) -> None:
    pixels = size[0] * size[1] * times**2
    if times > 1 and pixels > MAX_PIXELS:
        raise PhotoError(
            f"Enlarged {times} times it would have {pixels / 1e6:.0f} megapixels, more than most programs can open: "
            "enlarge it less."
        )


def _plan(item: Item, opened: Opened, faces: tuple[Face, ...], chosen: tuple[int, ...]) -> _Planned:
    told = []
    for number, face in enumerate(faces, start=1):
        reason = NOT_CHOSEN if chosen and number not in chosen else unfit(face, opened.shown.size)
        told.append(RestoredFace(number, face.box, reason))
    notes = list(opened.notes)
    absent = [str(number) for number in chosen if number > len(faces)]
    if absent and faces:
        found = "one face" if len(faces) == 1 else f"{len(faces)} faces"
        notes.append(f"There is no face {', '.join(absent)} here, where {found} were found.")
    skipped = ""
    if not faces:
        skipped = "No face was found, so nothing was repaired."
    elif all(face.skipped for face in told):
        reasons = [face.skipped for face in told if face.skipped != NOT_CHOSEN]
        skipped = f"No face was repaired: {reasons[0] if reasons else 'none of those chosen is in this picture.'}"
    return _Planned(item, opened.shown.size, faces, tuple(told), skipped, tuple(notes))


# --- repairing and enlarging --------------------------------------------------------------------
def _restore_all(work: _Work) -> None:
    times = work.spec.upscale
    if times == 1:
        with _repairers(work, work.planned) as (restorer, parser):
            for plan, opened in _opened(work, work.planned):
                repaired = _repair(work, plan, opened, restorer, parser)
                _finish(work, plan, opened, opened.pixels, repaired, "")
                work.report(REPAIRING, work.faces_done, max(work.faces_total, 1), work.previews.path)
        return
    for group in _groups(work.planned):
        with _repairers(work, group) as (restorer, parser):
            repaired_of = {
                plan.item: _repair(work, plan, opened, restorer, parser)
                for plan, opened in _opened(work, [plan for plan in group if plan.chosen])
            }
        with _on_device(work.tools.open_upscaler(times)) as upscaler:
            for plan, opened in _opened(work, group):
                large = _enlarge(work, upscaler, plan, opened)
                _finish(work, plan, opened, large, repaired_of.get(plan.item, []), upscaler.method, upscaler.note)
                work.report(ENLARGING, work.windows_done, work.windows_total, work.previews.path)


def _groups(planned: Sequence[_Planned]) -> Iterator[list[_Planned]]:
    """Pictures with at most MOST_HELD faces together, or a single one with more."""
    group: list[_Planned] = []
    for plan in planned:
        if group and sum(len(p.chosen) for p in [*group, plan]) > MOST_HELD:
            yield group
            group = []
        group.append(plan)
    yield group


def _opened(work: _Work, planned: Sequence[_Planned]) -> Iterator[tuple[_Planned, Opened]]:
    """Each picture opened once more; one that is gone or was changed meanwhile is left out and said."""
    for plan in planned:
        if plan.item in work.gone:
            continue
        try:
            opened = open_picture(plan.item)
            if opened.shown.size != plan.size:
                raise PhotoError("The picture was changed while it was being restored: restore it again.")
        except PhotoError as error:
            work.gone.add(plan.item)
            work.record.refused.append(Refusal(plan.item.name, str(error)))
            continue
        yield plan, opened


class _Movable(Protocol):
    def keep(self, parts: frozenset[str]) -> None: ...


Loaded = TypeVar("Loaded", bound=_Movable)


@contextmanager
def _on_device(opening: AbstractContextManager[Loaded]) -> Iterator[Loaded]:
    """A model that leaves the device when its stage ends or is cancelled; after other errors its owner drops it."""
    with opening as loaded:
        loaded.keep(NETWORK)
        try:
            yield loaded
        except Cancelled:
            loaded.keep(frozenset())
            raise
        loaded.keep(frozenset())


@contextmanager
def _repairers(work: _Work, planned: Sequence[_Planned]) -> Iterator[tuple[LoadedRestorer | None, FaceParser | None]]:
    """Restorer and, if asked for, parser; neither is loaded when there is no face to repair."""
    if not any(plan.chosen for plan in planned):
        yield None, None
        return
    work.report(REPAIRING, work.faces_done, work.faces_total)
    with _on_device(work.tools.open_restorer()) as restorer:
        work.record.restorer = restorer.info.id
        parser = _on_device(work.tools.open_parser()) if work.spec.parse_face else nullcontext()
        with parser as loaded:
            restorer.keep(NETWORK)  # whoever opened the parser may have made room for it; the two are small
            yield restorer, loaded


def _repair(
    work: _Work, plan: _Planned, opened: Opened, restorer: LoadedRestorer | None, parser: FaceParser | None
) -> list[RepairedFace]:
    """One face after the other, so that memory is that of one and a cancel waits for one at most."""
    import numpy as np

    seen = opened.pixels if opened.alpha is None else np.asarray(opened.shown)
    repaired = []
    for face in plan.chosen:
        assert restorer is not None  # opened because there are faces
        side = restorer.info.size_px
        matrix = alignment(face.landmarks, side)
        assert matrix is not None  # ``unfit`` has seen to it
        before = aligned(seen, matrix, side)
        after = repair_face(restorer, before, work.spec.fidelity_weight)
        repaired.append(RepairedFace(after, matrix, parser.mask(after) if parser is not None else None))
        work.faces_done += 1
        preview = work.previews.pair(before, after)
        work.report(REPAIRING, work.faces_done, work.faces_total, preview)
    return repaired


def repair_face(restorer: LoadedRestorer, face: np.ndarray, fidelity_weight: float) -> np.ndarray:
    """One aligned face (S, S, 3) uint8 RGB through the network and back; 0 … 255 are -1 … 1 there."""
    import numpy as np
    import torch

    pixels = np.ascontiguousarray(face.transpose(2, 0, 1)[None], dtype=np.float32) / 127.5 - 1
    out = restorer.restore(torch.from_numpy(pixels), fidelity_weight)
    levels = ((out[0].clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return np.ascontiguousarray(levels.permute(1, 2, 0).numpy())


def _enlarge(work: _Work, upscaler: LoadedUpscaler, plan: _Planned, opened: Opened) -> np.ndarray:
    if not work.windows_total:
        work.windows_total = sum(upscaler.windows(p.size[1], p.size[0]) for p in work.planned)
    before, share = work.windows_done, upscaler.windows(plan.size[1], plan.size[0])
    work.report(ENLARGING, before, work.windows_total)

    def tick(done: int, total: int) -> None:
        work.windows_done = before + share * done // total
        if done < total:  # the last one is reported when the picture is saved: a cancel does not lose it
            work.report(ENLARGING, work.windows_done, work.windows_total)

    return upscaler.enlarge(opened.pixels, tick)


def _finish(
    work: _Work, plan: _Planned, opened: Opened, pixels: np.ndarray, repaired: Sequence[RepairedFace],
    enlarged_by: str, note: str = "",
) -> None:  # fmt: skip
    """Paste the faces into ``pixels``, save the picture, judge and record it."""
    for face in repaired:
        paste(pixels, face.pixels, face.matrix, work.spec.upscale, face.mask)
    work.record.pictures.append(
        finished(
            work.record, plan.item, opened, pixels, plan.told,
            work.judge if repaired else None, work.previews, enlarged_by,
            skipped=plan.skipped, notes=(*plan.notes, *([note] if note else [])),
        )
    )  # fmt: skip
    work.record.write("running", time.monotonic() - work.began)
