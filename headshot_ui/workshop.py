"""What the runners of jobs work with: models through the residency, stages under the meter, judges, notes."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headshot_ui.amounts import Known, StagePlan
from headshot_ui.card_state import out_of_graphics_memory
from headshot_ui.errors import HeadshotError, MemoryBudgetError, ModelError
from headshot_ui.families import least_bytes, weight_places
from headshot_ui.families.fits import COMPUTED_EACH_JOB, LeastBytes
from headshot_ui.forecast import settled
from headshot_ui.logs import is_out_of_memory
from headshot_ui.memory import give_back
from headshot_ui.meter import StageMeter
from headshot_ui.parts import Parts
from headshot_ui.peaks import Measured, Peaks
from headshot_ui.residency import ModelKey, Residency
from headshot_ui.store import Store, readable_bytes

if TYPE_CHECKING:
    from headshot_ui.dataset.types import Captioner
    from headshot_ui.families.protocol import BaseInfo, LoadedBase, LoadedRefiner, RefinerInfo, Told
    from headshot_ui.jobs import Reporter
    from headshot_ui.likeness import Judge
    from headshot_ui.restoration.protocol import LoadedRestorer, Restorer
    from headshot_ui.restoration.runner import RestoreTools
    from headshot_ui.settings import Settings
    from headshot_ui.specs import TrainSpec

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobContext:
    """What a runner has of its job: the way to report, and the meter of its stages."""

    report: Reporter
    meter: StageMeter

    def note(self, sentence: str) -> None:
        """Something a person should still read at the end; also logged and shown as the present stage."""
        _log.warning("%s", sentence)
        self.report(sentence, 0, 1, note=sentence)


class Workshop:
    """One per lane of the job queue; only that lane's thread uses it."""

    def __init__(self, settings: Settings, store: Store, parts: Callable[[], Parts], peaks: Peaks) -> None:
        self.settings = settings
        self.store = store
        self.residency = Residency(settings)
        self._parts = parts
        self._peaks = peaks
        self._getting_ready_s = 0.0  # of bases, since the present stage began

    @property
    def parts(self) -> Parts:
        return self._parts()

    @property
    def known(self) -> Known:
        """For plans; asks torch for the device."""
        return Known(self.settings, self.parts, self.settings.device, self.settings.dtype)

    def settled(self, spec: TrainSpec) -> TrainSpec:
        """See ``forecast.settled``."""
        return settled(spec, self.settings, self.parts, self._peaks)

    def base(self, base_id: str) -> BaseInfo:
        return self.parts.find_base(base_id, self.settings)

    # --- models -----------------------------------------------------------------------------------
    @contextmanager
    def loaded(self, info: BaseInfo, report: Reporter | None = None) -> Iterator[LoadedBase]:
        """The base model; it stays for the next job. ``report`` hears what ``LoadedBase.report_to`` tells meanwhile."""
        others = (base_key(other) for other in self.parts.all_bases(self.settings) if other.id != info.id)
        with self.residency.use(base_key(info), lambda: self.parts.load_base(info, self.settings), others) as loaded:
            getting_ready = GettingReady(report)
            loaded.report_to(getting_ready)
            try:
                yield loaded
            finally:
                loaded.report_to(None)
                self._getting_ready_s += getting_ready.seconds

    def open_refiner(self, info: RefinerInfo) -> AbstractContextManager[LoadedRefiner]:
        return self.residency.use(refiner_key(info), lambda: self.parts.load_refiner(info, self.settings))

    def expect_refiner(self, info: RefinerInfo) -> None:
        """It is opened next; see ``Residency.expect``."""
        self.residency.expect(refiner_key(info), frozenset({"denoiser"}))

    def detector(self, info: BaseInfo) -> AbstractContextManager[Any]:
        """The face detector for this base's pictures."""
        return self._detector(info.id, lambda: self.parts.load_detector(self.settings, info))

    def any_detector(self, drawn_first: bool) -> AbstractContextManager[Any]:
        """The face detector for any pictures; ``drawn_first`` where drawn faces are more likely than photographed."""
        name = "drawn first" if drawn_first else "photographs first"
        return self._detector(name, lambda: self.parts.load_any_detector(self.settings, drawn_first))

    def _detector(self, name: str, load: Callable[[], Any]) -> AbstractContextManager[Any]:
        from headshot_ui.dataset.detector import find_weights

        files = tuple(path for path in find_weights(self.settings) if path is not None)
        return self.residency.use(ModelKey("detector", name, "Face detector", files), load)

    def restore_tools(self, restorer: Restorer, detector: Any) -> RestoreTools:
        """Each model loads when its stage begins."""
        from headshot_ui.restoration import parser, upscale

        settings, parts, use = self.settings, self.parts, self.residency.use

        def open_restorer() -> AbstractContextManager[LoadedRestorer]:
            key = ModelKey("restorer", restorer.info.id, restorer.info.title, (restorer.weights(settings),))
            return use(key, lambda: restorer.load(settings))

        def open_upscaler(factor: int) -> AbstractContextManager[Any]:
            file = upscale.weights(factor, settings)
            key = ModelKey("upscaler", f"x{factor}", f"Upscaler x{factor}", () if file is None else (file,))
            return use(key, lambda: parts.load_upscaler(factor, settings))

        def open_parser() -> AbstractContextManager[Any]:
            key = ModelKey("parser", "parser", "Face parser", (parser.weights(settings),))
            return use(key, lambda: parts.load_parser(settings))

        return parts.restore_tools(detector, open_restorer, open_upscaler, open_parser)

    def recogniser(self, info: BaseInfo) -> Any:
        """The face recogniser for this base. None, with the reason in the log, where there is none."""
        try:
            return self.parts.load_recogniser(self.settings, info)
        except HeadshotError as error:  # the photos can be prepared without looking for strangers among them
            _log.warning("Photos are not compared: %s", error)
            return None

    def captioner(self, info: BaseInfo) -> Callable[[], AbstractContextManager[Captioner]]:
        """Opens the captioner for this base's photos, which loads when it is called. Raises ModelError, at once."""
        loader = self.parts.find_captioner(self.settings, info)
        key = ModelKey("captioner", loader.id, loader.title, loader.weights(self.settings))
        return lambda: self.residency.use(key, lambda: loader.load(self.settings))

    # --- likeness ---------------------------------------------------------------------------------
    @contextmanager
    def judge(self, info: BaseInfo, person: str, job: JobContext, detector: Any = None) -> Iterator[Judge | None]:
        """The judge of a prepared person, for the length of the block; with this base's detector, or the one given.

        None for somebody who has no prepared photos, and where likeness cannot be measured, which is noted.
        """
        folder = self.store.dataset_dir(person)
        if not folder.is_dir():
            yield None
            return
        with ExitStack() as stack:
            judge = None
            try:
                detector = stack.enter_context(self.detector(info)) if detector is None else detector
                judge = self.parts.load_judge(self.settings, info, detector, self.parts.load_dataset(folder))
            except HeadshotError as error:  # pictures without a score are better than none
                job.note(f"Likeness was not measured: {error}")
            yield judge

    # --- stages -----------------------------------------------------------------------------------
    @contextmanager
    def measured(self, plan: StagePlan, job: JobContext, doing: str, advice: str) -> Iterator[None]:
        """Meter a stage and remember what it took for the next plan; a stage that broke off tells nothing.

        Where memory runs out all models are dropped, and MemoryBudgetError says what was being done and ``advice``.
        """
        self._getting_ready_s = 0.0
        try:
            with job.meter.stage(plan.name):
                yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._make_room_after(error)
            raise MemoryBudgetError(self._ran_out(doing, advice)) from error
        used, first_s = job.meter.stages[-1], self._getting_ready_s
        settings = self.settings
        self._peaks.record(
            plan.model,
            Measured(
                plan.name, max(0.0, used.seconds - first_s), used.peak_ram_bytes, used.peak_vram_bytes,
                plan.size, settings.device, settings.dtype, plan.units, first_s,
            ),
        )  # fmt: skip

    def _make_room_after(self, error: Exception) -> None:
        """The frames the error came through still hold what did not fit."""
        traceback.clear_frames(error.__traceback__)
        self.residency.evict()
        give_back()

    def _ran_out(self, doing: str, advice: str) -> str:
        limit = self.settings.vram_limit_bytes
        if self.settings.device != "cuda":
            kind = "memory of this computer"
        else:
            kind = "graphics memory" + (f" that may be used ({readable_bytes(limit)})" if limit else "")
        held = out_of_graphics_memory() if self.settings.device == "cuda" else ""
        return f"The {kind} ran out while {doing}; what was finished before is kept. {advice}" + (
            f" {held}" if held else ""
        )


