"""Submit one request to the engine, show its progress, and turn its end into a result or an exception."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TextIO

from headshot_ui.commands.output import progress_stream
from headshot_ui.commands.progress import ProgressPrinter
from headshot_ui.commands.spec_options import DEFAULT_BASE
from headshot_ui.errors import Cancelled, HeadshotError
from headshot_ui.store import Store

if TYPE_CHECKING:
    from headshot_ui.engine import Engine
    from headshot_ui.jobs import Job, Snapshot
    from headshot_ui.runs import Run
    from headshot_ui.settings import Settings
    from headshot_ui.specs import Spec

_POLL_S = 0.2


@dataclass(frozen=True)
class Context:
    """What every command is given: where things lie, how to say things, and the engine's maker (a fake in tests)."""

    settings: Settings
    as_json: bool
    make_engine: Callable[[Settings], Engine]

    @property
    def progress_stream(self) -> TextIO:
        return progress_stream(self.as_json)

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """An engine that is closed at the end, whatever happens."""
        engine = self.make_engine(self.settings)
        try:
            yield engine
        finally:
            engine.close()


def run_alone(context: Context, spec: Spec) -> Any:
    """Open an engine for one request and return its result. Raises as ``run_job``."""
    with context.engine() as engine:
        return run_job(engine, spec, context.progress_stream)


@contextmanager
def telling_how_to_go_on(context: Context, person: str) -> Iterator[None]:
    """When training breaks off within the block, say on standard error how to continue it from its checkpoint."""
    began = datetime.now(UTC).isoformat(timespec="microseconds")
    try:
        yield
    except (Cancelled, HeadshotError):
        run = _broken_off(Store(context.settings), person, began)
        if run is not None:
            base = "" if run.spec.base == DEFAULT_BASE else f" --base {run.spec.base}"
            command = f"train --person {person}{base} --run {run.name}"
            print(f"{run.step} of {run.total} steps are kept; go on with: {command}", file=sys.stderr, flush=True)
        raise


def _broken_off(store: Store, person: str, began: str) -> Run | None:
    """The run that was worked on since ``began`` (UTC, ISO 8601) and has steps to go on from."""
    from headshot_ui.runs import list_runs

    runs = (run for run in list_runs(store, person) if run.changed >= began)
    return next((run for run in runs if run.state != "done" and run.step), None)


def run_job(engine: Engine, spec: Spec, stream: TextIO) -> Any:
    """The result of ``spec``, with progress on ``stream``.

    Raises HeadshotError with the job's own sentence when it fails and Cancelled when the person pressed
    Ctrl-C: the first press lets the job stop cleanly, a second one ends the program at once.
    """
    printer = ProgressPrinter(stream)
    job = engine.submit(spec)
    news: SimpleQueue[Snapshot] = SimpleQueue()
    job.subscribe(news.put)  # starts with the present state and ends with a finished one
    try:
        last = _follow(news, printer)
    except KeyboardInterrupt:
        printer.say("Cancelling: what is finished is kept. Press Ctrl-C again to stop at once.")
        last = _stop(job, news, printer)
    printer.finish()
    if last.state == "failed":
        raise HeadshotError(last.error or "The job failed without saying why.")
    if last.state == "cancelled":
        raise Cancelled
    return last.result


def _follow(news: SimpleQueue[Snapshot], printer: ProgressPrinter) -> Snapshot:
    while True:
        try:
            now = news.get(timeout=_POLL_S)  # a wait without timeout would not notice Ctrl-C on Windows
        except Empty:
            continue
        if now.finished:
            return now
        printer.show(now)


def _stop(job: Job, news: SimpleQueue[Snapshot], printer: ProgressPrinter) -> Snapshot:
    try:
        job.cancel()
        return _follow(news, printer)
    except KeyboardInterrupt:
        printer.finish()
        print("Stopped at once.", file=sys.stderr, flush=True)
        os._exit(130)  # the worker thread may be deep inside a computation that cannot be interrupted
