"""The device is one step ahead of what is told, and never more."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from headshot_ui.families.protocol import DenoiseStep
from headshot_ui.generation.ahead import _behind, one_ahead, read_aside


def steps(events: list[str], total: int = 3) -> Iterator[DenoiseStep]:
    for number in range(1, total + 1):
        events.append(f"launch {number}")
        yield DenoiseStep(number, total, torch.zeros(1))


def marked(events: list[str]) -> Callable[[], Callable[[], None]]:
    count = iter(range(1, 100))

    def mark() -> Callable[[], None]:
        number = next(count)
        return lambda: events.append(f"wait {number}")

    return mark


def test_the_next_step_is_launched_before_the_last_one_is_waited_for() -> None:
    events: list[str] = []
    for step in _behind(steps(events), marked(events)):
        events.append(f"tell {step.step}")
    assert events == [*("launch 1", "launch 2", "wait 1", "tell 1", "launch 3", "wait 2", "tell 2", "wait 3", "tell 3")]


def test_a_cancel_launches_no_more() -> None:
    events: list[str] = []
    for _ in _behind(steps(events), marked(events)):
        break
    assert events == ["launch 1", "launch 2", "wait 1"]


def test_a_processor_is_not_ahead() -> None:
    events: list[str] = []
    assert next(one_ahead(steps(events), "cpu")).step == 1
    assert events == ["launch 1"]
    assert torch.equal(read_aside(torch.ones(2)), torch.ones(2))
