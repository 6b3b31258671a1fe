"""Whether a training compiles its blocks, and what that brought: seconds of its steps, noted for the next one.

Compiling takes a while, once for each kind of block and size of photos, and then saves a part of every step. So
"auto" compiles where the steps to come save more than compiling takes. Where both ways of the same work were timed
here, that counts; else the share that was measured for the base elsewhere, of the seconds that an ordinary step takes
here. Where no such step has been timed, a training begins ordinary and is looked at again after a few steps. The
other way begins between two steps: LoRA, optimizer and everything random go on as they are.

A compiled step rounds otherwise than an ordinary one, as two cards do. On the CPU nothing is ever compiled.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from headshot_ui import compiling, pinned
from headshot_ui.errors import StoreError
from headshot_ui.families.fits import Fitting
from headshot_ui.families.requests import CompilingFigures
from headshot_ui.jobs import Reporter
from headshot_ui.memory import give_back
from headshot_ui.settings import ALWAYS, AUTO, Settings
from headshot_ui.store import read_json, write_json_atomic
from headshot_ui.training.loop import Trainer

#: In the folder of results. By work: seconds of a step in either way, and what compiling and reading it again took.
FILE_NAME = "compiled.json"
ORDINARY, COMPILED, COMPILING, READING = "ordinary", "compiled", "compiling", "reading"
FAILED = "failed"  #: 1.0 where something could not be compiled
#: The first steps compile, record and set libraries up; with fewer than ``LEAST`` others nothing is decided or noted.
FIRST, LEAST = 8, 8

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepSeconds:
    """What was measured, in a file."""

    file: Path

    def of(self, work: str) -> dict[str, float]:
        """What is known of it."""
        return self._read().get(work, {})

    def note(self, work: str, found: Mapping[str, float]) -> None:
        """``found`` takes the place of what was known. A number for the next plan is not worth failing a training."""
        everything = self._read()
        everything[work] = {**everything.get(work, {}), **found}
        try:
            write_json_atomic(self.file, everything)
        except StoreError as error:
            _log.warning("%s", error)

    def _read(self) -> dict[str, dict[str, float]]:
        if not self.file.is_file():
            return {}
        try:
            data = read_json(self.file)
            return {str(work): {name: float(value) for name, value in known.items()} for work, known in data.items()}
        except (StoreError, TypeError, ValueError, AttributeError) as error:
            _log.warning("Seconds of compiled steps are forgotten: %s", error)
            return {}


# --- does it pay? ---------------------------------------------------------------------------------
@dataclass(frozen=True)
class Case:
    """What is known before a decision."""

    steps: int  # to come
    known: Mapping[str, float]  # of this work, as timed here
    figures: CompilingFigures  # of the base, as timed elsewhere
    sizes: int  # of photos: blocks are compiled for each
    kept: bool  # what was compiled before is still on the disk
    cores: int  # processors of this computer


@dataclass(frozen=True)
class Verdict:
    """Whether to compile, and why, in a sentence."""

    compiles: bool
    why: str


def judge(case: Case) -> Verdict | None:
    """Whether so many steps save more than compiling takes; None while nobody knows what an ordinary step takes."""
    known = case.known
    if known.get(FAILED):
        return Verdict(False, "Blocks are not compiled: that failed here before (“--compile always” tries again).")
    if ORDINARY not in known:
        return None
    here = COMPILED in known
    saved = known[ORDINARY] - known[COMPILED] if here else known[ORDINARY] * case.figures.saved
    cost = _cost(case)
    gain = max(0.0, case.steps * saved)
    pays = gain > cost
    return Verdict(
        pays,
        f"Blocks are {'' if pays else 'not '}compiled: of the {case.steps} steps to come, {known[ORDINARY]:.3g} s "
        f"each, that would save {gain:.0f} s and take {cost:.0f} s "
        f"({'both ways were timed here' if here else 'by what was measured on another computer'}).",
    )


def _cost(case: Case) -> float:
    """Seconds until compiled steps are there. Fewer processors compile for longer, at worst in proportion."""
    known, figures = case.known, case.figures
    slower = max(1.0, figures.cores / case.cores) * case.sizes
    if case.kept and COMPILING in known:
        return known.get(READING, min(known[COMPILING], figures.warm_seconds * slower))
    return known.get(COMPILING, figures.cold_seconds * slower)


def work_of(trainer: Trainer, settings: Settings, fit: str = "") -> str:
    """What the seconds of a step, and of compiling for it, depend on, in words; ``fit`` is a ``Fitting.title``."""
    import torch

    plan, card = trainer.plan, settings.device
    if card == "cuda":
        card = torch.cuda.get_device_name()
    return (
        f"{trainer.loaded.info.id} {plan.size_px} px in {_sizes(trainer)} shapes, {plan.batch_size} x "
        f"{plan.gradient_accumulation}, rank {plan.rank}, recomputing {plan.gradient_checkpointing}, {plan.optimizer}, "
        f"{fit or 'whole'}, {settings.dtype} on {card} with torch {torch.__version__}"
    )


def _sizes(trainer: Trainer) -> int:
    return len({item.shape for item in trainer.photos})


def processors() -> int:
    """Those this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# --- one way, and the other -------------------------------------------------------------------------