class GettingReady:
    """Passes on what a base tells of reading its weights and making them fit, and counts the seconds of it.

    Those between two reports of one stage count; every stage tells its end too. What comes in each job does not count.
    """

    def __init__(self, report: Told | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = 0.0
        self._report, self._clock = report, clock
        self._last: tuple[str, float] = "", 0.0

    def __call__(self, stage: str, step: int, total: int) -> None:
        now = self._clock()
        if step > 0 and stage == self._last[0] != COMPUTED_EACH_JOB:
            self.seconds += now - self._last[1]
        self._last = stage, now
        if self._report is not None:
            self._report(stage, step, total)


def base_key(info: BaseInfo) -> ModelKey:
    """A base model whose ``base.json`` was changed is another one."""
    least: tuple[tuple[str, LeastBytes], ...] = ()
    with suppress(ModelError):  # what is damaged is told when it is loaded
        least = tuple(sorted(least_bytes(info).items()))
    return ModelKey("base", info.id, info.title, weight_places(info), repr(info), least)


def refiner_key(info: RefinerInfo) -> ModelKey:
    return ModelKey("refiner", info.id, info.title, weight_places(info), repr(info))


class SharedParts:
    """Makes the parts once, on the first thread that needs them."""

    def __init__(self, make: Callable[[], Parts]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: Parts | None = None

    def __call__(self) -> Parts:
        with self._lock:
            if self._made is None:
                self._made = self._make()
            return self._made
