"""The stages the engine calls, in one place, so that tests can put fakes there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from headshot_ui.captioners import CaptionerLoader
    from headshot_ui.dataset.types import Dataset, FaceDetector
    from headshot_ui.export import ExportResult
    from headshot_ui.families.protocol import BaseInfo, LoadedBase, LoadedRefiner, RefinerInfo
    from headshot_ui.generation.refine import OpenRefiner
    from headshot_ui.generation.runner import GenerateResult
    from headshot_ui.jobs import Reporter
    from headshot_ui.likeness import Judge
    from headshot_ui.restoration.protocol import Restorer
    from headshot_ui.restoration.records import RestoreResult
    from headshot_ui.restoration.runner import RestoreTools
    from headshot_ui.settings import Settings
    from headshot_ui.specs import ExportSpec, GenerateSpec, RestoreSpec, TrainSpec
    from headshot_ui.store import Store
    from headshot_ui.training.runner import TrainResult


@dataclass(frozen=True)
class Parts:
    """One function for each thing the engine needs done."""

    # finding: fast, on any thread, without torch
    all_bases: Callable[[Settings], tuple[BaseInfo, ...]]
    find_base: Callable[[str, Settings], BaseInfo]
    likely_refiner: Callable[[GenerateSpec, BaseInfo, Settings], RefinerInfo | None]  # for plans
    all_restorers: Callable[[], dict[str, Restorer]]
    choose_restorer: Callable[[str | None, Settings], Restorer]
    check_request: Callable[[GenerateSpec, Store, BaseInfo], None]
    load_dataset: Callable[[Path], Dataset]
    # loading
    chosen_refiner: Callable[[GenerateSpec, BaseInfo, Settings], RefinerInfo | None]
    load_base: Callable[[BaseInfo, Settings], LoadedBase]
    load_refiner: Callable[[RefinerInfo, Settings], LoadedRefiner]
    load_detector: Callable[[Settings, BaseInfo], Any]
    load_any_detector: Callable[[Settings, bool], Any]  # the flag: drawn faces are more likely than photographed ones
    load_upscaler: Callable[[int, Settings], Any]  # how many times it enlarges
    load_parser: Callable[[Settings], Any]
    load_judge: Callable[[Settings, BaseInfo, Any, Dataset], Judge]  # settings, base, detector, dataset
    load_recogniser: Callable[[Settings, BaseInfo], Any]
    find_captioner: Callable[[Settings, BaseInfo], CaptionerLoader]  # fast, on any thread, without torch
    # working
    # of (spec, store, base, detector, reporter, recogniser or None) and, for automatic captions, what opens a captioner
    prepare: Callable[..., Dataset]
    train: Callable[[TrainSpec, Store, LoadedBase, Dataset, Reporter], TrainResult]
    generate: Callable[[GenerateSpec, Store, LoadedBase, Reporter, Judge | None, OpenRefiner | None], GenerateResult]
    restore_tools: Callable[[Any, Any, Any, Any], RestoreTools]  # detector, open restorer, open upscaler, open parser
    restore: Callable[[RestoreSpec, Store, RestoreTools, Reporter, Judge | None], RestoreResult]
    export: Callable[[ExportSpec, Store, FaceDetector, Reporter], ExportResult]


def real_parts() -> Parts:
    """The stages themselves. Imports no torch: what needs it is imported when it is called."""
    from headshot_ui import families, restoration
    from headshot_ui.captioners import find_captioner
    from headshot_ui.dataset.detector import load_any_detector, load_detector
    from headshot_ui.dataset.prepare import load_dataset, prepare
    from headshot_ui.export import export_pictures
    from headshot_ui.generation.refine import chosen_refiner
    from headshot_ui.generation.runner import check_request, generate
    from headshot_ui.likeness import load_judge, load_recogniser
    from headshot_ui.restoration.parser import load_parser
    from headshot_ui.restoration.runner import RestoreTools, restore
    from headshot_ui.restoration.upscale import load_upscaler

    return Parts(
        all_bases=families.all_bases,
        find_base=families.find_base,
        likely_refiner=_likely_refiner,
        all_restorers=restoration.all_restorers,
        choose_restorer=restoration.choose_restorer,
        check_request=check_request,
        load_dataset=load_dataset,
        chosen_refiner=chosen_refiner,
        load_base=families.load_base,
        load_refiner=families.load_refiner,
        load_detector=load_detector,
        load_any_detector=load_any_detector,
        load_upscaler=load_upscaler,
        load_parser=load_parser,
        load_judge=load_judge,
        load_recogniser=load_recogniser,
        find_captioner=find_captioner,
        prepare=prepare,
        train=_train,
        generate=generate,
        restore_tools=RestoreTools,
        restore=restore,
        export=export_pictures,
    )


def _train(spec: TrainSpec, store: Store, loaded: LoadedBase, dataset: Dataset, report: Reporter) -> TrainResult:
    """Training imports torch as soon as it is imported itself."""
    from headshot_ui.training.runner import train

    return train(spec, store, loaded, dataset, report)


def _likely_refiner(spec: GenerateSpec, base: BaseInfo, settings: Settings) -> RefinerInfo | None:
    """As ``chosen_refiner``, without asking how the steps would be shared out: that takes torch."""
    from headshot_ui import families
    from headshot_ui.errors import ModelError
    from headshot_ui.generation.refiner_choice import OFF, wanted_way

    if wanted_way(spec, base)[0] == OFF:
        return None
    try:
        return families.find_refiner(spec.refiner, base, settings)
    except ModelError:  # told when the request is checked, where it matters
        return None
