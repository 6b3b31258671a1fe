"""Submit one request to the engine, show its progress, and turn its end into a result or an exception."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TextIO

from headshot_ui.card_state import unused_card
from headshot_ui.card_words import MEANWHILE
from headshot_ui.commands.output import print_json, progress_stream
from headshot_ui.commands.progress import ProgressPrinter
from headshot_ui.errors import Cancelled, HeadshotError
from headshot_ui.forecast import forecast_lines
from headshot_ui.lock import hold
from headshot_ui.settings import Settings
from headshot_ui.specs import DownloadSpec, ExportSpec, GenerateSpec, HeadshotsSpec, RestoreSpec, TrainSpec
from headshot_ui.store import Store

if TYPE_CHECKING:
    from headshot_ui.engine import Engine
    from headshot_ui.forecast import Forecast
    from headshot_ui.jobs import Job, Snapshot
    from headshot_ui.runs import Run
    from headshot_ui.specs import Spec

#: Requests whose plan is worth telling before they start.
LONG = (TrainSpec, GenerateSpec, HeadshotsSpec, RestoreSpec)
#: Requests that disturb nobody; a download keeps others out of the models folder by itself.
WITHOUT_DEVICE = (ExportSpec, DownloadSpec)
_POLL_S = 0.2


@dataclass(frozen=True)
class Context:
    """What every command is given: where things lie, how to say things, and the engine's maker (a fake in tests)."""

    settings: Settings
    as_json: bool
    make_engine: Callable[[Settings], Engine]
    plan_only: bool = False  # --plan: say what a job would need, and stop

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


class PlanShown(Exception):
    """The plan was asked for and is printed; nothing ran, and there is no result."""


def run_alone(context: Context, spec: Spec) -> Any:
    """Open an engine for one request, tell the plan of a long one, and return its result. Raises as ``run_job``.

    Raises PlanShown after ``--plan``; StoreError while the page is open on the same outputs folder, or another
    command is at work there: two engines would fight for the device. Exports and downloads need none.
    """
    if context.plan_only:
        with context.engine() as engine:
            show_plan(context, engine.forecast(spec))
        raise PlanShown
    kind = type(spec).__name__.removesuffix("Spec").lower()
    alone = nullcontext() if isinstance(spec, WITHOUT_DEVICE) else hold(context.settings.outputs_dir, kind)
    with alone, context.engine() as engine:
        if isinstance(spec, LONG):
            _tell_plan(context, engine, spec)
        elif not isinstance(spec, WITHOUT_DEVICE):
            _tell_of_card(context)
        return run_job(engine, spec, context.progress_stream)


def show_plan(context: Context, forecast: Forecast) -> None:
    """All there is to say of a plan, as the only thing a command says."""
    if context.as_json:
        print_json(forecast)
    else:
        print("\n".join(forecast_lines(forecast)), flush=True)


def _tell_plan(context: Context, engine: Engine, spec: Spec) -> None:
    """Before the first line of progress. What is wrong with the request itself is told by the job."""
    with suppress(HeadshotError):
        for line in forecast_lines(engine.forecast(spec)):
            print(line, file=context.progress_stream, flush=True)


def _tell_of_card(context: Context) -> None:
    """What the plan of a long job says too: a graphics card that is there and not used."""
    unused = unused_card(context.settings)
    if unused:
        print(f"{unused} {MEANWHILE}", file=context.progress_stream, flush=True)


@contextmanager
def telling_how_to_go_on(context: Context, person: str) -> Iterator[None]:
    """When training breaks off within the block, say on standard error how to continue it from its checkpoint."""
    began = datetime.now(UTC).isoformat(timespec="microseconds")
    try:
        yield
    except (Cancelled, HeadshotError):
        run = _broken_off(Store(context.settings), person, began)
        if run is not None:
            command = f"train --person {person} --run {run.name}{_places(context.settings)}"
            print(f"{run.step} of {run.total} steps are kept; go on with: {command}", file=sys.stderr, flush=True)
        raise


def _places(settings: Settings) -> str:
    """Options for folders that are not where they would be without them, ready to be typed."""
    usual = Settings.from_environment()
    models = "" if settings.models_dir == usual.models_dir else f" --models {_typed(settings.models_dir)}"
    return models + ("" if settings.outputs_dir == usual.outputs_dir else f" --outputs {_typed(settings.outputs_dir)}")


def _typed(folder: Path) -> str:
    """A path as it is typed in a shell of this system."""
    return subprocess.list2cmdline([str(folder)]) if os.name == "nt" else shlex.quote(str(folder))


def _broken_off(store: Store, person: str, began: str) -> Run | None:
    """The run that was worked on since ``began`` (UTC, ISO 8601) and has steps to go on from."""
    from headshot_ui.runs import list_runs

    runs = (run for run in list_runs(store, person) if run.changed >= began)
    return next((run for run in runs if run.state != "done" and run.step), None)


def run_job(engine: Engine, spec: Spec, stream: TextIO) -> Any:
    """The result of ``spec``, with progress on ``stream``. Raises as ``follow_job``."""
    return follow_job(engine.submit(spec), stream)


def follow_job(job: Job, stream: TextIO) -> Any:
    """The result of a job, with progress on ``stream``.

    Raises HeadshotError with the job's own sentence when it fails and Cancelled when the person pressed
    Ctrl-C: the first press lets the job stop cleanly, a second one ends the program at once.
    """
    printer = ProgressPrinter(stream)
    news: SimpleQueue[Snapshot] = SimpleQueue()
    job.subscribe(news.put)  # starts with the present state and ends with a finished one
    try:
        last = _follow(news, printer)
    except KeyboardInterrupt:
        printer.say("Cancelling: what is finished is kept. Press Ctrl-C again to stop at once.")
        last = _stop(job, news, printer)
    printer.finish()
    for note in last.notes:
        printer.say(f"Note: {note}")
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
