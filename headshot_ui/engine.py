"""Wires everything: a request goes in, a job comes out, and one worker thread does the work.

The page and the commands see only this. What the stages do is in ``dataset``, ``training`` and
``generation``; here is the order in which they are called, and nothing that knows a picture.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from headshot_ui.errors import HeadshotError, StoreError
from headshot_ui.jobs import Job, JobQueue, Reporter
from headshot_ui.logs import explain, start_log
from headshot_ui.meter import StageMeter, StageUse
from headshot_ui.residency import Residency
from headshot_ui.runs import recover_runs
from headshot_ui.specs import GenerateSpec, HeadshotsSpec, PrepareSpec, Spec, TrainSpec
from headshot_ui.store import Store, remove_leftovers

if TYPE_CHECKING:
    from headshot_ui.dataset.types import Dataset
    from headshot_ui.families.protocol import BaseInfo, LoadedBase
    from headshot_ui.generation.runner import GenerateResult
    from headshot_ui.likeness import Judge
    from headshot_ui.settings import Settings
    from headshot_ui.training.runner import TrainResult

PICTURES_BEFORE = 8  # drawn without the LoRA to compare with; more would only cost time

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """The stages the engine calls. Tests put fakes here."""

    all_bases: Callable[[Settings], tuple[BaseInfo, ...]]
    find_base: Callable[[str, Settings], BaseInfo]
    load_base: Callable[[BaseInfo, Settings], LoadedBase]
    load_detector: Callable[[Settings, BaseInfo], Any]
    load_judge: Callable[[Settings, BaseInfo, Any, Dataset], Judge]  # settings, base, detector, dataset
    load_recogniser: Callable[[Settings, BaseInfo], Any]
    prepare: Callable[[PrepareSpec, Store, BaseInfo, Any, Reporter, Any], Dataset]  # last: recogniser or None
    load_dataset: Callable[[Path], Dataset]
    train: Callable[[TrainSpec, Store, LoadedBase, Dataset, Reporter], TrainResult]
    generate: Callable[[GenerateSpec, Store, LoadedBase, Reporter, Judge | None], GenerateResult]


def real_parts() -> Parts:
    """The stages themselves; called on the worker thread, because importing them imports torch."""
    from headshot_ui import families
    from headshot_ui.dataset.detector import load_detector
    from headshot_ui.dataset.prepare import load_dataset, prepare
    from headshot_ui.generation.runner import generate
    from headshot_ui.likeness import load_judge, load_recogniser
    from headshot_ui.training.runner import train

    return Parts(
        all_bases=families.all_bases,
        find_base=families.find_base,
        load_base=families.load_base,
        load_detector=load_detector,
        load_judge=load_judge,
        load_recogniser=load_recogniser,
        prepare=prepare,
        load_dataset=load_dataset,
        train=train,
        generate=generate,
    )


@dataclass(frozen=True)
class LikenessCount:
    """How a set of pictures compares to the person."""

    pictures: int
    matched: int  # nearer to the person than strangers are to each other
    mean_percent: float  # 0 to 100; 100 = as alike as the person's own photos


@dataclass(frozen=True)
class HeadshotsResult:
    """Everything ``HeadshotsSpec`` made."""

    dataset: Dataset
    trained: TrainResult
    generated: GenerateResult  # ranked
    before: LikenessCount | None  # the same looks without the LoRA; None where likeness cannot be measured
    after: LikenessCount | None
    stages: tuple[StageUse, ...]


class Workshop:
    """What the runners work with. Only the worker thread uses it."""

    def __init__(self, settings: Settings, store: Store, parts: Callable[[], Parts]) -> None:
        self.settings = settings
        self.store = store
        self.residency = Residency(settings)
        self._parts = parts
        self._detectors: dict[str, Any] = {}

    @cached_property
    def parts(self) -> Parts:
        return self._parts()

    def detector(self, info: BaseInfo) -> Any:
        """The detector for this base's pictures; it stays for the next job on the same base."""
        if info.id not in self._detectors:
            self._detectors = {info.id: self.parts.load_detector(self.settings, info)}
        return self._detectors[info.id]

    def base(self, base_id: str) -> BaseInfo:
        return self.parts.find_base(base_id, self.settings)

    @contextmanager
    def loaded(self, info: BaseInfo) -> Iterator[LoadedBase]:
        others = (base for base in self.parts.all_bases(self.settings) if base.id != info.id)
        with self.residency.use(info, lambda: self.parts.load_base(info, self.settings), others) as loaded:
            yield loaded

    @contextmanager
    def measured(self, info: BaseInfo, stage: str, meter: StageMeter) -> Iterator[None]:
        """Meter a stage and remember its peaks for the next plan; a stage that broke off tells nothing."""
        with meter.stage(stage):
            yield
        self.residency.record(info, meter.stages[-1])

    def recogniser(self, info: BaseInfo) -> Any:
        """The face recogniser for this base. None, with the reason in the log, where there is none."""
        try:
            return self.parts.load_recogniser(self.settings, info)
        except HeadshotError as error:  # the photos can be prepared without looking for strangers among them
            _log.warning("Photos are not compared: %s", error)
            return None

    def judge(self, info: BaseInfo, person: str, report: Reporter) -> Judge | None:
        """The judge of a prepared person. None, with the reason told and logged, where likeness cannot be measured."""
        folder = self.store.dataset_dir(person)
        if not folder.is_dir():
            return None
        try:
            return self.parts.load_judge(self.settings, info, self.detector(info), self.parts.load_dataset(folder))
        except HeadshotError as error:  # pictures without a score are better than none
            _log.warning("Likeness of %s is not measured: %s", person, error)
            report(f"Likeness is not measured: {error}", 0, 1)
            return None


