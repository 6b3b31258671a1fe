"""A card is given its next step before anybody looks at the last one, so that it never waits; but no more than one.

Without a limit the processor would be at the end of a batch long before the card: progress would be a fable, and a
cancel would come minutes late.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from headshot_ui.families.protocol import DenoiseStep


def one_ahead(steps: Iterator[DenoiseStep], device: str) -> Iterator[DenoiseStep]:
    """The same steps, each when the device has done it; a CUDA card has the next one by then."""
    return _behind(steps, _mark) if device == "cuda" else steps


def _behind(steps: Iterator[DenoiseStep], mark: Callable[[], Callable[[], object]]) -> Iterator[DenoiseStep]:
    """Each step one later, once what ``mark`` gave right after it has waited for it."""
    before: tuple[DenoiseStep, Callable[[], object]] | None = None
    for step in steps:
        done = mark()
        if before is not None:
            before[1]()
            yield before[0]
        before = step, done
    if before is not None:
        before[1]()
        yield before[0]


def _mark() -> Callable[[], object]:
    """What waits until the card has come to this place."""
    import torch

    event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    event.record()
    return event.synchronize


def read_aside(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor that is already computed, in main memory, without waiting for what the card computes now."""
    import torch

    if tensor.device.type != "cuda":
        return tensor.cpu()
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        return tensor.cpu()
