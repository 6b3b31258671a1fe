"""What the runners of jobs work with: models through the residency, stages under the meter, judges, notes."""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headshot_ui.amounts import Known, StagePlan
from headshot_ui.errors import HeadshotError, MemoryBudgetError
from headshot_ui.families import weight_places
from headshot_ui.forecast import settled
from headshot_ui.logs import is_out_of_memory
from headshot_ui.memory import give_back
from headshot_ui.meter import StageMeter
from headshot_ui.parts import Parts
from headshot_ui.peaks import Measured, Peaks
from headshot_ui.residency import ModelKey, Residency
from headshot_ui.store import Store, readable_bytes

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo, LoadedBase, LoadedRefiner, RefinerInfo
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
    def loaded(self, info: BaseInfo) -> AbstractContextManager[LoadedBase]:
        """The base model; it stays for the next job."""
        others = (base_key(other) for other in self.parts.all_bases(self.settings) if other.id != info.id)
        return self.residency.use(base_key(info), lambda: self.parts.load_base(info, self.settings), others)

    def open_refiner(self, info: RefinerInfo) -> AbstractContextManager[LoadedRefiner]:
        key = ModelKey("refiner", info.id, info.title, weight_places(info), repr(info))
        return self.residency.use(key, lambda: self.parts.load_refiner(info, self.settings))

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
        try:
            with job.meter.stage(plan.name):
                yield
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            self._make_room_after(error)
            raise MemoryBudgetError(self._ran_out(doing, advice)) from error
        used = job.meter.stages[-1]
        settings = self.settings
        self._peaks.record(
            plan.model,
            Measured(
                plan.name, used.seconds, used.peak_ram_bytes, used.peak_vram_bytes,
                plan.size, settings.device, settings.dtype, plan.units,
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
        return f"The {kind} ran out while {doing}; what was finished before is kept. {advice}"


def base_key(info: BaseInfo) -> ModelKey:
    """A base model whose ``base.json`` was changed is another one."""
    return ModelKey("base", info.id, info.title, weight_places(info), repr(info))


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