# --- runners: one per kind of request ---------------------------------------------------------------
def run_prepare(shop: Workshop, spec: PrepareSpec, report: Reporter, meter: StageMeter) -> Dataset:
    """Photos → dataset."""
    info = shop.base(spec.base)
    with shop.measured(info, "prepare", meter):
        return shop.parts.prepare(spec, shop.store, info, shop.detector(info), report, shop.recogniser(info))


def run_train(shop: Workshop, spec: TrainSpec, report: Reporter, meter: StageMeter) -> TrainResult:
    """Dataset → LoRA."""
    info = shop.base(spec.base)
    dataset = shop.parts.load_dataset(shop.store.dataset_dir(spec.person))
    with shop.measured(info, "train", meter), shop.loaded(info) as loaded:
        return shop.parts.train(spec, shop.store, loaded, dataset, report)


def run_generate(shop: Workshop, spec: GenerateSpec, report: Reporter, meter: StageMeter) -> GenerateResult:
    """Presets × seeds → pictures, ranked where the person's photos are known."""
    info = shop.base(spec.base)
    judge = shop.judge(info, spec.person, report)
    with shop.measured(info, "generate", meter), shop.loaded(info) as loaded:
        return shop.parts.generate(spec, shop.store, loaded, report, judge)


def run_headshots(shop: Workshop, spec: HeadshotsSpec, report: Reporter, meter: StageMeter) -> HeadshotsResult:
    """Photos → dataset → LoRA → pictures without and with it → ranked headshots."""
    dataset = run_prepare(shop, spec.prepare, report, meter)
    trained = run_train(shop, spec.train, report, meter)
    run_dir = Path(trained.run_dir)
    before = _draw_before(shop, spec.generate, run_dir / "before", _phase(report, "For comparison: "), meter)
    generated = run_generate(shop, replace(spec.generate, lora=run_dir.name), _phase(report), meter)
    return HeadshotsResult(dataset, trained, generated, before, count_likeness(generated), meter.stages)


def _phase(report: Reporter, prefix: str = "") -> Reporter:
    """The reporter of one part of a longer job: with its own stage names, and without the last part's numbers."""
    fresh: list[Mapping[str, float]] = [{}]

    def told(
        stage: str, step: int, total: int, preview: Path | None = None, metrics: Mapping[str, float] | None = None
    ) -> None:
        cleared = fresh.pop() if fresh else None
        report(prefix + stage, step, total, preview, cleared if metrics is None else metrics)

    return told


