"""Compiled blocks in a measurement: where ``--compile always`` asks for them, outside of the time that counts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headshot_ui import compiling
from headshot_ui.bench.setting import BenchSetting

if TYPE_CHECKING:
    from headshot_ui.families.protocol import LoadedBase


@dataclass
class CompilingClock:
    """Whether our way has compiled blocks, and how long they took so far; one for each row.

    "auto" is "never" here: a few timed steps never pay, and rows stay what they were.
    """

    asked: bool
    seconds: float = 0.0

    @classmethod
    def of(cls, setting: BenchSetting) -> CompilingClock:
        """What is compiled lies in the folder of results, not in a measurement's own, which is removed."""
        return cls(compiling.wanted(setting.settings))

    @contextmanager
    def blocks(self, loaded: LoadedBase, learning: bool) -> Iterator[None]:
        """Those of a denoiser in memory, compiled for the length of a block if that is asked for."""
        if not self.asked:
            yield
            return
        with compiling.compiled(loaded.repeated(), learning=learning) as state:
            yield
        self.seconds += state.seconds

    def add_stage(self, stages: Mapping[str, float]) -> None:
        """Seconds of a drawing that came before the time that counts; it compiles by itself."""
        self.seconds += stages.get(compiling.STAGE, 0.0)

    @property
    def found(self) -> float | None:
        """For a row."""
        return self.seconds if self.asked else None

    @property
    def words(self) -> str:
        """For the end of a title."""
        return ", compiled blocks" if self.asked else ""
