"""What a measurement says: one row of the table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """The same work done two ways."""

    work: str  # "SDXL training step, 1024 px, no checkpointing"
    reference_s: float  # seconds, median
    ours_s: float
    bound_s: float | None  # no program can be faster, by arithmetic or bandwidth; None: there is no such bound
    reference_peak_bytes: int | None
    ours_peak_bytes: int | None
    goal: str  # in words: "at most 0.060 s on an H200, no more memory"
    met: bool | None  # None: the goal names another machine than this, or the models were tiny
    note: str = ""  # one sentence: what was done the reference way, or why the goal is not met
    compiling_s: float | None = None  # what compiling our blocks took, outside of ``ours_s``; None: they were ordinary

    @property
    def ratio(self) -> float:
        """How many times as fast ours is. 0.0 where the reference took no time that could be measured."""
        return self.reference_s / self.ours_s if self.ours_s > 0 else 0.0


def as_json(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """The rows with only JSON types, in the order of the fields, ``ratio`` after the two times."""
    return [_told(row) for row in rows]


def _told(row: Row) -> dict[str, Any]:
    fields = asdict(row)
    times = {name: fields.pop(name) for name in ("work", "reference_s", "ours_s")}
    return {**times, "ratio": row.ratio, **fields}


def table(rows: Iterable[Row]) -> list[tuple[str, ...]]:
    """Cells for ``commands.output.print_table``, the heading first."""
    heading = ("work", "reference", "ours", "times as fast", "bound", "peak: reference", "ours", "goal met")
    return [heading, *(_cells(row) for row in rows)]


def _cells(row: Row) -> tuple[str, ...]:
    met = {True: "yes", False: "NO", None: "-"}[row.met]
    bound = "-" if row.bound_s is None else seconds(row.bound_s)
    peaks = (_gigabytes(row.reference_peak_bytes), _gigabytes(row.ours_peak_bytes))
    return (row.work, seconds(row.reference_s), seconds(row.ours_s), f"{row.ratio:.2f}", bound, *peaks, met)


def seconds(value: float) -> str:
    """Three digits that count, in a unit that needs few zeros."""
    return f"{value:.3g} s" if value >= 0.1 else f"{value * 1000:.3g} ms"


def _gigabytes(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**30:.2f} GiB"