def _draw_before(
    shop: Workshop, spec: GenerateSpec, folder: Path, report: Reporter, meter: StageMeter
) -> LikenessCount | None:
    """A few pictures by the bare base model, kept away from the headshots: what the LoRA is measured against."""
    info = shop.base(spec.base)
    judge = shop.judge(info, spec.person, report)
    if judge is None:
        return None
    own_words = bool(spec.prompt) and not spec.presets
    count = min(spec.count, PICTURES_BEFORE) if own_words else 1
    bare = replace(spec, lora=None, keep_best=None, presets=spec.presets[:PICTURES_BEFORE], count=count)
    aside = replace(shop.store, headshots_elsewhere=folder)
    with shop.measured(info, "before", meter), shop.loaded(info) as loaded:
        return count_likeness(shop.parts.generate(bare, aside, loaded, report, judge))


def count_likeness(generated: GenerateResult) -> LikenessCount | None:
    """Matches and mean likeness over the pictures that were measured; None when none was."""
    measured = [picture.likeness for picture in generated.pictures if picture.likeness is not None]
    if not measured:
        return None
    matched = sum(likeness.matched for likeness in measured)
    return LikenessCount(len(measured), matched, sum(likeness.percent for likeness in measured) / len(measured))


@dataclass(frozen=True)
class Task:
    """How one kind of request is named and run."""

    kind: str
    verb: str
    run: Callable[[Workshop, Any, Reporter, StageMeter], Any]


TASKS: Mapping[type[Spec], Task] = {
    PrepareSpec: Task("prepare", "Preparing the photos of", run_prepare),
    TrainSpec: Task("train", "Learning", run_train),
    GenerateSpec: Task("generate", "Drawing headshots of", run_generate),
    HeadshotsSpec: Task("headshots", "Making headshots of", run_headshots),
}


class Engine:
    """One per process. All methods may be called from any thread; none of them waits for the GPU but ``close``."""

    def __init__(self, settings: Settings, parts: Callable[[], Parts] = real_parts) -> None:
        self.settings = settings
        self.store = Store(settings)
        self.log_file = start_log(settings)
        self._shop = Workshop(settings, self.store, parts)
        self._queue = JobQueue(explain)
        self._persons: dict[str, str] = {}
        self._tidy_up()

    def submit(self, spec: Spec) -> Job:
        """Line the request up and return its job at once; the job's result is that of its runner."""
        task = TASKS[type(spec)]
        person = person_of(spec)

        def runner(report: Reporter) -> Any:
            return task.run(self._shop, spec, report, StageMeter())

        job = self._queue.submit(task.kind, f"{task.verb} {person}", runner)
        self._persons[job.id] = person
        return job

    def current(self) -> Job | None:
        """The job that runs now."""
        return self._queue.current()

    def jobs(self) -> tuple[Job, ...]:
        """Waiting, running and lately finished jobs, oldest first."""
        return self._queue.jobs()

    def find_job(self, job_id: str) -> Job | None:
        """A job by its id, for a page that was reloaded."""
        return self._queue.find(job_id)

    def cancel(self, job_id: str | None = None) -> bool:
        """Cancel that job, or the running one; False when there is none to cancel."""
        return self._queue.cancel(job_id)

    def delete_person(self, person: str) -> tuple[Path, ...]:
        """Remove everything about a person; the files removed. Raises StoreError while a job works on them."""
        if any(self._persons.get(job.id) == person and not job.snapshot.finished for job in self.jobs()):
            raise StoreError(f"A job of “{person}” is not finished: cancel it first, then delete.")
        return self.store.delete_person(person)

    def close(self) -> None:
        """Cancel everything, wait for the worker and drop the model."""
        if self._queue.close():
            self._shop.residency.evict()

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


def person_of(spec: Spec) -> str:
    """Whom a request is about."""
    return spec.prepare.person if isinstance(spec, HeadshotsSpec) else str(getattr(spec, "person", ""))
