"""What a file in ``works/`` offers as its ``WORK``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from headshot_ui.bench.rows import Row
from headshot_ui.bench.setting import BenchSetting

#: What is measured where no model is named.
USUAL_MODEL = "sdxl"


@dataclass(frozen=True)
class Work:
    """One thing to measure."""

    name: str  # as typed after ``bench``
    title: str
    needs_gpu: bool  # at full size; without a GPU it is measured tiny, to show that it works
    measure: Callable[[BenchSetting], Iterator[Row]]  # raises HeadshotError
    model: str = USUAL_MODEL  # of the family that it is measured with; chosen by ``--model``
