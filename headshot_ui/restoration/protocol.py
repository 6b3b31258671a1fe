"""What the rest of the program asks of a face restorer or an upscaler, and nothing more.

A restorer is one file in this package with a module-level ``RESTORER``, found by discovery like a family.
It repairs aligned faces; finding, aligning and pasting back is done by ``faces.py`` for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from headshot_ui.settings import Settings


@dataclass(frozen=True)
class RestorerInfo:
    """One restorer, installed or not."""

    id: str  # "codeformer", "demo"
    title: str
    licence: str
    note: str  # one plain sentence shown in the app
    size_px: int  # side of the aligned square face it takes
    commercial: bool  # False: only for non-commercial use, which has to be accepted once
    demo: bool = False
    terms: str = ""  # where ``commercial`` is False: what a person is shown before accepting, with a link


class LoadedRestorer(Protocol):
    """A restorer in memory. Only the engine's worker thread touches it."""

    info: RestorerInfo

    def restore(self, faces: torch.Tensor, fidelity_weight: float) -> torch.Tensor:
        """(B, 3, S, S) float32 RGB in [-1, 1] to the same shape and range; 0 repairs most, 1 keeps most."""

    def keep(self, parts: frozenset[str]) -> None:
        """{"denoiser"} or any name: on the device; frozenset(): off it."""

    def release(self) -> None:
        """Drop everything; the object is of no use afterwards."""


class Restorer(Protocol):
    """A kind of restorer."""

    info: RestorerInfo

    def weights(self, settings: Settings) -> Path:
        """Where its file lies, or would lie."""

    def missing(self, settings: Settings) -> str:
        """What is missing (or not accepted) and what to do, in one sentence; "" when it can be used."""

    def load(self, settings: Settings) -> LoadedRestorer:
        """Read it. Raises ModelError naming what is missing or damaged."""
