"""Wires everything: a request goes in, a job comes out, and one worker thread per lane does the work.

The page and the commands see only this. What the stages do is in ``dataset``, ``training``, ``generation``,
``restoration`` and ``export``; the order in which they are called is in ``engine_runners``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from headshot_ui.card_state import has_lost_card
from headshot_ui.card_words import LOST_BEFORE, card_lost
from headshot_ui.engine_runners import (
    HeadshotsResult,
    LikenessCount,
    count_likeness,
    run_export,
    run_fetch,
    run_generate,
    run_headshots,
    run_prepare,
    run_restore,
    run_train,
)
from headshot_ui.errors import DeviceError, HeadshotError, StoreError
from headshot_ui.forecast import Forecast, forecast
from headshot_ui.jobs import DESK, FETCH, MAIN, Job, JobQueue, Reporter
from headshot_ui.logs import explain, start_log
from headshot_ui.meter import StageMeter
from headshot_ui.parts import Parts, real_parts
from headshot_ui.peaks import Peaks
from headshot_ui.runs import list_runs, now_utc, recover_runs
from headshot_ui.settings import Settings
from headshot_ui.specs import (
    DownloadSpec,
    ExportSpec,
    GenerateSpec,
    HeadshotsSpec,
    PrepareSpec,
    RestoreSpec,
    Spec,
    TrainSpec,
)
from headshot_ui.store import Store, remove_leftovers
from headshot_ui.wording import listed
from headshot_ui.workshop import JobContext, SharedParts, Workshop

__all__ = [
    "TASKS",
    "Engine",
    "HeadshotsResult",
    "LikenessCount",
    "Parts",
    "Task",
    "count_likeness",
    "person_of",
    "real_parts",
    "title_of",
]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """How one kind of request is named and run."""

    kind: str
    verb: str
    run: Callable[[Workshop, Any, JobContext], Any]
    lane: str = MAIN


TASKS: Mapping[type[Spec], Task] = {
    PrepareSpec: Task("prepare", "Preparing the photos of", run_prepare),
    TrainSpec: Task("train", "Learning", run_train),
    GenerateSpec: Task("generate", "Drawing headshots of", run_generate),
    RestoreSpec: Task("restore", "Restoring pictures of", run_restore),
    ExportSpec: Task("export", "Exporting pictures of", run_export, DESK),  # never waits behind a training
    HeadshotsSpec: Task("headshots", "Making headshots of", run_headshots),
    DownloadSpec: Task("download", "Downloading", run_fetch, FETCH),  # nor this, and it holds no device
}


class Engine:
    """One per process. All methods may be called from any thread; none of them waits for the GPU but ``close``."""

    def __init__(self, settings: Settings, parts: Callable[[], Parts] = real_parts) -> None:
        self.settings = settings
        self.store = Store(settings)
        self.log_file = start_log(settings)
        self._parts = SharedParts(parts)
        self._peaks = Peaks(settings.outputs_dir)
        at_the_desk = replace(settings, wanted_device="cpu", wanted_dtype="auto", vram_limit_bytes=None)
        self._shops = {
            MAIN: Workshop(settings, self.store, self._parts, self._peaks),
            DESK: Workshop(at_the_desk, Store(at_the_desk), self._parts, self._peaks),
            FETCH: Workshop(at_the_desk, Store(at_the_desk), self._parts, self._peaks),
        }
        self._queue = JobQueue(explain)
        self._persons: dict[str, str] = {}
        self.card_lost = ""  # a sentence once the card has failed: no job that needs it is begun any more
        self._tidy_up()

    def submit(self, spec: Spec) -> Job:
        """Line the request up and return its job at once; the job's result is that of its runner."""
        return self.submit_task(TASKS[type(spec)], spec, person_of(spec), title_of(spec))

    def submit_task(self, task: Task, spec: Any, person: str, title: str = "") -> Job:
        """Line up work of any kind: ``task.run`` is called with ``spec`` on the thread of its lane."""

        def runner(report: Reporter) -> Any:
            if self.card_lost and task.lane == MAIN:
                raise DeviceError(self.card_lost)
            began = now_utc()
            try:
                return task.run(self._shops[task.lane], spec, JobContext(report, StageMeter()))
            except Exception as error:
                if not has_lost_card(error):
                    raise
                self.card_lost = LOST_BEFORE
                raise DeviceError(self._told_of_lost_card(person, began)) from error

        job = self._queue.submit(task.kind, title or f"{task.verb} {person}", runner, task.lane)
        self._persons[job.id] = person
        return job

    def _told_of_lost_card(self, person: str, began: str) -> str:
        """With the training that the job worked on, if it has steps to go on from."""
        runs = list_runs(self.store, person) if person else ()
        broken = next((run for run in runs if run.changed >= began and run.state != "done" and run.step), None)
        folder = self.store.person_dir(person) if person else self.store.people_dir
        return card_lost(person, folder, broken.name, broken.step) if broken else card_lost(person, folder)

    def forecast(self, spec: Spec) -> Forecast:
        """What the request will need, and whether that fits; starts nothing, and takes milliseconds.

        A moment more where others hold much of the card: then the driver is asked, at most once in ten seconds, who
        they are. Raises ModelError, SpecError and the like when it cannot be carried out at all, and DeviceError.
        """
        settings = self._shops[TASKS[type(spec)].lane].settings
        return forecast(spec, settings, self._parts(), self._peaks)

    def current(self) -> Job | None:
        """The job that runs now; the one on the device where an export runs beside it."""
        return self._queue.current()

    def jobs(self) -> tuple[Job, ...]:
        """Waiting, running and lately finished jobs, oldest first."""
        return self._queue.jobs()

    def find_job(self, job_id: str) -> Job | None:
        """A job by its id, for a page that was reloaded."""
        return self._queue.find(job_id)

    def position(self, job_id: str) -> int:
        """Place in line: 1 begins next, 2 after it …; 0 when the job does not wait. See wording.place_in_line."""
        return self._queue.position(job_id)

    def ahead_of(self, job_id: str) -> tuple[Job, ...]:
        """The jobs a waiting one waits for, the running one first."""
        return self._queue.ahead_of(job_id)

    def cancel(self, job_id: str | None = None) -> bool:
        """Cancel that job, or the running one; False when there is none to cancel."""
        return self._queue.cancel(job_id)

    def delete_person(self, person: str) -> tuple[Path, ...]:
        """Remove everything about a person; the files removed. Raises StoreError while a job works on them."""
        if any(self._persons.get(job.id) == person and not job.snapshot.finished for job in self.jobs()):
            raise StoreError(f"A job of “{person}” is not finished: cancel it first, then delete.")
        return self.store.delete_person(person)

    def close(self) -> None:
        """Cancel everything, wait for the workers and drop the models."""
        if self._queue.close():
            for shop in self._shops.values():
                shop.residency.evict()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tidy_up(self) -> None:
        """After a crash: say so in the runs that were interrupted, and remove half-written files."""
        try:
            for run in recover_runs(self.store):
                _log.info("The run %s was interrupted at step %d", run.folder, run.step)
            remove_leftovers(self.store.people_dir)
        except (HeadshotError, OSError) as error:
            _log.warning("Tidying up failed: %s", error)


def title_of(spec: Spec) -> str:
    """What a request does and for whom, for people."""
    if isinstance(spec, DownloadSpec):
        return f"{'Checking' if spec.check_only else TASKS[DownloadSpec].verb} {listed(spec.entries)}"
    return f"{TASKS[type(spec)].verb} {person_of(spec)}"


def person_of(spec: Spec) -> str:
    """Whom a request is about; "" for one that is about nobody."""
    return spec.prepare.person if isinstance(spec, HeadshotsSpec) else str(getattr(spec, "person", ""))
