"""The plan of a request, shown before it starts: what will be in memory, how much, for how long, and the disk.

Memory and seconds are those measured here before for the same model, picture size and number format; what was not
measured yet is estimated (see ``amounts``) or left open.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from headshot_ui.amounts import Known, StagePlan, plan_stages
from headshot_ui.card_state import plan_notes, who_holds_memory
from headshot_ui.errors import HeadshotError, MemoryBudgetError
from headshot_ui.families.fits import ROOM_FOR_DOUBT
from headshot_ui.memory import (
    CONTEXT_BYTES,
    free_ram_bytes,
    own_ram_bytes,
    ram_budget_bytes,
    shared_vram_bytes,
    vram_budget_bytes,
)
from headshot_ui.settings import gpu_in_sight
from headshot_ui.specs import CHECKPOINTING, FULL, PARTIAL, GenerateSpec, HeadshotsSpec, RestoreSpec, Spec, TrainSpec
from headshot_ui.store import free_bytes, readable_bytes
from headshot_ui.wording import format_seconds, listed

if TYPE_CHECKING:
    from headshot_ui.parts import Parts
    from headshot_ui.peaks import Measured, Peaks
    from headshot_ui.settings import Settings

#: Main memory of the process with everything imported. Measured with the demo base: 0.9 to 1.0 GB after preparing.
PROCESS_BYTES = 2**30
#: Seconds are told for up to so many times the work that was measured.
MOST_SCALED = 10
#: What people call the stages.
DOING = {
    "prepare": "preparing the photos",
    "train": "learning",
    "before": "drawing for comparison",
    "generate": "drawing",
    "restore": "restoring",
    "export": "exporting",
}


@dataclass(frozen=True)
class StageForecast:
    """One stage of a request."""

    name: str  # as it is metered; a key of DOING
    on_device: tuple[str, ...]  # what computes, in order: one after the other on a GPU
    peak_bytes: int  # of memory_kind, for this program in all
    measured: bool  # False: an estimate
    seconds: float | None  # None: never measured
    first_s: float | None = None  # beside them where the base is not in memory yet; None: in them, or no matter
    first_measured: bool = False
    notes: tuple[str, ...] = ()  # how it is made to fit, and what was estimated by something else


@dataclass(frozen=True)
class Forecast:
    """A whole request."""

    stages: tuple[StageForecast, ...]
    memory_kind: str  # "memory" or "graphics memory"
    limit_bytes: int  # of that memory, what this program may have in all
    disk_bytes: int
    seconds: float | None  # None: not known for every stage
    fits: bool  # memory and disk
    advice: str  # what to change when it does not fit; "" when it does
    notes: tuple[str, ...] = ()  # how it is made to fit, and what to know of the card, one sentence or two each

    @property
    def peak_bytes(self) -> int:
        """The most memory any stage needs."""
        return max((stage.peak_bytes for stage in self.stages), default=0)


@dataclass(frozen=True)
class _Machine:
    device: str
    dtype: str
    limit_bytes: int

    @property
    def memory_kind(self) -> str:
        return "graphics memory" if self.device == "cuda" else "memory"


def forecast(spec: Spec, settings: Settings, parts: Parts, peaks: Peaks) -> Forecast:
    """The plan of ``spec``. Reads headers only, on any thread; imports torch only where there may be a GPU.

    Raises ModelError, SpecError and the like when the request cannot be carried out at all.
    """
    machine = _machine(settings)
    known = Known(settings, parts, machine.device, machine.dtype)
    spec = _settled(spec, known, machine, peaks)
    made = _forecast(spec, known, machine, peaks)
    made = replace(made, notes=(*made.notes, *plan_notes(settings, machine.device)))
    room = free_bytes(settings.outputs_dir)
    if made.peak_bytes > machine.limit_bytes:
        held = who_holds_memory() if machine.device == "cuda" else ""
        made = replace(made, notes=tuple(dict.fromkeys(filter(None, (*made.notes, held)))))
        return replace(made, fits=False, advice=_advice(spec, known, machine, peaks))
    if made.disk_bytes > room:
        there = f"Only {readable_bytes(room)} are free on the disk of {settings.outputs_dir}: make room."
        return replace(made, fits=False, advice=there)
    return made


def settled(spec: TrainSpec, settings: Settings, parts: Parts, peaks: Peaks) -> TrainSpec:
    """``spec`` with gradient checkpointing decided: the least of it with which the memory clearly holds the training.

    It makes a step slower and changes no number. Raises what ``forecast`` raises.
    """
    machine = _machine(settings)
    made = _settled(spec, Known(settings, parts, machine.device, machine.dtype), machine, peaks)
    assert isinstance(made, TrainSpec)
    return made


def _settled(spec: Spec, known: Known, machine: _Machine, peaks: Peaks) -> Spec:
    if isinstance(spec, HeadshotsSpec):
        return replace(spec, train=_settled(spec.train, known, machine, peaks))  # type: ignore[arg-type]
    if not isinstance(spec, TrainSpec) or spec.gradient_checkpointing is not None:
        return spec
    for level in CHECKPOINTING:
        spec = replace(spec, gradient_checkpointing=level)
        with suppress(MemoryBudgetError):  # of a base that is made to fit, perhaps only not so
            stages = _forecast(spec, known, machine, peaks).stages
            needed = max(stage.peak_bytes * (1 if stage.measured else ROOM_FOR_DOUBT) for stage in stages)
            if needed <= machine.limit_bytes:
                break
    return spec  # the last level if nothing fits, which is for the forecast to say


def _forecast(spec: Spec, known: Known, machine: _Machine, peaks: Peaks) -> Forecast:
    plans = plan_stages(spec, known)
    stages = tuple(_stage(plan, machine, peaks) for plan in plans)
    known_seconds = [stage.seconds for stage in stages if stage.seconds is not None]
    return Forecast(
        stages=stages,
        memory_kind=machine.memory_kind,
        limit_bytes=machine.limit_bytes,
        disk_bytes=sum(plan.disk_bytes for plan in plans),
        seconds=sum(known_seconds) if len(known_seconds) == len(stages) else None,
        fits=True,
        advice="",
        notes=tuple(dict.fromkeys(note for stage in stages for note in stage.notes)),
    )


def _stage(plan: StagePlan, machine: _Machine, peaks: Peaks) -> StageForecast:
    seen, share, notes = _seen(plan, machine, peaks)
    on_device = tuple(dict.fromkeys(turn.name for turn in plan.turns))
    peak = _estimated_peak(plan, machine) if seen is None else _measured_peak(seen, machine)
    seconds = _seconds(plan, seen)
    measured_first = seen is not None and seen.first_s > 0
    first = seen.first_s if seen is not None and measured_first else plan.first_s
    return StageForecast(
        plan.name, on_device, peak, seen is not None, None if seconds is None else share * seconds,
        first, measured_first, plan.notes if seconds is None else (*plan.notes, *notes),
    )  # fmt: skip


def _seen(plan: StagePlan, machine: _Machine, peaks: Peaks) -> tuple[Measured | None, float, tuple[str, ...]]:
    """What was measured of a stage, or of one done in another way; the share of its seconds, and why."""
    seen = peaks.find(plan.model, plan.name, plan.size, machine.device, machine.dtype)
    if seen is not None:
        return seen, 1.0, ()
    for other in plan.alike:
        seen = peaks.find(plan.model, plan.name, other.size, machine.device, machine.dtype)
        if seen is not None:
            return seen, other.share, (other.note,)
    return None, 1.0, ()


def _seconds(plan: StagePlan, seen: Measured | None) -> float | None:
    """In proportion to the work, unless so little was measured that it was mostly loading."""
    if seen is None or not seen.units or not plan.units or plan.units > MOST_SCALED * seen.units:
        return None
    return seen.seconds * plan.units / seen.units


def _measured_peak(seen: Measured, machine: _Machine) -> int:
    return seen.peak_vram_bytes + CONTEXT_BYTES if machine.device == "cuda" else seen.peak_ram_bytes


def _estimated_peak(plan: StagePlan, machine: _Machine) -> int:
    """On a GPU parts take turns, so the largest one counts; in main memory all weights are there together."""
    if machine.device == "cuda":
        return CONTEXT_BYTES + max(turn.weight_bytes + turn.working_bytes for turn in plan.turns)
    weights = sum(turn.weight_bytes for turn in plan.turns)
    return PROCESS_BYTES + weights + max(turn.working_bytes for turn in plan.turns)


# --- this machine ---------------------------------------------------------------------------------
def _machine(settings: Settings) -> _Machine:
    device = likely_device(settings)
    if settings.wanted_dtype != "auto":
        dtype = settings.wanted_dtype
    else:
        dtype = "float32" if device == "cpu" else settings.dtype
    if device == "cuda":
        limit = vram_budget_bytes(settings)
    else:
        limit = ram_budget_bytes(free_ram_bytes() + own_ram_bytes(), settings)
        limit = min(limit, shared_vram_bytes(settings)) if device == "mps" else limit
    return _Machine(device, dtype, limit)


def likely_device(settings: Settings) -> str:
    """``settings.device``, without importing torch where nothing on this machine looks like a GPU."""
    if settings.wanted_device != "auto" or "device" in vars(settings) or "torch" in sys.modules:
        return settings.device
    return settings.device if gpu_in_sight() else "cpu"


# --- what would fit -------------------------------------------------------------------------------
def smaller_requests(spec: Spec) -> Iterator[tuple[str, Spec]]:
    """What could be changed to need less memory, in words, and the request so changed; mildest first."""
    if isinstance(spec, TrainSpec):
        if spec.batch_size != 1:
            yield "learn from one photo at a time (batch size 1)", replace(spec, batch_size=1)
        chosen = CHECKPOINTING.index(spec.gradient_checkpointing or PARTIAL)  # open: the memory has decided, not enough
        for level in CHECKPOINTING[chosen + 1 :]:
            yield f"choose {level} gradient checkpointing", replace(spec, gradient_checkpointing=level)
        if spec.gradient_checkpointing != FULL and spec.batch_size != 1:
            both = replace(spec, batch_size=1, gradient_checkpointing=FULL)
            yield "choose full gradient checkpointing and batch size 1", both
    elif isinstance(spec, GenerateSpec):
        if spec.refine != "off":
            yield "leave the refiner out (refine: off)", replace(spec, refine="off", refiner=None)
        for side in (1024, 768, 512, 256):
            if (spec.width or 2048) > side and (spec.height or 2048) > side:
                words = f"choose smaller pictures ({side} x {side})"
                yield words, replace(spec, width=side, height=side)
    elif isinstance(spec, RestoreSpec):
        for times in (2, 1):
            if times < spec.upscale:
                yield f"enlarge less ({times} times)", replace(spec, upscale=times)
        if spec.parse_face:
            yield "leave the outline of the face out", replace(spec, parse_face=False)
    elif isinstance(spec, HeadshotsSpec):
        for words, train in smaller_requests(spec.train):
            yield words, replace(spec, train=train)  # type: ignore[arg-type]
        for words, generate in smaller_requests(spec.generate):
            yield words, replace(spec, generate=generate)  # type: ignore[arg-type]


def _advice(spec: Spec, known: Known, machine: _Machine, peaks: Peaks) -> str:
    """The mildest change that makes it fit, else a smaller base model that would, else what helps anyway."""
    for words, other in smaller_requests(spec):
        with suppress(HeadshotError):
            if _forecast(other, known, machine, peaks).peak_bytes <= machine.limit_bytes:
                return f"To make it fit, {words}."
    if machine.device == "cuda":
        return "Nothing smaller fits either: choose a smaller base model, or allow more with --vram-limit."
    return "Nothing smaller fits either: close other programs, or choose a smaller base model."


# --- in words -------------------------------------------------------------------------------------
def forecast_lines(made: Forecast) -> list[str]:
    """The plan in two to five plain lines, and what there is to say of the card."""
    names = listed(list(dict.fromkeys(name for stage in made.stages for name in stage.on_device)))
    where = "On the graphics card, one after the other" if made.memory_kind == "graphics memory" else "In memory"
    lines = [f"{where}: {names}.", _memory_line(made), _time_line(made)]
    if made.disk_bytes:
        lines.append(f"Disk: about {readable_bytes(made.disk_bytes)}.")
    lines += made.notes
    if not made.fits:
        lines.append(f"This may not fit. {made.advice}")
    return lines


def _memory_line(made: Forecast) -> str:
    largest = max(made.stages, key=lambda stage: stage.peak_bytes)
    source = "as measured before" if largest.measured else "estimated"
    while_ = f" while {DOING.get(largest.name, largest.name)}" if len(made.stages) > 1 else ""
    return (
        f"{made.memory_kind.capitalize()}: at most about {readable_bytes(largest.peak_bytes)}{while_} ({source}); "
        f"{readable_bytes(made.limit_bytes)} may be used."
    )


def _time_line(made: Forecast) -> str:
    return " ".join(filter(None, (_known_time(made), _first_time(made))))


def _known_time(made: Forecast) -> str:
    if made.seconds is not None:
        return f"Time: about {format_seconds(made.seconds)}, judging by the last time."
    open_ = [DOING.get(stage.name, stage.name) for stage in made.stages if stage.seconds is None]
    if len(open_) == len(made.stages):
        return "Time: not measured on this computer yet."
    known = sum(stage.seconds for stage in made.stages if stage.seconds is not None)
    return f"Time: about {format_seconds(known)} without {listed(open_)} (not measured on this computer yet)."


def _first_time(made: Forecast) -> str:
    """What getting a base ready takes beside it; of several stages the longest."""
    stages = [(stage.first_s, stage.first_measured) for stage in made.stages if stage.first_s]
    if not stages:
        return ""
    seconds, measured = max(stages, key=lambda stage: stage[0] or 0.0)
    source = "as measured before" if measured else "estimated: 1 GB a second from the disk"
    most = "at most " if measured else ""
    told = f"{most}about {format_seconds(seconds or 0.0)} ({source})"
    return f"Reading the base model and making it fit comes on top where it is not in memory yet: {told}."
