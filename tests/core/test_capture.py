"""When a step is recorded, when it is recorded again, and when it is carried out as it is."""

from __future__ import annotations

import gc
import logging
from contextlib import nullcontext
from typing import Any

import pytest
import torch

from headshot_ui.capture import Captured, Graphs, graphs, record_graph


class FakeCaptured:
    """Remembers where the weights were, as a graph does, and computes with what lies there."""

    made: list[FakeCaptured]

    def __init__(self, step: Any, inputs: tuple[torch.Tensor, ...], pool: Any, warm_ups: int) -> None:
        self.step, self.weight, self.warm_ups, self.replays = step, step.module.weight.data, warm_ups, 0
        FakeCaptured.made.append(self)

    def replay(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.replays += 1
        return (inputs[0] @ self.weight.T,)


class Step:
    """What a drawing repeats: equal for the same module."""

    def __init__(self, module: torch.nn.Linear) -> None:
        self.module, self.calls = module, 0

    def __call__(self, inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self.calls += 1
        return (self.module(inputs),)


@pytest.fixture
def step() -> Step:
    FakeCaptured.made = []
    return Step(torch.nn.Linear(3, 3, bias=False).requires_grad_(False))


def run(recorded: Graphs, step: Step, times: int, rows: int = 2) -> list[torch.Tensor]:
    call = recorded.record(step, step.module)
    inputs = torch.arange(3.0 * rows).view(rows, 3)
    return [call(inputs)[0] for _ in range(times)]


def test_the_first_step_sets_up_and_the_rest_is_replayed(step: Step) -> None:
    recorded = Graphs("cuda", FakeCaptured)
    results = run(recorded, step, 4)
    (made,) = FakeCaptured.made
    assert (step.calls, made.replays, made.warm_ups, len(recorded)) == (1, 3, 0, 1)
    assert all(torch.allclose(result, results[0]) for result in results)
    run(recorded, step, 4)  # the next batch of the same size
    assert (step.calls, made.replays, len(FakeCaptured.made)) == (1, 7, 1)


def test_while_memory_is_being_locked_nothing_is_recorded(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    settled = iter((False, False, True))
    monkeypatch.setattr("headshot_ui.capture.pinned.settled", lambda: next(settled))
    run(Graphs("cuda", FakeCaptured), step, 6)
    assert (step.calls, FakeCaptured.made[0].replays) == (3, 3)  # the first one does not ask


def test_each_shape_has_its_own(step: Step) -> None:
    recorded = Graphs("cuda", FakeCaptured)
    for rows in (2, 1, 2, 1):
        assert run(recorded, step, 3, rows)[-1].shape == (rows, 3)
    assert len(recorded) == 2 and step.calls == 2


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_without_a_cuda_card_nothing_is_recorded(device: str, step: Step) -> None:
    recorded = Graphs(device, FakeCaptured)
    assert recorded.record(step, step.module) is step
    run(recorded, step, 3)
    assert step.calls == 3 and not FakeCaptured.made


def test_other_weights_are_never_drawn_with_by_an_old_recording(step: Step) -> None:
    recorded = Graphs("cuda", FakeCaptured)
    run(recorded, step, 3)
    step.module.weight = torch.nn.Parameter(step.module.weight * 2, requires_grad=False)  # as putting a LoRA on does
    results = run(recorded, step, 3)
    assert torch.allclose(results[2], step.module(torch.arange(6.0).view(2, 3))) and len(FakeCaptured.made) == 2
    step.module.weight.data = step.module.weight.data.clone() + 1  # as moving it to the card does
    results = run(recorded, step, 3)
    assert torch.allclose(results[2], step.module(torch.arange(6.0).view(2, 3))) and len(FakeCaptured.made) == 3


def test_memory_of_recorded_weights_is_given_to_nobody_meanwhile(step: Step) -> None:
    recorded = Graphs("cuda", FakeCaptured)
    run(recorded, step, 2)
    place = step.module.weight.data_ptr()
    assert [tensor.data_ptr() for tensor in recorded._weights] == [place]
    recorded.drop()
    assert not recorded._weights and len(recorded) == 0


def test_what_cannot_be_recorded_is_carried_out_as_it_is_and_told_once(
    step: Step, caplog: pytest.LogCaptureFixture
) -> None:
    tries: list[int] = []

    def no_room(*_: Any, **__: Any) -> FakeCaptured:
        tries.append(1)
        raise torch.OutOfMemoryError("out of memory")

    recorded = Graphs("cuda", no_room)
    with caplog.at_level(logging.WARNING):
        run(recorded, step, 4)
        run(recorded, step, 4, rows=1)
    assert (step.calls, len(tries), len(recorded)) == (8, 1, 0)
    assert [record.message for record in caplog.records] == [
        "Steps are carried out one by one from here on: recording failed (out of memory)"
    ]


def test_the_end_of_a_stage_forgets_whatever_happened(step: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyError), graphs("cpu") as recorded:
        recorded._captured["something"] = object()  # type: ignore[assignment]
        raise KeyError
    assert len(recorded) == 0


def test_nothing_is_collected_while_a_card_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is let go of might wait for the card, which no recording survives."""
    cuda: Any = torch.cuda
    monkeypatch.setattr(cuda, "CUDAGraph", lambda: "graph")
    monkeypatch.setattr(cuda, "graph", lambda graph, **how: nullcontext())
    monkeypatch.setattr(cuda, "current_stream", lambda: "stream")
    monkeypatch.setattr(cuda, "set_stream", lambda stream: None)
    assert record_graph(gc.isenabled, None) == ("graph", False) and gc.isenabled()


@pytest.mark.gpu
def test_a_recorded_step_gives_what_the_step_gives_bit_by_bit() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64)).cuda()
    module.requires_grad_(False)

    def step(inputs: torch.Tensor, factor: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return module(inputs) * factor, inputs + factor

    inputs, factor = torch.randn(8, 64, device="cuda"), torch.tensor(2.0, device="cuda")
    captured = Captured(step, (inputs, factor))
    for _ in range(3):
        inputs, factor = torch.randn_like(inputs), factor + 1
        first = captured.replay(inputs, factor)
        assert all(torch.equal(one, other) for one, other in zip(first, step(inputs, factor), strict=True))
        captured.replay(inputs * 2, factor)  # what was given before is the caller's own
        assert all(torch.equal(one, other) for one, other in zip(first, step(inputs, factor), strict=True))


@pytest.mark.gpu
def test_a_step_that_asks_the_card_is_carried_out_as_it_is() -> None:
    module = torch.nn.Linear(8, 8).cuda().requires_grad_(False)

    def step(inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (module(inputs) * float(inputs.sum()),)  # waits for the card, which no recording can

    recorded, inputs = Graphs("cuda"), torch.randn(2, 8, device="cuda")
    before = torch.cuda.current_stream()
    call = recorded.record(step, module)
    results = [call(inputs)[0] for _ in range(4)]
    assert all(torch.equal(result, results[0]) for result in results) and len(recorded) == 0
    assert torch.cuda.current_stream() == before
