"""What a check says: that something holds, that it fails, or that it could not be tried here and why."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from headshot_ui.prove.bench import Bench

Verdict = Literal["holds", "fails", "not possible"]


@dataclass(frozen=True)
class Finding:
    """The outcome of one check."""

    verdict: Verdict
    figure: str  # what was found, in a few words; why, where it was not possible
    advice: str = ""  # what to do; "" unless it fails
    measured: Mapping[str, float] = field(default_factory=dict)  # by name with unit, e.g. "seconds per picture"
    leads_on: bool = False  # although this was not possible, what needs it can be tried


def holds(figure: str, **measured: float) -> Finding:
    """Names of ``measured`` are written with spaces for underscores."""
    return Finding("holds", figure, measured=_spaced(measured))


def fails(figure: str, advice: str, **measured: float) -> Finding:
    return Finding("fails", figure, advice, _spaced(measured))


def not_possible(why: str, leads_on: bool = False) -> Finding:
    return Finding("not possible", why, leads_on=leads_on)


def _spaced(measured: Mapping[str, float]) -> dict[str, float]:
    return {name.replace("_", " "): value for name, value in measured.items()}


@dataclass(frozen=True)
class Check:
    """One thing that is tried. ``run`` may raise HeadshotError, which is a failure with that sentence."""

    id: str
    title: str  # what is claimed, e.g. "the loss falls"
    run: Callable[[Bench], Finding]
    needs: tuple[str, ...] = ()  # ids of the checks without which this one says nothing


@dataclass(frozen=True)
class Result:
    """A check after it was tried."""

    id: str
    title: str
    verdict: Verdict
    figure: str
    advice: str
    measured: Mapping[str, float]
    seconds: float
    peak_ram_bytes: int  # of the whole process
    peak_vram_bytes: int  # by torch's count; 0 without a GPU


@dataclass(frozen=True)
class Proof:
    """All of it."""

    results: Sequence[Result]
    notes: Sequence[str]  # sentences the stages said while they ran
    seconds: float

    @property
    def failed(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.verdict == "fails")
