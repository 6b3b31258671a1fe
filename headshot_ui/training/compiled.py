"""Whether a training compiles its blocks, and what that brought: seconds of its steps, noted for the next one.

Compiling takes a while, once for each kind of block and size of photos, and then saves a part of every step. So
"auto" compiles where both ways of the same work were timed on this card before and the steps to come save more than
compiling took. Where only one way was timed, or none, it does not.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from headshot_ui import compiling
from headshot_ui.errors import StoreError
from headshot_ui.jobs import Reporter
from headshot_ui.settings import NEVER, Settings
from headshot_ui.store import read_json, write_json_atomic
from headshot_ui.training.loop import Trainer

#: In the folder of results. By work: {"ordinary": seconds of a step, "compiled": the same, "compiling": seconds}.
FILE_NAME = "compiled.json"
#: Steps before these compile, record and set libraries up; with fewer than ``LEAST`` others nothing is noted.
FIRST, LEAST = 8, 16
ORDINARY, COMPILED, COMPILING = "ordinary", "compiled", "compiling"

_log = logging.getLogger(__name__)


@dataclass
class Watch:
    """Seconds of the steps of one stretch of training."""

    seconds: list[float] = field(default_factory=list)

    @contextmanager
    def step(self) -> Iterator[None]:
        began = time.monotonic()
        yield
        self.seconds.append(time.monotonic() - began)


@dataclass(frozen=True)
class StepSeconds:
    """What was measured, in a file."""

    file: Path

    def pays(self, work: str, steps: int) -> bool:
        """Whether so many steps save more than compiling takes, as far as is known."""
        known = self.of(work)
        if not {ORDINARY, COMPILED, COMPILING} <= known.keys():
            return False
        return steps * (known[ORDINARY] - known[COMPILED]) > known[COMPILING]

    def of(self, work: str) -> dict[str, float]:
        """What is known of it."""
        return self._read().get(work, {})

    def note(self, work: str, found: dict[str, float]) -> None:
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


@contextmanager
def watched(trainer: Trainer, settings: Settings, report: Reporter) -> Iterator[Watch]:
    """Steps with compiled blocks or ordinary ones, as the settings say, for the length of a block.

    A cancel while something is compiled comes out of the step. On a card the seconds of a step are noted at the end.
    """
    plan, watch, known = trainer.plan, Watch(), StepSeconds(settings.outputs_dir / FILE_NAME)
    work = work_of(trainer, settings)
    if not compiling.wanted(settings, settings.compile != NEVER and known.pays(work, plan.steps - trainer.step)):
        yield watch
        found = {}
        name = ORDINARY
    else:

        def told(done: int) -> None:
            report(compiling.STAGE, done, done + 1)

        with compiling.compiled(trainer.loaded.repeated(), learning=True, told=told) as state:
            yield watch
        # What was read from the disk took little: the most it ever took counts, as for a card without it.
        before = known.of(work).get(COMPILING, 0.0)
        found = {COMPILING: round(max(before, state.seconds), 1)}
        name = COMPILED
        if state.failed or not state.compilations:
            return
    if settings.device == "cuda" and len(watch.seconds) >= FIRST + LEAST:
        known.note(work, {**found, name: round(median(watch.seconds[FIRST:]), 5)})


def work_of(trainer: Trainer, settings: Settings) -> str:
    """What the seconds of a step depend on, in words."""
    plan, card = trainer.plan, settings.device
    if card == "cuda":
        import torch

        card = torch.cuda.get_device_name()
    return (
        f"{trainer.loaded.info.id} {plan.size_px} px, {plan.batch_size} x {plan.gradient_accumulation}, rank "
        f"{plan.rank}, recomputing {plan.gradient_checkpointing}, {settings.dtype} on {card}"
    )
