"""The facts of a card and of torch, gathered and told: torch and the driver are fakes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headshot_ui import card_state
from headshot_ui.card_words import NO_FALLBACK
from headshot_ui.errors import DeviceError, MemoryBudgetError, ModelError
from headshot_ui.graphics import Build, Card, Look, Program
from headshot_ui.memory import CONTEXT_BYTES
from headshot_ui.settings import Settings

GB = 2**30


class FakeCuda:
    """A T4 with 3 GB held by others, beside the context of this process."""

    def __init__(self) -> None:
        self.broken = False
        self.held = 3 * GB

    def mem_get_info(self) -> tuple[int, int]:
        if self.broken:
            raise RuntimeError("CUDA error: unspecified launch failure")
        return 15 * GB - self.held - CONTEXT_BYTES - GB, 15 * GB

    def memory_reserved(self) -> int:
        return GB

    def is_available(self) -> bool:
        return True

    def is_initialized(self) -> bool:
        return True

    def get_device_capability(self) -> tuple[int, int]:
        return 7, 5

    def get_arch_list(self) -> list[str]:
        return ["sm_75"]

    def get_device_properties(self, index: int) -> Any:
        return SimpleNamespace(name="T4", uuid="11aa", major=7, minor=5)

    def synchronize(self) -> None:
        if self.broken:
            raise RuntimeError("CUDA error: unspecified launch failure")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    made = FakeCuda()
    fake: Any = SimpleNamespace(cuda=made, version=SimpleNamespace(cuda="13.2"), ones=lambda *_, **__: None)
    monkeypatch.setitem(sys.modules, "torch", fake)
    monkeypatch.setattr(card_state, "programs_on", lambda uuid: (Program(1, f"game on {uuid}", 2 * GB),))
    monkeypatch.setattr(card_state.sys, "platform", "linux")
    card_state._programs.forget()
    yield made
    card_state._programs.forget()


def settings_for(tmp_path: Path, **given: Any) -> Settings:
    return Settings.from_environment(root=tmp_path, environment={}, **given)


def test_before_torch_is_loaded_the_driver_and_the_installed_files_tell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)  # an import fails
    monkeypatch.setattr(card_state, "known_cards", lambda: Look((Card("RTX 3060", "GPU-1", "470.1", 2**33),)))
    monkeypatch.setattr(card_state, "installed_build", lambda: Build("2.15.0+cu132", "13.2"))
    told = card_state.unused_card(settings_for(tmp_path))
    assert "driver 470.1 is too old" in told
    assert card_state.unused_card(settings_for(tmp_path, device="cpu")) == "", "it was not asked for"
    (note,) = card_state.plan_notes(settings_for(tmp_path), "cpu")
    assert note.startswith(told) and "processor" in note
    monkeypatch.setattr(card_state, "installed_build", lambda: Build("2.15.0+cu126", "12.6"))
    assert "470.1" in card_state.unused_card(settings_for(tmp_path)), "525 is needed for that one"
    monkeypatch.setattr(card_state, "known_cards", Look)
    assert card_state.plan_notes(settings_for(tmp_path), "cpu") == ()


def test_a_plan_on_turing_says_why_float16_and_who_holds_memory(tmp_path: Path, cuda: FakeCuda) -> None:
    settings = settings_for(tmp_path)
    assert settings.device == "cuda" and card_state.unused_card(settings) == ""
    why, held = card_state.plan_notes(settings, "cuda")
    assert "float16 with a scaled loss" in why and "7.5" in why
    assert "12.0 GB" not in why and "others hold 3.0 GB" in held and "game on 11aa (2.0 GB)" in held
    assert "11.4 GB of the card's 15.0 GB are free" in held
    cuda.held = 2**28
    assert len(card_state.plan_notes(settings, "cuda")) == 1, "a desktop is not worth telling before a job"
    assert "game" in card_state.who_holds_memory(), "but once memory has run out it is"
    cuda.held = 0
    assert card_state.who_holds_memory() == "14.4 GB of the card's 15.0 GB are free for this program."


def test_the_driver_is_not_asked_for_programs_at_every_change_of_a_form(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(card_state, "programs_on", lambda uuid: asked.append(uuid) or ())
    for _ in range(3):
        card_state.who_holds_memory()
    assert asked == ["11aa"]


def test_out_of_memory_tells_who_holds_it_and_on_windows_the_switch(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "game" in card_state.out_of_graphics_memory() and NO_FALLBACK not in card_state.out_of_graphics_memory()
    monkeypatch.setattr(card_state.sys, "platform", "win32")
    assert card_state.out_of_graphics_memory().endswith(NO_FALLBACK)
    cuda.broken = True
    assert card_state.out_of_graphics_memory() == NO_FALLBACK, "a card that does not answer is told elsewhere"


def chained(error: Exception, *causes: Exception) -> Exception:
    last = error
    for cause in causes:
        last.__cause__, last = cause, cause
    return error


@pytest.mark.parametrize(
    ("error", "broken", "lost"),
    [
        (RuntimeError("CUDA error: device-side assert triggered"), False, True),
        (chained(ModelError("damaged"), RuntimeError("CUDA error: unspecified launch failure")), False, True),
        (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"), True, True),
        (RuntimeError("CUBLAS_STATUS_EXECUTION_FAILED when calling cublasGemmEx"), False, False),
        (chained(DeviceError("x"), RuntimeError("CUDA error: invalid argument")), True, True),
        (chained(MemoryBudgetError("x"), RuntimeError("CUDA error: out of memory")), True, False),
        (RuntimeError("CUBLAS_STATUS_ALLOC_FAILED"), True, False),
        (ValueError("shapes"), True, False),
    ],
)
def test_a_lost_card_is_told_by_words_or_by_trying_it(
    error: Exception, broken: bool, lost: bool, cuda: FakeCuda
) -> None:
    cuda.broken = broken
    assert card_state.has_lost_card(error) is lost


def test_a_card_that_was_never_used_is_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: False)))
    assert not card_state.has_lost_card(RuntimeError("CUDA error: invalid argument"))
