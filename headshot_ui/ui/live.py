"""What the page shows, worked out without gradio: the newest job, its progress, its loss curve, its results.

The engine keeps the jobs, so a page that is reloaded, or opened a second time, finds the same one again.
"""

from __future__ import annotations

import shutil
import threading
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from headshot_ui.commands.progress import format_seconds
from headshot_ui.errors import HeadshotError, StoreError
from headshot_ui.sheet import FILE_NAME as SHEET_NAME
from headshot_ui.sheet import save_contact_sheet
from headshot_ui.store import Store, told_plainly
from headshot_ui.ui.earlier import Earlier, find_earlier
from headshot_ui.ui.thumbnails import data_uri, small_copy

if TYPE_CHECKING:
    from headshot_ui.dataset.types import Dataset
    from headshot_ui.engine import HeadshotsResult
    from headshot_ui.generation.records import Picture
    from headshot_ui.jobs import Job, Snapshot
    from headshot_ui.settings import Settings
    from headshot_ui.specs import HeadshotsSpec, Spec

CURVE_POINTS = 400  # more cannot be told apart on a screen
PREVIEW_PX = 512
THUMBNAIL_PX = 160
EARLIER_PX = 320
SHEET_PX = 1600
#: What the drawing stage shows while pictures are still noise; a finished one has a name of its own.
UNFINISHED = "preview.png"
CANCELLED = "What was finished is kept. “Make my headshots” starts anew."


class EngineLike(Protocol):
    """What the page needs of the engine."""

    def submit(self, spec: Spec) -> Job: ...
    def jobs(self) -> tuple[Job, ...]: ...
    def cancel(self, job_id: str | None = None) -> bool: ...


@dataclass(frozen=True)
class Results:
    """A finished job as files that the page may hand out (all inside the private temporary folder)."""

    pictures: tuple[tuple[str, str], ...]  # path and caption, best first
    archive: str
    sheet: str  # data: address
    folder: str
    summary: str


@dataclass
class _Watched:
    """What is gathered about one job while it runs."""

    spec: HeadshotsSpec
    started_s: float  # seconds since 1970, as file times are
    stages: list[str] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    loss_stage: str = ""
    results: Results | None = None


