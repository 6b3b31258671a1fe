"""A step that is repeated with tensors of the same shapes, recorded once in a CUDA graph and then replayed.

A step of a large network is thousands of kernels, and a processor launches them more slowly than a fast card computes
them. A graph launches all of them at once. It computes exactly what the step itself computes, with the same kernels.

What is recorded are addresses: of the inputs, which are therefore copied into buffers of the graph's own before each
replay, and of the weights. So a graph is only as good as the weights stay where they were: ``Graphs`` looks where they
are before each stretch of steps, keeps the memory it knows from being given to others, and records again where a LoRA
was put on or taken off or the network was moved. Numbers that are no tensors (a LoRA's strength) are recorded too:
whoever changes one makes new weights or a new ``Graphs``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from headshot_ui import pinned
from headshot_ui.collecting import nothing_collected

if TYPE_CHECKING:
    import torch

#: Tensors in, tensors out. Equal steps (as keys of a dict are equal) do the same.
Step = Callable[..., tuple["torch.Tensor", ...]]

T = TypeVar("T")

_log = logging.getLogger(__name__)


class Replayable(Protocol):
    """What ``Graphs`` needs of a recorded step; tests put a fake in its place."""

    def replay(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the step gives for these inputs, in tensors of the caller's own."""


class Captured:
    """One step in one CUDA graph. Nothing waits for the card here, but making it does, for a second or less."""

    def __init__(self, step: Step, inputs: tuple[torch.Tensor, ...], pool: Any = None, warm_ups: int = 1) -> None:
        """``inputs`` give shapes, formats and device. ``pool`` is memory shared with graphs that never run at once.

        The first pass of a step sets libraries up, which cannot be recorded: ``warm_ups`` passes are made before, on
        a stream of their own; 0 where the step has run. Raises RuntimeError (torch.OutOfMemoryError is one) when the
        step cannot be recorded; the step itself can be called then as before.
        """
        import torch

        self._inputs = tuple(tensor.clone() for tensor in inputs)
        with _same_stream_afterwards():
            aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(warm_ups):
                    step(*self._inputs)
            torch.cuda.current_stream().wait_stream(aside)
        self._graph, self._outputs = record_graph(partial(step, *self._inputs), pool)

    def replay(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """What the step gives for these inputs, in tensors of the caller's own. Waits for nothing."""
        for buffer, given in zip(self._inputs, inputs, strict=True):
            buffer.copy_(given, non_blocking=True)
        self._graph.replay()
        return tuple(output.clone() for output in self._outputs)


def record_graph(function: Callable[[], T], pool: Any) -> tuple[Any, T]:
    """A CUDA graph of what ``function`` does on the card, which it does not do now, and what it returned.

    Tensors in that are written at each replay. ``pool`` is memory shared with graphs that never run at once, or None.
    Raises RuntimeError (torch.OutOfMemoryError is one) for what cannot be recorded.
    """
    import torch

    graph = torch.cuda.CUDAGraph()
    # "thread_local": other threads (the page asks how much memory is free) must not break the recording. Nor must
    # what Python's collector happens to find in these seconds: letting go of locked memory waits for the card.
    recording = torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local")
    with _same_stream_afterwards(), nothing_collected(), recording:
        outputs = function()
    return graph, outputs


@contextmanager
def _same_stream_afterwards() -> Iterator[None]:
    """A recording that fails may leave its own stream behind as the current one."""
    import torch

    before = torch.cuda.current_stream()
    try:
        yield
    finally:
        torch.cuda.set_stream(before)


class Graphs:
    """The recorded steps of one stage of work; used by one thread.

    Where nothing can be recorded (no CUDA card, too little memory, a step that must not be) steps are carried out as
    they are, and the log says so once.
    """

    def __init__(self, device: str, capture: Callable[..., Replayable] = Captured) -> None:
        self._capture = capture
        self._captured: dict[Hashable, Replayable] = {}
        self._ran: set[Hashable] = set()  # steps that libraries are set up for
        self._places: tuple[int, ...] = ()  # where the weights lay when steps were recorded
        self._weights: list[torch.Tensor] = []  # their memory, so that nobody else gets it meanwhile
        self._pool: Any = None
        self._why_not = "" if device == "cuda" else f"graphs are for CUDA cards, and this is “{device}”"
        if self._why_not:
            _log.debug("Steps are carried out one by one: %s", self._why_not)

    def __len__(self) -> int:
        """How many steps are recorded now."""
        return len(self._captured)

    def record(self, step: Step, module: torch.nn.Module) -> Step:
        """``step``, to be called many times: from the second time with inputs of the same shapes on it is replayed.

        ``module`` has all weights that the step reads; they must stay where they are until the stretch ends.
        """
        if self._why_not:
            return step
        places = _places_of(module)
        if places != self._places:
            if self._captured:
                _log.info("The weights have changed: steps are recorded again")
            self.drop()
            self._places = places
        return partial(self._carry_out, step, module)

    def drop(self) -> None:
        """Forget every recorded step and give its memory back; they will be recorded again when they are needed."""
        self._captured.clear()
        self._ran.clear()
        self._weights.clear()
        self._places = ()
        self._pool = None

    def _carry_out(self, step: Step, module: torch.nn.Module, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        key = (step, tuple((tuple(tensor.shape), tensor.dtype) for tensor in inputs))
        if key not in self._captured:
            # While memory is being locked, for seconds, the driver takes no recording: it comes a few steps later.
            if self._why_not or key not in self._ran or not pinned.settled():
                self._ran.add(key)
                return step(*inputs)
            self._try_to_record(key, step, module, inputs)
        captured = self._captured.get(key)
        return step(*inputs) if captured is None else captured.replay(*inputs)

    def _try_to_record(
        self, key: Hashable, step: Step, module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]
    ) -> None:
        try:
            self._pool = self._pool or _new_pool()
            self._captured[key] = self._capture(step, inputs, pool=self._pool, warm_ups=0)
        except RuntimeError as error:  # out of memory is one
            self.drop()  # what was recorded before takes memory that is wanted now
            self._why_not = f"recording failed ({error})"
            _log.warning("Steps are carried out one by one from here on: %s", self._why_not)
            return
        self._weights = [tensor.data for tensor in _tensors(module)]
        _log.info("A step was recorded for %s", " ".join(str(tuple(tensor.shape)) for tensor in inputs[:1]))


@contextmanager
def graphs(device: str) -> Iterator[Graphs]:
    """Recorded steps for the length of a block; its end gives their memory back, whatever happened in it."""
    made = Graphs(device)
    try:
        yield made
    finally:
        made.drop()


def _new_pool() -> Any:
    import torch

    return torch.cuda.graph_pool_handle() if torch.cuda.is_available() else None


def _places_of(module: torch.nn.Module) -> tuple[int, ...]:
    return tuple(tensor.data_ptr() for tensor in _tensors(module))


def _tensors(module: torch.nn.Module) -> Iterator[torch.Tensor]:
    yield from module.parameters()
    yield from module.buffers()
