"""Which photos make up the next micro-batch."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class PhotoOrder:
    """An endless shuffle: every photo comes up once per round, and a batch holds photos of one shape only.

    ``waiting`` is its whole state besides the generator's.
    """

    def __init__(self, shapes: Sequence[Hashable], generator: torch.Generator) -> None:
        self.shapes = list(shapes)
        self.generator = generator
        self.waiting: list[int] = []

    def next_batch(self, size: int) -> list[int]:
        """Indices of ``size`` photos of one shape; the longest waiting photo decides which shape."""
        if not self.waiting:
            self._shuffle_in()
        shape = self.shapes[self.waiting[0]]
        while sum(self.shapes[index] == shape for index in self.waiting) < size:
            self._shuffle_in()
        batch = [index for index in self.waiting if self.shapes[index] == shape][:size]
        for index in batch:
            self.waiting.remove(index)  # the first of equal ones, so the order of waiting stays
        return batch

    def _shuffle_in(self) -> None:
        import torch

        self.waiting += torch.randperm(len(self.shapes), generator=self.generator).tolist()
