"""Cards, programs and torch's build as the driver and files tell them; the driver is played by canned answers."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest

from headshot_ui import graphics
from headshot_ui.graphics import (
    Ask,
    Build,
    Card,
    Look,
    Program,
    has_kernels,
    hidden_by,
    installed_build,
    is_driver_too_old,
    look_at_cards,
    needed_driver,
    nvidia_smi,
    oldest_kernels,
    programs_on,
)

TURING = "Tesla T4, GPU-11aa, 535.104.05, 15360, Default, 7.5\n"
SECOND = "NVIDIA GeForce RTX 4090, GPU-22bb, 535.104.05, 24564, Exclusive_Process, 8.9\n"
#: What torch 2.15.0+cu132 answers to ``torch.cuda.get_arch_list()``, and intermediate code as other builds have it.
ARCHS = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")


def answers(*told: tuple[int, str] | None) -> tuple[Ask, list[Sequence[str]]]:
    """A driver that gives these answers in turn, and what it was asked."""
    left, asked = list(told), []

    def ask(arguments: Sequence[str]) -> tuple[int, str] | None:
        asked.append(arguments)
        return left.pop(0)

    return ask, asked


def test_cards_are_told_with_driver_memory_mode_and_capability() -> None:
    ask, asked = answers((0, TURING + SECOND))
    assert look_at_cards(ask) == Look((
        Card("Tesla T4", "GPU-11aa", "535.104.05", 15360 * 2**20, "Default", (7, 5)),
        Card("NVIDIA GeForce RTX 4090", "GPU-22bb", "535.104.05", 24564 * 2**20, "Exclusive_Process", (8, 9)),
    ))  # fmt: skip
    assert len(asked) == 1 and "compute_cap" in asked[0][0]


def test_a_driver_that_knows_no_capability_is_asked_again_without() -> None:
    refused = (2, 'Field "compute_cap" is not a valid field to query.\n')
    ask, asked = answers(refused, (0, "GeForce GTX 780, GPU-1, 390.157, [N/A], Default\n"))
    assert look_at_cards(ask).cards == (Card("GeForce GTX 780", "GPU-1", "390.157", 0, "Default", None),)
    assert len(asked) == 2 and "compute_cap" not in asked[1][0]


def test_no_driver_is_no_trouble_and_a_broken_one_is() -> None:
    assert look_at_cards(answers(None)[0]) == Look()
    mismatch = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95\n"
    assert look_at_cards(answers((18, mismatch))[0]).trouble == " ".join(mismatch.split())
    assert look_at_cards(answers((9, ""))[0]).trouble == "nvidia-smi ended with code 9"


def test_programs_of_one_card_come_largest_first_without_this_one() -> None:
    text = (
        f"GPU-11aa, {os.getpid()}, 900, /usr/bin/python3\n"
        "GPU-11aa, 20, 300, /opt/game/run\n"
        "GPU-11aa, 21, 5000, /home/a/.venv/bin/python3 --port 1, 2\n"
        "GPU-22bb, 22, 800, other\n"
    )
    assert programs_on("GPU-11aa", answers((0, text))[0]) == (
        Program(21, "python3", 5000 * 2**20),
        Program(20, "run", 300 * 2**20),
    )
    assert len(programs_on("11aa", answers((0, text))[0])) == 2, "as torch writes it"
    assert len(programs_on("", answers((0, text))[0])) == 3
    assert programs_on("", answers((6, "No"))[0]) == programs_on("", answers(None)[0]) == ()


def test_windows_tells_names_without_memory() -> None:
    text = (
        "GPU-1, 4, [N/A], C:\\Program Files\\Game, The\\game.exe\n"
        "GPU-1, 5, [N/A], [Insufficient Permissions]\n"
        "GPU-1, 6, [Not Available], C:\\Windows\\System32\\dwm.exe\n"
    )
    told = programs_on("GPU-1", answers((0, text))[0])
    assert told == (Program(4, "game", None), Program(5, "", None), Program(6, "dwm", None))


@pytest.mark.skipif(os.name == "nt", reason="the fake is a shell script")
def test_the_drivers_own_program_is_run_and_whatever_it_does_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "nvidia-smi"
    fake.write_text(f"#!/bin/sh\ncase $1 in --query-gpu*) echo '{TURING.strip()}';; *) echo no >&2; exit 3;; esac\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    assert look_at_cards().cards[0].name == "Tesla T4" and programs_on("") == ()
    assert nvidia_smi(["--what"]) == (3, "no\n")
    fake.write_text("#!/bin/sh\nexec sleep 20\n")
    monkeypatch.setattr(graphics, "ASK_TIMEOUT_S", 0.2)
    assert "does not answer" in look_at_cards().trouble
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    assert nvidia_smi([]) is None


def test_the_build_is_read_without_importing_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "version.py").write_text(
        "from typing import Optional\n__version__ = '2.15.0+cu132'\n"
        "cuda: Optional[str] = '13.2'\nhip: Optional[str] = None\n"
    )
    assert installed_build(tmp_path) == Build("2.15.0+cu132", "13.2")
    (tmp_path / "amd").mkdir()
    (tmp_path / "amd" / "version.py").write_text("__version__ = '2.15.0+rocm7'\ncuda = None\nhip = '7.0'\n")
    assert installed_build(tmp_path / "amd") == Build("2.15.0+rocm7", None, for_others=True)
    assert installed_build(tmp_path / "nowhere") is None
    fake = SimpleNamespace(cuda=SimpleNamespace(get_arch_list=lambda: list(ARCHS)))
    monkeypatch.setitem(sys.modules, "torch", fake)
    assert installed_build(tmp_path) == Build("2.15.0+cu132", "13.2", archs=ARCHS), "torch is loaded: it tells more"


def test_the_build_of_this_environment_is_what_torch_itself_says() -> None:
    import torch

    build = installed_build()
    assert build is not None
    assert (build.version, build.cuda) == (torch.__version__, torch.version.cuda)
    assert build.archs == tuple(torch.cuda.get_arch_list())


@pytest.mark.parametrize(
    ("capability", "fits"),
    [
        ((7, 5), True), ((8, 0), True), ((8, 9), True), ((9, 0), True), ((12, 0), True), ((12, 1), True),
        ((13, 0), True), ((7, 0), False), ((6, 1), False), ((3, 5), False), ((11, 0), False),
    ],
)  # fmt: skip
def test_machine_code_runs_on_its_major_version_and_intermediate_code_on_all_newer(
    capability: tuple[int, int], fits: bool
) -> None:
    assert has_kernels(capability, ARCHS) is fits


def test_a_letter_ties_code_to_one_version() -> None:
    assert has_kernels((9, 0), ["sm_90a"]) and not has_kernels((9, 1), ["sm_90a"])
    assert has_kernels((10, 3), ["sm_100f"]) and not has_kernels((12, 0), ["compute_100f"])
    assert has_kernels((3, 0), ()) and has_kernels((10, 3), ["gfx1030"]), "what is not known speaks against nothing"
    assert oldest_kernels(ARCHS) == (7, 5) and oldest_kernels(()) is None


@pytest.mark.parametrize(
    ("driver", "cuda", "old"),
    [("535.104.05", "13.2", True), ("579.99", "13.0", True), ("580.65.06", "13.2", False), ("591.44", "13.2", False),
     ("535.104.05", "12.8", False), ("470.256.02", "12.6", True), ("470.256.02", "11.8", False),
     ("580.65", "14.0", False), ("570.0", "14.0", True), ("unknown", "13.2", False)],
)  # fmt: skip
def test_which_driver_a_cuda_version_needs(driver: str, cuda: str, old: bool) -> None:
    assert is_driver_too_old(driver, cuda) is old
    assert needed_driver("12.8") == 525


@pytest.mark.parametrize(
    ("value", "hides"), [(None, False), ("0", False), ("1,0", False), ("", True), ("-1", True), ("-1,0", True)]
)
def test_a_variable_can_hide_all_cards(value: str | None, hides: bool) -> None:
    told = hidden_by({} if value is None else {"CUDA_VISIBLE_DEVICES": value})
    assert told == (f"CUDA_VISIBLE_DEVICES={value}" if hides else "")
