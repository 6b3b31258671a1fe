"""Worker threads, jobs that report and can be cancelled, and frozen snapshots of them.

Each lane of the queue has one thread: MAIN owns the device, DESK does what needs none, FETCH waits for the network.

A job is queued → running → done, failed or cancelled; the last three are final. Only the
standard library is used, so that a test needs no model and a page needs no torch.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

from headshot_ui.errors import Cancelled, HeadshotError

State = Literal["queued", "running", "done", "failed", "cancelled"]
TERMINAL: frozenset[str] = frozenset({"done", "failed", "cancelled"})
FINISHED_JOBS_KEPT = 50
MAIN, DESK, FETCH = "main", "desk", "fetch"
LANES = (MAIN, DESK, FETCH)

_log = logging.getLogger(__name__)


class Reporter(Protocol):
    """The only channel out of a runner, and the way a cancel comes in."""

    def __call__(
        self,
        stage: str,
        step: int,
        total: int,
        preview: Path | None = None,
        metrics: Mapping[str, float] | None = None,
        note: str | None = None,
    ) -> None:
        """Tell that ``step`` of ``total`` steps of ``stage`` are finished. Raises Cancelled after a cancel.

        ``preview`` and ``metrics`` stay as they were when left out. ``note`` is one sentence that a person should
        still read when the job has ended, such as what was left out and why; it is kept with those before it.
        """


Runner = Callable[[Reporter], Any]


@dataclass(frozen=True)
class Snapshot:
    """A job at one moment. ``version`` rises with every change; ``eta_s`` is for the present stage."""

    job_id: str
    kind: str
    title: str
    state: State = "queued"
    stage: str = ""
    step: int = 0
    total: int = 0
    eta_s: float | None = None
    preview: Path | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    result: Any = None
    error: str | None = None
    notes: tuple[str, ...] = ()  # sentences to read at the end, in the order they came
    version: int = 0

    def __post_init__(self) -> None:
        if (self.result is not None) != (self.state == "done"):
            raise ValueError("a job has a result exactly when it is done")
        if (self.error is not None) != (self.state == "failed"):
            raise ValueError("a job has an error exactly when it failed")

    @property
    def finished(self) -> bool:
        """True in the three final states."""
        return self.state in TERMINAL


@dataclass
class _Pace:
    """Smoothed seconds per step of one stage."""

    step: int
    at_s: float
    seconds_per_step: float | None = None
    samples: int = 0


class _Eta:
    """Time left in the present stage, from an exponential mean of its seconds per step."""

    def __init__(self) -> None:
        self._paces: dict[str, _Pace] = {}
        self._stage = ""

    def update(self, stage: str, step: int, total: int, now_s: float) -> float | None:
        pace = self._paces.get(stage)
        if pace is None or step < pace.step:
            pace = self._paces[stage] = _Pace(step, now_s)
        elif step > pace.step:
            if stage == self._stage:  # time spent in another stage in between says nothing about this one
                self._add(pace, (now_s - pace.at_s) / (step - pace.step))
            pace.step, pace.at_s = step, now_s
        elif stage != self._stage:
            pace.at_s = now_s
        self._stage = stage
        if pace.seconds_per_step is None or total <= 0:
            return None
        return max(0, total - step) * pace.seconds_per_step

    @staticmethod
    def _add(pace: _Pace, seconds: float) -> None:
        pace.samples += 1
        weight = max(0.1, 1 / pace.samples)  # a plain mean of the first ten, then exponential
        old = pace.seconds_per_step or 0.0
        pace.seconds_per_step = old + weight * (seconds - old)


Callback = Callable[[Snapshot], None]


class Job:
    """A queued, running or finished piece of work. All methods may be called from any thread."""

    def __init__(self, kind: str, title: str, clock: Callable[[], float] = time.monotonic, lane: str = MAIN) -> None:
        self.lane = lane
        self._lock = threading.Lock()
        self._snapshot = Snapshot(job_id=uuid.uuid4().hex[:12], kind=kind, title=title)
        self._cancel = threading.Event()
        self._finished = threading.Event()
        self._eta = _Eta()
        self._clock = clock
        self._callbacks: list[Callback] = []
        self._undelivered: deque[tuple[tuple[Callback, ...], Snapshot]] = deque()
        self._delivering = False

    @property
    def id(self) -> str:
        return self._snapshot.job_id

    @property
    def snapshot(self) -> Snapshot:
        return self._snapshot

    @property
    def cancel_requested(self) -> bool:
        return self._cancel.is_set()

    def report(
        self,
        stage: str,
        step: int,
        total: int,
        preview: Path | None = None,
        metrics: Mapping[str, float] | None = None,
        note: str | None = None,
    ) -> None:
        """See Reporter. Raises Cancelled once ``cancel`` was called."""
        if self._cancel.is_set():
            raise Cancelled
        with self._lock:
            old = self._snapshot
            if old.state != "running":
                return
            self._put(
                replace(
                    old,
                    stage=stage,
                    step=step,
                    total=total,
                    eta_s=self._eta.update(stage, step, total, self._clock()),
                    preview=old.preview if preview is None else preview,
                    metrics=old.metrics if metrics is None else dict(metrics),
                    notes=old.notes if note is None or note in old.notes else (*old.notes, note),
                )
            )
        self._deliver()

    def cancel(self) -> None:
        """A queued job is cancelled at once, a running one at its next report, a finished one not at all."""
        self._cancel.set()
        self._change_state("cancelled", only_from="queued")

    def wait(self, timeout: float | None = None) -> Snapshot:
        """Wait until the job is finished and its subscribers know, or ``timeout`` seconds; the present snapshot."""
        self._finished.wait(timeout)
        return self._snapshot

    def subscribe(self, callback: Callback) -> Callable[[], None]:
        """Call ``callback`` with the present snapshot and every later one, in order; returns how to stop it.

        Callbacks run on the thread that made the change, so they must be quick. What they raise is logged.
        """
        with self._lock:
            self._callbacks.append(callback)
            self._undelivered.append(((callback,), self._snapshot))
        self._deliver()

        def unsubscribe() -> None:
            with self._lock:
                if callback in self._callbacks:
                    self._callbacks.remove(callback)

        return unsubscribe

    # --- for the queue --------------------------------------------------------------------------
    def start(self) -> bool:
        """Queued → running; False when it was cancelled before."""
        return self._change_state("running", only_from="queued")

    def finish(self, state: State, result: Any = None, error: str | None = None) -> None:
        """Running → a final state."""
        self._change_state(state, only_from="running", result=result, error=error)

    def _change_state(self, state: State, only_from: State, result: Any = None, error: str | None = None) -> bool:
        with self._lock:
            if self._snapshot.state != only_from:
                return False
            self._put(replace(self._snapshot, state=state, result=result, error=error, eta_s=None))
        self._deliver()
        return True

    def _put(self, snapshot: Snapshot) -> None:
        """With the lock held: make it the present snapshot and line it up for the subscribers."""
        self._snapshot = replace(snapshot, version=self._snapshot.version + 1)
        self._undelivered.append((tuple(self._callbacks), self._snapshot))

    def _deliver(self) -> None:
        """Hand out what is lined up. One thread at a time keeps the order, and no lock is held meanwhile."""
        with self._lock:
            if self._delivering:
                return
            self._delivering = True
        try:
            while self._deliver_next():
                pass
        except BaseException:  # Ctrl-C inside a callback: the next change must still be delivered
            with self._lock:
                self._delivering = False
            raise

    def _deliver_next(self) -> bool:
        with self._lock:
            if not self._undelivered:
                self._delivering = False
                return False
            callbacks, snapshot = self._undelivered.popleft()
        try:
            for callback in callbacks:
                try:
                    callback(snapshot)
                except Exception:
                    _log.exception("A subscriber of job %s failed", snapshot.job_id)
        finally:
            if snapshot.finished:
                self._finished.set()
        return True


def plain_sentence(error: BaseException) -> str:
    """What a failed job says when no better explanation is plugged in."""
    return str(error) if isinstance(error, HeadshotError) else f"{type(error).__name__}: {error}"


@dataclass
class _Lane:
    """One thread and what waits for it."""

    waiting: deque[tuple[Job, Runner]] = field(default_factory=deque)
    thread: threading.Thread | None = None


class JobQueue:
    """Runs the jobs of each lane one after the other on a thread of their own, in the order they came."""

    def __init__(
        self,
        explain: Callable[[BaseException], str] = plain_sentence,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._explain = explain
        self._clock = clock
        self._changed = threading.Condition()
        self._lanes = {name: _Lane() for name in LANES}
        self._jobs: list[Job] = []
        self._closed = False

    def submit(self, kind: str, title: str, runner: Runner, lane: str = MAIN) -> Job:
        """Line up ``runner(report) -> result`` (result not None). Raises HeadshotError after ``close``."""
        job = Job(kind, title, self._clock, lane)
        with self._changed:
            if self._closed:
                raise HeadshotError("The program is closing down: start it again to go on.")
            self._jobs.append(job)
            self._forget_oldest()
            own = self._lanes[lane]
            own.waiting.append((job, runner))
            if own.thread is None:  # a daemon, so that a program that forgets close() still ends
                own.thread = threading.Thread(target=self._work, args=(own,), name=f"headshot-{lane}", daemon=True)
                own.thread.start()
            self._changed.notify_all()
        return job

    def current(self) -> Job | None:
        """The running job; that of the main lane where both have one."""
        running = [job for job in self.jobs() if job.snapshot.state == "running"]
        return min(running, key=lambda job: LANES.index(job.lane), default=None)

    def jobs(self) -> tuple[Job, ...]:
        """All waiting and running jobs and the latest finished ones, oldest first."""
        with self._changed:
            return tuple(self._jobs)

    def find(self, job_id: str) -> Job | None:
        """The job with this id, if it is still remembered."""
        return next((job for job in self.jobs() if job.id == job_id), None)

    def ahead_of(self, job_id: str) -> tuple[Job, ...]:
        """The jobs that end before this one begins, the running one first; () when it does not wait."""
        job = self.find(job_id)
        if job is None or job.snapshot.state != "queued":
            return ()
        lane = [other for other in self.jobs() if other.lane == job.lane]
        return tuple(other for other in lane[: lane.index(job)] if not other.snapshot.finished)

    def position(self, job_id: str) -> int:
        """Place in line: 1 for the job that begins next, 2 for the one after it …; 0 when it does not wait."""
        job = self.find(job_id)
        if job is None or job.snapshot.state != "queued":
            return 0
        return 1 + sum(other.snapshot.state == "queued" for other in self.ahead_of(job_id))

    def cancel(self, job_id: str | None = None) -> bool:
        """Cancel that job, or the running one; False when there is none to cancel."""
        job = self.current() if job_id is None else self.find(job_id)
        if job is None or job.snapshot.finished:
            return False
        job.cancel()
        return True

    def close(self, timeout: float | None = None) -> bool:
        """Cancel everything and wait for the threads; False when one did not end within ``timeout`` seconds."""
        with self._changed:
            self._closed = True
            jobs, threads = tuple(self._jobs), [lane.thread for lane in self._lanes.values()]
            self._changed.notify_all()
        for job in jobs:
            if not job.snapshot.finished:
                job.cancel()
        until = None if timeout is None else time.monotonic() + timeout
        others = [thread for thread in threads if thread is not None and thread is not threading.current_thread()]
        for thread in others:
            thread.join(None if until is None else max(0.0, until - time.monotonic()))
        return not any(thread.is_alive() for thread in others)

    def _forget_oldest(self) -> None:
        finished = [job for job in self._jobs if job.snapshot.finished]
        for job in finished[: max(0, len(finished) - FINISHED_JOBS_KEPT)]:
            self._jobs.remove(job)

    def _work(self, lane: _Lane) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: lane.waiting or self._closed)
                if not lane.waiting:
                    return
                job, runner = lane.waiting.popleft()
            if job.start():
                self._run(job, runner)
            del job, runner  # a waiting thread must not keep the last job's models alive

    def _run(self, job: Job, runner: Runner) -> None:
        try:
            if job.cancel_requested:
                raise Cancelled
            result = runner(job.report)
            if result is None:
                raise TypeError(f"the runner of “{job.snapshot.title}” returned nothing")
        except Cancelled:
            job.finish("cancelled")
        except BaseException as error:  # whatever it is, the thread and the queue go on
            job.finish("failed", error=self._sentence(error))
        else:
            job.finish("done", result=result)

    def _sentence(self, error: BaseException) -> str:
        try:
            return self._explain(error)
        except Exception:
            _log.exception("Explaining an error failed")
            return plain_sentence(error)