@dataclass
class Watch:
    """Seconds of the steps of one stretch of training."""

    until_known: bool = False  # it ends as soon as enough of them were timed
    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def step(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds.append(time.monotonic() - began)
        if not pinned.settled():  # no step is recorded while memory is being locked: they say nothing of later ones
            self.seconds.clear()

    @property
    def usual(self) -> float | None:
        """Of a step, when enough of them were timed."""
        return median(self.seconds[FIRST:]) if len(self.seconds) >= FIRST + LEAST else None

    @property
    def ends(self) -> bool:
        return self.until_known and self.usual is not None

    @property
    def extra(self) -> float:
        """What the first steps took more than others."""
        return max(0.0, sum(self.seconds[:FIRST]) - FIRST * (self.usual or 0.0))


@dataclass
class Choice:
    """Which way the steps of one trainer are computed; "auto" may change it, once each way."""

    trainer: Trainer
    settings: Settings
    notes: StepSeconds
    work: str
    compiles: bool = False
    asks: bool = False  # it is looked at again when enough steps were timed
    ordinary: float | None = None  # seconds of a step, as far as known

    @classmethod
    def of(cls, trainer: Trainer, settings: Settings, fitting: Fitting | None = None) -> Choice:
        """As the settings say, and for "auto" what is known of the same work; ``fitting``: how the base fits."""
        work = work_of(trainer, settings, "" if fitting is None else fitting.title)
        choice = cls(trainer, settings, StepSeconds(settings.outputs_dir / FILE_NAME), work)
        if not compiling.wanted(settings, pays=True):
            return choice
        if settings.compile == ALWAYS:
            choice.compiles = True
        elif settings.ram_limit_bytes is not None:  # the compiler's own processes are not counted in it
            _log.info("Blocks are not compiled, because main memory is limited and compiling takes some of it.")
        else:
            choice._decide(choice.notes.of(choice.work))
        return choice

    @contextmanager
    def stretch(self, report: Reporter) -> Iterator[Watch]:
        """The way that is chosen now, for the length of a block, which ends early where the watch says so.

        A cancel while something is compiled comes out of the step. What steps took is noted at the end.
        """
        watch = Watch(self.asks)
        if not self.compiles:
            yield watch
            self._note({}, ORDINARY, watch)
            return

        def told(done: int) -> None:
            report(compiling.STAGE, done, done + 1)

        there = compiling.something_kept()
        with compiling.compiled(self.trainer.loaded.repeated(), learning=True, told=told) as state:
            yield watch
        if state.failed:
            self.notes.note(self.work, {FAILED: 1.0})
            return
        found = {FAILED: 0.0}
        if state.compilations:  # else this process had compiled it all before
            cost, known = max(state.seconds, watch.extra), self.notes.of(self.work)
            again = there and COMPILING in known
            # As for a card without what is kept: the most it ever took.
            found[READING if again else COMPILING] = round(cost if again else max(cost, known.get(COMPILING, 0.0)), 1)
        self._note(found, COMPILED, watch)

    def _note(self, found: Mapping[str, float], name: str, watch: Watch) -> None:
        if watch.usual is not None and not compiling.why_not(self.settings.device):
            self.notes.note(self.work, {**found, name: round(watch.usual, 5)})

    def look_again(self, watch: Watch) -> None:
        """After a stretch that ended because enough steps were timed: the other way may be next."""
        assert watch.usual is not None
        if not self.compiles:
            self._decide({**self.notes.of(self.work), ORDINARY: watch.usual})
            if self.compiles:
                self.trainer.begin_anew()
        else:
            self.asks = False
            if self.ordinary is not None and watch.usual >= self.ordinary:
                _log.info(
                    "Blocks are not compiled any more: a step takes %.3g s with compiled ones and took %.3g s before.",
                    watch.usual, self.ordinary,
                )  # fmt: skip
                self._ordinary_again()

    def after_memory_ran_out(self) -> bool:
        """Whether the ordinary way is next, because compiled blocks were chosen here and may have taken more."""
        if not self.compiles or self.settings.compile != AUTO:
            return False
        _log.warning(
            "The graphics memory ran out at step %d with compiled blocks: the training goes on from there with "
            "ordinary ones. Nothing is lost.", self.trainer.step + 1,
        )  # fmt: skip
        self.notes.note(self.work, {FAILED: 1.0})
        self._ordinary_again()
        give_back()
        return True

    def _ordinary_again(self) -> None:
        self.compiles = self.asks = False
        self.trainer.begin_anew()

    def _decide(self, known: Mapping[str, float]) -> None:
        trainer = self.trainer
        case = Case(
            trainer.plan.steps - trainer.step, known, trainer.loaded.compiling_figures, _sizes(trainer),
            compiling.something_kept(), processors(),
        )  # fmt: skip
        verdict = judge(case)
        self.compiles, self.asks = verdict is not None and verdict.compiles, verdict is None or verdict.compiles
        self.ordinary = known.get(ORDINARY)
        if verdict is not None:
            _log.info("%s", verdict.why)
