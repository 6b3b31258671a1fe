"""The jobs as the page shows them, worked out without gradio: progress, loss curve, newest picture, the queue.

The engine keeps the jobs, so a page that is reloaded, or opened a second time, finds them again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from headshot_ui.card_state import unused_card
from headshot_ui.engine import person_of
from headshot_ui.store import Store
from headshot_ui.ui.outcomes import Outcome, outcome_of
from headshot_ui.ui.thumbnails import data_uri

if TYPE_CHECKING:
    from headshot_ui.jobs import Job, Snapshot
    from headshot_ui.settings import Settings
    from headshot_ui.specs import Spec

CURVE_POINTS = 400  # more cannot be told apart on a screen
CURVE_WIDTH, CURVE_HEIGHT = 600, 180  # of the template's viewBox
PREVIEW_PX = 512
FINISHED_SHOWN = 3
#: What the drawing stage shows while pictures are still noise; a finished one has a name of its own.
UNFINISHED = "preview.png"
CANCELLED = "What was finished is kept."

_log = logging.getLogger(__name__)


class EngineLike(Protocol):
    """What the page needs of the engine."""

    def submit(self, spec: Spec) -> Job: ...
    def jobs(self) -> tuple[Job, ...]: ...
    def ahead_of(self, job_id: str) -> tuple[Job, ...]: ...
    def cancel(self, job_id: str | None = None) -> bool: ...
    def delete_person(self, person: str) -> tuple[Path, ...]: ...


@dataclass
class _Watched:
    """What is gathered about one job while it runs."""

    spec: Spec
    started_s: float  # seconds since 1970, as file times are
    stages: list[str] = field(default_factory=list)
    losses: list[tuple[int, float]] = field(default_factory=list)
    loss_stage: str = ""
    outcome: Outcome | None = None
    dismissed: bool = False


class Live:
    """One per program; all browsers look through it. ``shown_dir`` is the private folder files are handed out from."""

    def __init__(self, engine: EngineLike, settings: Settings, shown_dir: Path) -> None:
        self._engine = engine
        self._store = Store(settings)
        self._shown_dir = shown_dir
        self._watched: dict[str, _Watched] = {}
        self._named: set[str] = set()
        self._gone: set[str] = set()  # deleted and not added again
        self._lock = threading.Lock()
        self._settings = settings
        self._card_told: tuple[bool, str] | None = None

    # --- doing -----------------------------------------------------------------------------------
    def submit(self, spec: Spec) -> Job:
        """Line the request up. Where an equal one is not finished, that job is returned. Raises HeadshotError."""
        with self._lock:  # two clicks, or two pages, start one job
            for job in self.jobs():
                unfinished = not job.snapshot.finished and not job.cancel_requested
                if unfinished and self._watched[job.id].spec == spec:
                    return job
            job = self._engine.submit(spec)
            watched = self._watched[job.id] = _Watched(spec, time.time())
        job.subscribe(lambda snapshot: _note(watched, snapshot))
        return job

    def cancel(self, job_id: str | None = None) -> bool:
        """Cancel that job, or the running one; what is finished is kept. False when there was nothing to cancel."""
        return self._engine.cancel(job_id)

    def dismiss(self, job_id: str) -> None:
        """Take a finished job off the bar, in every browser."""
        watched = self._watched.get(job_id)
        if watched is not None:
            watched.dismissed = True

    def forget(self, person: str) -> None:
        """A deleted person is no longer listed, not even when a page that has not heard of it yet asks."""
        self._gone.add(person)
        self._named.discard(person)

    def welcome(self, person: str) -> None:
        """Somebody was added: list them, also where one of that name was deleted."""
        self._gone.discard(person)
        self._named.add(person)

    # --- looking ---------------------------------------------------------------------------------
    def jobs(self) -> tuple[Job, ...]:
        """Waiting, running and lately finished jobs of the page, oldest first."""
        return tuple(job for job in self._engine.jobs() if job.id in self._watched)

    def people(self, chosen: str = "") -> list[str]:
        """Everybody on disk, and whoever was chosen since the program began: nothing may be kept of them yet."""
        if chosen and chosen not in self._gone:
            self._named.add(chosen)
        return sorted({*self._store.people(), *tuple(self._named)})

    def newest(self, person: str, kind: str) -> Job | None:
        """The newest job of that person and kind ("prepare", "train", "generate", "headshots", …), finished or not."""
        mine = (job for job in reversed(self.jobs()) if job.snapshot.kind == kind and self.person_of(job) == person)
        return next(mine, None)

    def find(self, job_id: str) -> Job | None:
        return next((job for job in self.jobs() if job.id == job_id), None)

    def unfinished(self, person: str = "") -> tuple[Job, ...]:
        """Running and waiting jobs, of one person or of everybody."""
        return tuple(
            job for job in self.jobs() if not job.snapshot.finished and person in ("", self.person_of(job))
        )  # fmt: skip

    def spec_of(self, job: Job) -> Spec:
        """The request the job was started with."""
        return self._watched[job.id].spec

    def person_of(self, job: Job) -> str:
        """Whom the job is about."""
        return person_of(self._watched[job.id].spec)

    def started_s(self, job: Job) -> float:
        """When the job was lined up, in seconds since 1970."""
        return self._watched[job.id].started_s

    def progress(self, job: Job) -> dict[str, Any]:
        """One job for a template: title, state, stage, past stages, steps, percent, time left, error."""
        now = job.snapshot
        stages = list(self._watched[job.id].stages)
        percent = 100 if now.state == "done" else round(100 * now.step / now.total) if now.total else 0
        return {
            "id": job.id,
            "kind": now.kind,
            "title": now.title,
            "state": now.state,
            "stage": _headline(job, now),
            "past": stages if now.state == "done" else stages[: stages.index(now.stage)] if now.stage in stages else [],
            "steps": f"{now.step} of {now.total}" if now.total and not now.finished else "",
            "percent": percent,
            "left": _below(now),
            "error": now.error or "",
            "running": not now.finished,
            "cancelling": job.cancel_requested and not now.finished,
        }

    def bar(self) -> dict[str, Any]:
        """Everything the job bar shows: what runs, what waits and behind what, what lately ended, a card in trouble."""
        jobs = self.jobs()
        bar = {
            "card": self._card(),
            "running": [self.progress(job) for job in jobs if job.snapshot.state == "running"],
            "waiting": [self._waiting(job) for job in jobs if job.snapshot.state == "queued"],
            "finished": [self._finished(job) for job in self._lately_finished(jobs)],
        }
        return {**bar, "shown": any(bar.values())}

    def _card(self) -> str:
        """What is wrong with the graphics card, for as long as it is; "" mostly. Never loads torch."""
        known = "device" in vars(self._settings)  # then torch was asked, and its answer stays
        if self._card_told is None or self._card_told[0] != known:
            self._card_told = known, unused_card(self._settings)
        return str(getattr(self._engine, "card_lost", "")) or self._card_told[1]

    def outcome(self, job: Job) -> Outcome:
        """What a finished job says, where its results lie, and on which tab."""
        watched = self._watched[job.id]
        with self._lock:
            if watched.outcome is None:
                watched.outcome = outcome_of(job.snapshot)
            return watched.outcome

    def curve(self, job: Job) -> dict[str, Any]:
        """Values of the loss-curve template; ``line`` is "" before there are two points."""
        return curve_values(list(self._watched[job.id].losses))

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

    def _waiting(self, job: Job) -> dict[str, Any]:
        ahead = [other.snapshot.title for other in self._engine.ahead_of(job.id)]
        place = "next in line" if len(ahead) < 2 else f"{_ordinal(len(ahead))} in line"
        behind = f"; behind: {', '.join(ahead)}" if ahead else ""
        return {**self.progress(job), "place": f"Waiting, {place}{behind}"}

    def _lately_finished(self, jobs: Sequence[Job]) -> list[Job]:
        """What nobody dismissed, newest first: failures, and of each person what ended last, until the next begins."""
        shown: list[Job] = []
        known: set[str] = set()
        for job in reversed(jobs):
            now, person = job.snapshot, self.person_of(job)
            news = now.state == "failed" or person not in known
            if now.finished and news and not self._watched[job.id].dismissed:
                shown.append(job)
            known.add(person)
        return shown[:FINISHED_SHOWN]

    def _finished(self, job: Job) -> dict[str, Any]:
        told = self.outcome(job)
        return {"id": job.id, "state": job.snapshot.state, "title": job.snapshot.title, "text": told.text,
                "folder": told.folder, "tab": told.tab}  # fmt: skip


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


def curve_values(losses: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """(step, loss) pairs as values of the loss-curve template; ``line`` is "" before there are two points."""
    if len(losses) < 2:
        return {"line": "", "last": "", "low": "", "high": "", "steps": ""}
    smooth = _smoothed([loss for _, loss in losses])
    low, high = min(smooth), max(smooth)
    last_step = losses[-1][0]
    points = [
        f"{CURVE_WIDTH * step / max(1, last_step):.1f},{10 + 160 * (high - value) / max(high - low, 1e-9):.1f}"
        for (step, _), value in zip(losses, smooth, strict=True)
    ]
    return {"line": " ".join(points), "last": f"{smooth[-1]:.4f}", "low": f"{low:.3f}", "high": f"{high:.3f}",
            "steps": str(last_step)}  # fmt: skip


def plain_time(seconds: float) -> str:
    """A stretch of time as one would say it: "a few seconds", "about 4 minutes", "about 1 hour 20 minutes"."""
    if seconds < 10:
        return "a few seconds"
    if seconds < 50:
        return "less than a minute"
    minutes = max(1, round(seconds / 60))
    if minutes < 60:
        return f"about {minutes} minute{'s' * (minutes > 1)}"
    hours, rest = divmod(5 * round(minutes / 5), 60)
    return f"about {hours} hour{'s' * (hours > 1)}" + (f" {rest} minutes" if rest else "")


def _below(now: Snapshot) -> str:
    if now.state == "cancelled":
        return CANCELLED
    return "" if now.eta_s is None else f"{plain_time(now.eta_s).capitalize()} left for this part"


def _headline(job: Job, now: Snapshot) -> str:
    if now.finished:
        return {"done": "Done", "failed": "This did not work", "cancelled": "Cancelled"}[now.state]
    if job.cancel_requested:
        return "Cancelling …"
    return now.stage or ("Waiting for another job to end" if now.state == "queued" else "Starting")


def _ordinal(number: int) -> str:
    ending = "th" if 10 < number % 100 < 14 else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


def _smoothed(values: Sequence[float]) -> list[float]:
    """Exponential mean: single batches are so noisy that the trend would not show."""
    mean, smooth = values[0], []
    for value in values:
        mean += 0.1 * (value - mean)
        smooth.append(mean)
    return smooth
