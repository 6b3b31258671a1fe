"""One runner per kind of request: which stages are called, in what order, with which models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.amounts import (
    plan_export,
    plan_generate,
    plan_prepare,
    plan_restore,
    plan_train,
    restore_spec,
    without_lora,
)
from headshot_ui.errors import HeadshotError, ModelError
from headshot_ui.forecast import DOING, smaller_requests
from headshot_ui.recipes import load_recipes, with_recipe
from headshot_ui.specs import (
    AUTOMATIC,
    PHRASE,
    DownloadSpec,
    ExportSpec,
    GenerateSpec,
    HeadshotsSpec,
    PrepareSpec,
    RestoreSpec,
    Spec,
    TrainSpec,
)
from headshot_ui.workshop import JobContext, Workshop

if TYPE_CHECKING:
    from headshot_ui.amounts import StagePlan
    from headshot_ui.dataset.types import Dataset
    from headshot_ui.downloads.runner import DownloadResult
    from headshot_ui.export import ExportResult
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.generation.records import Picture
    from headshot_ui.generation.runner import GenerateResult
    from headshot_ui.jobs import Reporter
    from headshot_ui.likeness import Judge
    from headshot_ui.meter import StageUse
    from headshot_ui.restoration.records import RestoreResult
    from headshot_ui.training.runner import TrainResult


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
    restored: RestoreResult | None = None  # None: not asked for, or not possible (see the job's notes)
    exported: ExportResult | None = None  # likewise


def run_prepare(shop: Workshop, spec: PrepareSpec, job: JobContext) -> Dataset:
    """Photos → dataset."""
    info = shop.base(spec.base)
    spec, captioner = _captions(shop, spec, info, job)
    with _stage(shop, spec, plan_prepare(spec, shop.known), job), shop.detector(info) as detector:
        return shop.parts.prepare(spec, shop.store, info, detector, job.report, shop.recogniser(info), *captioner)


def _captions(shop: Workshop, spec: PrepareSpec, info: BaseInfo, job: JobContext) -> tuple[PrepareSpec, list[Any]]:
    """The request with what its recipe says of captions, and what opens a captioner, or nothing for the fixed phrase.

    Raises ModelError when the person asked for automatic captions and there is no captioner. Where only a recipe asks
    for them, it is the fixed phrase then, and noted.
    """
    asked = spec.captions
    if spec.recipe is not None:
        spec = with_recipe(spec, info, load_recipes(shop.settings))
    if spec.captions != AUTOMATIC:
        return spec, []
    try:
        return spec, [shop.captioner(info)]
    except ModelError as error:
        if asked == AUTOMATIC:
            raise
        job.note(f"The fixed phrase was taken for captions. {error}")
        return replace(spec, captions=PHRASE), []


def run_train(shop: Workshop, spec: TrainSpec, job: JobContext) -> TrainResult:
    """Dataset → LoRA."""
    info = shop.base(spec.base)
    dataset = shop.parts.load_dataset(shop.store.dataset_dir(spec.person))
    spec = shop.settled(spec)
    with _stage(shop, spec, plan_train(spec, shop.known), job), shop.loaded(info, job.report) as loaded:
        return shop.parts.train(spec, shop.store, loaded, dataset, job.report)


def run_generate(shop: Workshop, spec: GenerateSpec, job: JobContext) -> GenerateResult:
    """Presets × seeds → pictures, ranked where the person's photos are known."""
    info = shop.base(spec.base)
    shop.parts.check_request(spec, shop.store, info)
    with shop.judge(info, spec.person, job) as judge:
        return _generate(shop, spec, info, judge, job)


def _generate(
    shop: Workshop, spec: GenerateSpec, info: BaseInfo, judge: Judge | None, job: JobContext, aside: Path | None = None
) -> GenerateResult:
    """``aside``: a folder for pictures that are only for comparing."""
    from headshot_ui.generation.refine import RefinerDoor

    plan = plan_generate(spec, shop.known, "generate" if aside is None else "before")
    store = shop.store if aside is None else replace(shop.store, headshots_elsewhere=aside)
    refiner = shop.parts.chosen_refiner(spec, info, shop.settings)
    open_refiner = None
    if refiner is not None:
        open_refiner = RefinerDoor(partial(shop.open_refiner, refiner), partial(shop.expect_refiner, refiner))
    with _stage(shop, spec, plan, job), shop.loaded(info, job.report) as loaded:
        return shop.parts.generate(spec, store, loaded, job.report, judge, open_refiner)


def run_restore(shop: Workshop, spec: RestoreSpec, job: JobContext) -> RestoreResult:
    """Pictures → the same with repaired faces, judged where the person's photos are known."""
    restorer = shop.parts.choose_restorer(spec.restorer, shop.settings)
    spec = replace(spec, restorer=restorer.info.id)
    with (
        _stage(shop, spec, plan_restore(spec, shop.known), job),
        shop.any_detector(restorer.info.demo) as detector,
        _restore_judge(shop, spec.person, restorer.info.demo, detector, job) as judge,
    ):
        tools = shop.restore_tools(restorer, detector)
        return shop.parts.restore(spec, shop.store, tools, job.report, judge)


