"""A training step recorded once as a CUDA graph and then repeated, instead of launched kernel by kernel.

A step of SDXL is some ten thousand kernels, and Python starts them far more slowly than a card computes them. A graph
is started in one call. It knows addresses, not values: inputs are copied to where they were when it was recorded, and
when weights move, ``forget`` has to be called before the next step. There is one graph per shape of inputs.

What is recorded does not happen. The first step of each shape is computed the ordinary way, which also makes all that
libraries make at their first call, and only from the second on it is recorded and repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch

from headshot_ui import pinned
from headshot_ui.capture import record_graph
from headshot_ui.training.computing import (
    Attempt,
    Computing,
    LossInputs,
    eager_attempt,
    on_device,
    read_attempt,
    steps_on_its_own,
)

_log = logging.getLogger(__name__)

Key = tuple[tuple[str, tuple[int, ...]], ...]
#: Runs a function while recording; the graph, and what the function returned: its values are those of the last repeat.
Recorder = Callable[[Callable[[], list[torch.Tensor]]], tuple[Any, list[torch.Tensor]]]


@dataclass(frozen=True)
class Recording:
    """A graph with the places its inputs are read from and its results written to."""

    graph: Any  # torch.cuda.CUDAGraph
    inputs: dict[str, torch.Tensor]
    results: list[torch.Tensor]

    def repeat(self, inputs: LossInputs) -> None:
        for name, tensor in inputs.items():
            self.inputs[name].copy_(tensor, non_blocking=True)
        self.graph.replay()


@dataclass
class CapturedSteps:
    """Makes attempts at steps like ``computing.eager_attempt``, by recordings where there are some."""

    computing: Computing
    new_recorder: Callable[[], Recorder]
    recordings: dict[Key, Recording] = field(default_factory=dict)
    # Where a step has several micro-batches: what their gradients are added up in, and the change of the LoRA.
    sums: list[torch.Tensor] = field(default_factory=list)
    last: Recording | None = None
    seen: set[Key] = field(default_factory=set)
    possible: bool = True
    recorder: Recorder | None = None

    @property
    def whole(self) -> bool:
        """Whether gradients and change of the LoRA are recorded as one: there is only one micro-batch."""
        return self.computing.micro_batches == 1 and steps_on_its_own(self.computing.optimizer)

    def attempt(self, batches: Sequence[LossInputs], meanwhile: Callable[[], None]) -> Attempt:
        """One step; ``meanwhile`` is called while the card computes."""
        keys = [shapes_of(batch) for batch in batches]
        if not self.possible or not self._recorded(keys, batches):
            self.seen.update(keys)
            return eager_attempt(self.computing, batches, meanwhile)
        results = []
        for key, batch in zip(keys, batches, strict=True):
            recording = self.recordings[key]
            recording.repeat(batch)
            results += [result.clone() for result in recording.results]  # the next of this shape writes over it
        if not self.whole:
            results.append(self._change())
        return read_attempt(results, meanwhile)

    def _change(self) -> torch.Tensor:
        """The change of the LoRA by gradients that lie in ``sums``; bitsandbytes' cannot be recorded."""
        if self.last is None:
            self._place_gradients()
            norm = self._update()
            self.computing.optimizer.zero_grad()  # an ordinary step has its gradients elsewhere
            return norm
        self.last.repeat({})
        return self.last.results[0]

    def forget(self) -> None:
        """Weights are about to move, or their memory is wanted: what was recorded is of no use any more."""
        self.recordings.clear()
        self.sums.clear()
        self.last, self.recorder = None, None
        self.computing.optimizer.zero_grad()
        torch.cuda.empty_cache()

    def _recorded(self, keys: Sequence[Key], batches: Sequence[LossInputs]) -> bool:
        """Whether there is a recording for each batch, after those were made that can be."""
        if not self.seen.issuperset(keys) or not pinned.settled():
            return False
        try:
            for key, batch in zip(keys, batches, strict=True):
                if key not in self.recordings:
                    self._record(key, batch)
        except (RuntimeError, torch.OutOfMemoryError) as error:
            self.possible = False
            self.forget()
            _log.warning("Steps are computed kernel by kernel, because they cannot be recorded: %s", error)
            return False
        return True

    def _record(self, key: Key, batch: LossInputs) -> None:
        computing = self.computing
        inputs = on_device(batch, computing.parameters[0].device)

        def gradients() -> list[torch.Tensor]:
            return [computing.gradients(inputs)]

        def whole() -> list[torch.Tensor]:
            results = [*gradients(), computing.update()]
            computing.optimizer.zero_grad()
            return results

        if self.recorder is None:
            self.recorder = self.new_recorder()
        if not self.whole:
            self._place_gradients()
        graph, results = self.recorder(whole if self.whole else gradients)
        self.recordings[key] = Recording(graph, inputs, results)
        if not self.whole and self.last is None and steps_on_its_own(computing.optimizer):
            graph, results = self.recorder(lambda: [self._update()])
            self.last = Recording(graph, {}, results)
        computing.optimizer.zero_grad()

    def _place_gradients(self) -> None:
        """Have gradients added up in ``sums``, whose places all recordings know."""
        parameters = self.computing.parameters
        self.sums = self.sums or [torch.zeros_like(parameter) for parameter in parameters]
        for parameter, total in zip(parameters, self.sums, strict=True):
            parameter.grad = total

    def _update(self) -> torch.Tensor:
        norm = self.computing.update()
        self.computing.optimizer.zero_grad(set_to_none=False)
        return norm


def can_record(computing: Computing) -> bool:
    """Whether steps can be recorded: on an NVIDIA card."""
    return computing.parameters[0].device.type == "cuda"


def cuda_recorder() -> Recorder:
    """Records on the card; see ``capture.record_graph``. Graphs of one recorder share their memory."""
    return partial(record_graph, pool=torch.cuda.graph_pool_handle())


def shapes_of(inputs: LossInputs) -> Key:
    return tuple((name, tuple(tensor.shape)) for name, tensor in sorted(inputs.items()))
