"""The trial of bfloat16; Apple's GPUs are played by the CPU, right and wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headshot_ui import bfloat16
from headshot_ui.bfloat16 import computes_in_bfloat16


def test_a_device_that_computes_right_passes_and_one_that_is_not_there_does_not() -> None:
    assert computes_in_bfloat16("cpu")
    assert not computes_in_bfloat16("mps") or torch.backends.mps.is_available()
    assert not computes_in_bfloat16("nothing")


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("wrong", [lambda t: t * 1.2, lambda t: t * 0, lambda t: t / 0])
def test_a_wrong_answer_or_gradient_does_not_pass(which: int, wrong: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    right = bfloat16._step

    def step(device: str, half: bool) -> tuple[torch.Tensor, ...]:
        told = list(right("cpu", half))
        told[which] = wrong(told[which]) if half else told[which]
        return tuple(told)

    monkeypatch.setattr(bfloat16, "_step", step)
    assert not computes_in_bfloat16("mps")


def test_frozen_weights_and_autocast_are_in_half_and_what_is_trained_is_not() -> None:
    answer, down, up = bfloat16._step("cpu", half=True)
    assert answer.dtype == torch.bfloat16 and down.dtype == up.dtype == torch.float32