@contextmanager
def _restore_judge(
    shop: Workshop, person: str, drawn: bool, detector: object, job: JobContext
) -> Iterator[Judge | None]:
    """With the recogniser for what the restorer is for: photographs, or drawn people."""
    bases = (base for base in shop.parts.all_bases(shop.settings) if base.demo == drawn)
    info = next(bases, None)
    if info is None:
        yield None
        return
    with shop.judge(info, person, job, detector) as judge:
        yield judge


def run_export(shop: Workshop, spec: ExportSpec, job: JobContext) -> ExportResult:
    """Finished pictures → files for a purpose, and a zip of them. Its workshop computes on the CPU."""
    plan = plan_export(spec, shop.known)
    with _stage(shop, spec, plan, job), shop.any_detector(drawn_first=False) as detector:
        return shop.parts.export(spec, shop.store, detector, job.report)


def run_fetch(shop: Workshop, spec: DownloadSpec, job: JobContext) -> DownloadResult:
    """Models from the network, or a check of those that are here."""
    from headshot_ui.downloads.runner import run_download

    return run_download(spec, shop.settings, job.report)


# --- all of it ------------------------------------------------------------------------------------
def run_headshots(shop: Workshop, spec: HeadshotsSpec, job: JobContext) -> HeadshotsResult:
    """Photos → dataset → LoRA → pictures without and with it → ranked headshots → the best restored and exported."""
    info = shop.base(spec.generate.base)
    shop.parts.check_request(replace(spec.generate, lora=None), shop.store, info)  # words and looks, before training
    plan_train(spec.train, shop.known)  # and its recipe and size
    dataset = run_prepare(shop, spec.prepare, job)
    trained = run_train(shop, spec.train, job)
    run_dir = Path(trained.run_dir)
    generate = replace(spec.generate, lora=run_dir.name)
    with shop.judge(info, generate.person, job) as judge:
        before = None
        if judge is not None:
            bare = without_lora(generate, _preset_ids(shop))
            comparing = _part(job, "For comparison: ")
            before = count_likeness(_generate(shop, bare, info, judge, comparing, run_dir / "before"))
        generated = _generate(shop, generate, info, judge, _part(job))
    restored = _restore_best(shop, spec, info, generated, _part(job))
    exported = _export_best(shop, spec, generated, restored, _part(job))
    after = count_likeness(generated)
    return HeadshotsResult(dataset, trained, generated, before, after, job.meter.stages, restored, exported)


def best_pictures(generated: GenerateResult, count: int) -> tuple[Picture, ...]:
    """The first ``count`` of the pictures that are kept, best first."""
    return tuple(picture for picture in generated.pictures if picture.kept)[:count]


def _restore_best(
    shop: Workshop, spec: HeadshotsSpec, info: BaseInfo, generated: GenerateResult, job: JobContext
) -> RestoreResult | None:
    best = best_pictures(generated, spec.restore_best)
    if not best:
        return None
    wanted = restore_spec(spec, tuple(str(picture.path) for picture in best), info, shop.parts)
    try:
        return run_restore(shop, wanted, job)
    except HeadshotError as error:  # the headshots are made, and stay so
        job.note(f"No picture was restored: {error}")
        return None


def _export_best(
    shop: Workshop, spec: HeadshotsSpec, generated: GenerateResult, restored: RestoreResult | None, job: JobContext
) -> ExportResult | None:
    best = best_pictures(generated, spec.export_best)
    if not best:
        return None
    better = {} if restored is None else {picture.source: picture.path for picture in restored.pictures}
    paths = tuple(str(better.get(picture.path, picture.path)) for picture in best)
    try:
        return run_export(shop, ExportSpec(spec.generate.person, paths), job)
    except HeadshotError as error:
        job.note(f"No picture was exported: {error}")
        return None


def count_likeness(generated: GenerateResult) -> LikenessCount | None:
    """Matches and mean likeness over the pictures that were measured; None when none was."""
    measured = [picture.likeness for picture in generated.pictures if picture.likeness is not None]
    if not measured:
        return None
    matched = sum(likeness.matched for likeness in measured)
    return LikenessCount(len(measured), matched, sum(likeness.percent for likeness in measured) / len(measured))


def _preset_ids(shop: Workshop) -> Sequence[str]:
    from headshot_ui.generation.presets import load_presets

    return tuple(load_presets(shop.settings))


def _part(job: JobContext, prefix: str = "") -> JobContext:
    """For one part of a longer job: with its own stage names, and without the last part's numbers."""
    return replace(job, report=_phase(job.report, prefix))


def _phase(report: Reporter, prefix: str) -> Reporter:
    fresh: list[Mapping[str, float]] = [{}]

    def told(
        stage: str,
        step: int,
        total: int,
        preview: Path | None = None,
        metrics: Mapping[str, float] | None = None,
        note: str | None = None,
    ) -> None:
        cleared = fresh.pop() if fresh else None
        report(prefix + stage, step, total, preview, cleared if metrics is None else metrics, note)

    return told


@contextmanager
def _stage(shop: Workshop, spec: Spec, plan: StagePlan, job: JobContext) -> Iterator[None]:
    """Measured, and with advice that suits the request where memory runs out."""
    changes = [words for words, _ in smaller_requests(spec)]
    advice = " or ".join(changes[:2]) or "close other programs"
    with shop.measured(plan, job, DOING[plan.name], f"To need less, {advice}."):
        yield