class Live:
    """One per program. ``shown_dir`` is the private folder the page may serve files from."""

    def __init__(
        self,
        engine: EngineLike,
        settings: Settings,
        shown_dir: Path,
        load_dataset: Callable[[Path], Dataset] | None = None,
    ) -> None:
        self._engine = engine
        self._store = Store(settings)
        self._shown_dir = shown_dir
        self._load_dataset = load_dataset or _real_load_dataset
        self._watched: dict[str, _Watched] = {}
        self._lock = threading.Lock()

    # --- doing -----------------------------------------------------------------------------------
    def start(self, spec: HeadshotsSpec) -> Job:
        """Submit the request, unless a job is running already, which then goes on."""
        with self._lock:  # two clicks, or two pages, start one job
            running = self.job()
            if running is not None and not running.snapshot.finished:
                return running
            job = self._engine.submit(spec)
            watched = self._watched[job.id] = _Watched(spec, time.time())
        job.subscribe(lambda snapshot: _note(watched, snapshot))
        return job

    def cancel(self) -> None:
        """Cancel the newest job; what is finished is kept."""
        job = self.job()
        if job is not None:
            self._engine.cancel(job.id)

    # --- looking ---------------------------------------------------------------------------------
    def job(self) -> Job | None:
        """The newest job of the page."""
        return next((job for job in reversed(self._engine.jobs()) if job.id in self._watched), None)

    def progress(self, job: Job) -> dict[str, Any]:
        """Values of the progress template."""
        now = job.snapshot
        stages = list(self._watched[job.id].stages)
        percent = 100 if now.state == "done" else round(100 * now.step / now.total) if now.total else 0
        return {
            "title": now.title,
            "state": now.state,
            "stage": _headline(job, now),
            "past": stages if now.state == "done" else stages[: stages.index(now.stage)] if now.stage in stages else [],
            "steps": f"{now.step} of {now.total}" if now.total and not now.finished else "",
            "percent": percent,
            "left": _below(now),
            "error": now.error or "",
            "running": not now.finished,
        }

    def curve(self, job: Job) -> dict[str, Any]:
        """Values of the loss-curve template; ``line`` is "" before there are two points."""
        losses = list(self._watched[job.id].losses)
        if len(losses) < 2:
            return {"line": "", "last": "", "low": "", "high": "", "steps": ""}
        smooth = _smoothed([loss for _, loss in losses])
        low, high = min(smooth), max(smooth)
        last_step = losses[-1][0]
        points = [
            f"{600 * step / max(1, last_step):.1f},{10 + 160 * (high - value) / max(high - low, 1e-9):.1f}"
            for (step, _), value in zip(losses, smooth, strict=True)
        ]
        return {"line": " ".join(points), "last": f"{smooth[-1]:.4f}", "low": f"{low:.3f}", "high": f"{high:.3f}",
                "steps": str(last_step)}  # fmt: skip

    def preview(self, job: Job) -> dict[str, Any]:
        """Values of the preview template: the newest picture as a data: address (or "") and what to expect of it."""
        path = job.snapshot.preview
        if path is None or job.snapshot.finished:
            return {"picture": "", "text": "", "shaping": False}
        shaping = path.name == UNFINISHED
        if shaping:
            text = "Taking shape …"
        elif path.parent.name == "samples":
            text = "Newest sample; it gets better while the model learns"
        else:
            text = "Newest picture"
        return {"picture": data_uri(path, PREVIEW_PX), "text": text, "shaping": shaping}

    def dataset_changed(self, job: Job) -> int:
        """A number that changes when this job prepares the photos; 0 while it has not."""
        try:
            changed_ns = (self._dataset_dir(job) / "dataset.json").stat().st_mtime_ns
        except OSError:
            return 0
        # Two seconds of grace: some file systems keep no finer times.
        return changed_ns if changed_ns / 1e9 > self._watched[job.id].started_s - 2 else 0

    def photos(self, job: Job) -> list[dict[str, Any]]:
        """Values of the photo template: thumbnail, verdict and reason of every photo given."""
        try:
            dataset = self._load_dataset(self._dataset_dir(job))
        except HeadshotError:
            return []
        given = {Path(path).name: Path(path) for path in self._watched[job.id].spec.prepare.photos}
        shown = []
        for photo in sorted(dataset.photos, key=lambda photo: photo.verdict == "rejected"):
            path = dataset.folder / photo.crop if photo.crop else given.get(photo.source)
            shown.append(
                {
                    "name": photo.source,
                    "picture": data_uri(path, THUMBNAIL_PX) if path else "",
                    "verdict": photo.verdict,
                    "label": {"train": "Used", "held_out": "Kept to measure likeness"}.get(photo.verdict, "Left out"),
                    "reason": photo.reason or "; ".join(photo.warnings),
                }
            )
        return shown

    def results(self, job: Job) -> Results | None:
        """What a finished job made, as copies in the private folder; made once.

        When they cannot be copied, the summary says why and where the pictures lie.
        """
        made = job.snapshot.result
        if made is None:
            return None
        watched = self._watched[job.id]
        with self._lock:
            if watched.results is None:
                try:
                    watched.results = _results_of_job(made, self._shown_dir / job.id)
                except StoreError as error:
                    return Results((), "", "", str(made.generated.folder), str(error))
            return watched.results

    def earlier(self) -> tuple[tuple[Earlier, str], ...]:
        """Headshots found on disk, newest first, each with a small copy of its best picture in the private folder."""
        shown = []
        for found in find_earlier(self._store):
            small = small_copy(found.pictures[0].path, self._shown_dir / "earlier", EARLIER_PX)
            if small is not None:
                shown.append((found, str(small)))
        return tuple(shown)

    def earlier_results(self, chosen: Earlier) -> Results:
        """One of ``earlier`` as copies in the private folder. Raises StoreError."""
        summary = f"{_matched(chosen.pictures, chosen.person)} Made on {chosen.day}."
        target = self._shown_dir / f"{chosen.person}-{chosen.folder.name}"
        return _packed(chosen.pictures, chosen.person, chosen.folder / SHEET_NAME, target, summary)

    def _dataset_dir(self, job: Job) -> Path:
        return self._store.dataset_dir(self._watched[job.id].spec.prepare.person)


def _real_load_dataset(folder: Path) -> Dataset:
    from headshot_ui.dataset.prepare import load_dataset

    return load_dataset(folder)


def _note(watched: _Watched, now: Snapshot) -> None:
    """Called for every snapshot, on the worker thread."""
    if now.stage and now.stage not in watched.stages:
        watched.stages.append(now.stage)
    loss = now.metrics.get("loss")
    if loss is None:
        return
    watched.loss_stage = watched.loss_stage or now.stage
    # Metrics stay while later stages report none, so the stage and a rising step tell which losses are new.
    if now.stage == watched.loss_stage and (not watched.losses or now.step > watched.losses[-1][0]):
        watched.losses.append((now.step, float(loss)))
        if len(watched.losses) > CURVE_POINTS:
            watched.losses[:] = watched.losses[::2]


def _below(now: Snapshot) -> str:
    if now.state == "cancelled":
        return CANCELLED
    return "" if now.eta_s is None else f"about {format_seconds(now.eta_s)} left in this step"


def _headline(job: Job, now: Snapshot) -> str:
    if now.finished:
        return {"done": "Done", "failed": "This did not work", "cancelled": "Cancelled"}[now.state]
    if job.cancel_requested:
        return "Cancelling …"
    return now.stage or ("Waiting for another job to end" if now.state == "queued" else "Starting")


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential mean: single batches are so noisy that the trend would not show."""
    mean, smooth = values[0], []
    for value in values:
        mean += 0.1 * (value - mean)
        smooth.append(mean)
    return smooth


def caption(picture: Picture) -> str:
    """Likeness and look of one picture."""
    if picture.likeness is None:
        return picture.title
    if picture.likeness.reason:
        return f"{picture.title} (not ranked: {picture.likeness.reason})"
    return f"{picture.likeness.percent:.0f} % likeness · {picture.title}"


def _results_of_job(made: HeadshotsResult, target: Path) -> Results:
    sheet = save_contact_sheet(made, f"Headshots of {made.dataset.person}")
    summary = _summary(made)
    return _packed(made.generated.pictures, made.dataset.person, sheet, target, summary)


def _packed(pictures: Sequence[Picture], person: str, sheet: Path, target: Path, summary: str) -> Results:
    """Copies of the pictures, and a zip of them and the contact sheet, in ``target``. Raises StoreError."""
    archive = target / f"{person}-headshots.zip"
    shown = []
    with told_plainly(target, "written"):
        target.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as packed:  # PNGs do not get smaller
            if sheet.is_file():
                packed.write(sheet, sheet.name)
            for picture in pictures:
                packed.write(picture.path, picture.path.name)
                shown.append((str(shutil.copy2(picture.path, target / picture.path.name)), caption(picture)))
    folder = str(pictures[0].path.parent) if pictures else ""
    return Results(tuple(shown), str(archive), data_uri(sheet, SHEET_PX), folder, summary)


def _summary(made: HeadshotsResult) -> str:
    before, after = made.before, made.after
    if before is None or after is None:
        return f"{len(made.generated.pictures)} pictures."
    return (
        f"{after.matched} of {after.pictures} pictures look like {made.dataset.person}; "
        f"before training it was {before.matched} of {before.pictures}."
    )


def _matched(pictures: Sequence[Picture], person: str) -> str:
    measured = [picture.likeness for picture in pictures if picture.likeness is not None]
    if not measured:
        return f"{len(pictures)} pictures."
    return f"{sum(likeness.matched for likeness in measured)} of {len(measured)} pictures look like {person}."
