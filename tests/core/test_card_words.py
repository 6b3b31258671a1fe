"""What is said of graphics cards, from facts: each sentence names what is so and what to do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from headshot_ui import card_words
from headshot_ui.card_words import (
    card_lost,
    explained,
    full_card,
    is_card_lost,
    is_cuda_error,
    unusable,
    who_holds_it,
    why_this_dtype,
    why_unused,
)
from headshot_ui.graphics import Build, Card, Look, Program

GB = 2**30
CARD = Card("RTX 3060", "GPU-1", "580.95", 12 * GB, "Default", (8, 6))
BUILD = Build("2.15.0+cu132", "13.2", archs=("sm_75", "sm_80", "sm_86", "sm_90", "sm_120"))


def look(**changes: object) -> Look:
    return Look((replace(CARD, **changes),))  # type: ignore[arg-type]


def test_nothing_is_said_where_there_is_no_card_or_nothing_speaks_against_it() -> None:
    assert why_unused(Look(), BUILD, torch_says="Found no NVIDIA driver") == ""
    assert why_unused(look(), BUILD) == "", "torch was not asked yet"
    assert why_unused(look(), None, torch_says="x") == "", "without torch something else is wrong"


def test_a_driver_too_old_is_told_with_the_one_that_is_needed_and_where_it_is() -> None:
    told = why_unused(look(driver="535.104.05"), BUILD)
    assert told == (
        "RTX 3060 is there, but its driver 535.104.05 is too old for torch 2.15.0+cu132, which was built with CUDA "
        "13.2 and needs driver 580 or newer: install a newer one from nvidia.com/drivers; where there is none for this "
        "card, delete the folder .venv beside app.py and start again, and set-up looks for a build that fits the old "
        "one."
    )
    assert why_unused(look(driver="535.104.05"), replace(BUILD, cuda="12.8")) == ""


@pytest.mark.parametrize(
    ("build", "words"),
    [(Build("2.15.0+cpu", None), ("2.15.0+cpu was built without CUDA", "delete the folder .venv", "download.pytorch")),
     (Build("2.15.0+rocm7", None, for_others=True), ("other makers' cards", "delete the folder .venv"))],
)  # fmt: skip
def test_a_torch_built_without_cuda_is_told_with_how_to_get_the_right_one(build: Build, words: tuple[str, ...]) -> None:
    told = why_unused(look(driver="470.1"), build)
    assert all(word in told for word in words) and "470.1" not in told, "the build comes first: it may fit the driver"


def test_a_card_that_the_build_holds_no_code_for_is_refused_in_words() -> None:
    told = why_unused(look(name="GTX 1080", capability=(6, 1)), BUILD)
    assert "GTX 1080 (compute capability 6.1) is too old" in told and "needs 7.5 or newer" in told
    assert "--device cpu" in told
    newer = why_unused(look(name="RTX 9090", capability=(14, 0)), BUILD)
    assert "RTX 9090 (compute capability 14.0) is newer than torch 2.15.0+cu132 knows" in newer and ".venv" in newer
    assert why_unused(look(capability=(6, 1)), replace(BUILD, archs=())) == "", "not known before torch is loaded"


@pytest.mark.parametrize(
    ("trouble", "words"),
    [
        ("Failed to initialize NVML: Driver/library version mismatch", "brought up to date and the old one still runs"),
        ("No devices were found", "finds no card"),
        ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "couldn't communicate"),
    ],
)
def test_a_driver_in_trouble_is_told_whatever_else_is_wrong(trouble: str, words: str) -> None:
    told = why_unused(Look(trouble=trouble), Build("2.15.0+cpu", None))
    assert words in told and "restart the computer" in told and ".”" not in told


def test_a_hidden_or_closed_card_is_told() -> None:
    assert "CUDA_VISIBLE_DEVICES=-1 hides it: unset it" in why_unused(look(), BUILD, "CUDA_VISIBLE_DEVICES=-1")
    assert "nvidia-smi -c 0" in why_unused(look(mode="Prohibited"), BUILD, torch_says="no CUDA-capable device")


def test_where_no_cause_is_known_torchs_own_words_are_given() -> None:
    told = why_unused(look(), BUILD, torch_says="CUDA unknown error -\n this may be due to …")
    assert "torch says: CUDA unknown error - this may be" in told and "restart the computer" in told
    assert "RTX 3060 with driver 580.95" in told


@pytest.mark.parametrize(
    ("dtype", "capability", "asked", "words"),
    [
        ("float16", (7, 5), False, "float16 with a scaled loss: its compute capability is 7.5"),
        ("bfloat16", (7, 5), True, "only imitate it"),
        ("bfloat16", (8, 0), False, ""),
        ("float16", (8, 9), True, ""),
        ("float32", (7, 5), True, ""),
    ],
)
def test_why_a_card_computes_in_float16(dtype: str, capability: tuple[int, int], asked: bool, words: str) -> None:
    told = why_this_dtype(dtype, capability, asked)
    assert words in told and bool(told) is bool(words)


# --- memory -------------------------------------------------------------------------------------------
def test_who_holds_the_memory_is_named_largest_first_and_added_up() -> None:
    programs = [Program(1, "game", 3 * GB), Program(2, "python3", GB), Program(3, "python3", GB), Program(4, "", GB)]
    assert who_holds_it(8 * GB, 2 * GB, 5 * GB, programs) == (
        "2.0 GB of the card's 8.0 GB are free for this program; others hold 5.0 GB: close what is not needed of "
        "game (3.0 GB) and python3 (2.0 GB)."
    )


def test_on_windows_names_alone_are_told_and_the_desktop_is_not_to_be_closed() -> None:
    names = ("dwm", "explorer", "a", "b", "c", "d", "e", "f", "SearchHost")
    told = who_holds_it(8 * GB, GB, 6 * GB, [Program(number, name, None) for number, name in enumerate(names)])
    assert told.endswith("close what is not needed of a, b, c, d and 2 more.")


def test_without_names_the_desktop_may_hold_it() -> None:
    assert "other programs and the desktop hold 3.0 GB" in who_holds_it(8 * GB, 5 * GB, 3 * GB, [])
    assert who_holds_it(8 * GB, -1, 0, []) == "0 bytes of the card's 8.0 GB are free for this program."
    assert "close trainer (7.0 GB), and try again" in full_card([Program(1, "trainer", 7 * GB)])
    assert "nvidia-smi" in full_card([])


def test_the_switch_of_windows_is_told_by_its_name_and_place() -> None:
    for words in ("NVIDIA Control Panel", "Manage 3D settings", "CUDA - Sysmem Fallback Policy", "Prefer No Sysmem"):
        assert words in card_words.NO_FALLBACK


# --- errors -------------------------------------------------------------------------------------------
BUSY = RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nCUDA kernel errors might be …")
OLD = RuntimeError("The NVIDIA driver on your system is too old (found version 12020). Please update your GPU driver …")
NO_CODE = RuntimeError("CUDA error: no kernel image is available for execution on the device")


def test_an_exclusive_card_is_told_apart_from_a_busy_one() -> None:
    exclusive = explained(BUSY, look(mode="Exclusive_Process"), BUILD)
    assert "RTX 3060, which is set to serve one at a time" in exclusive and "nvidia-smi -c 0" in exclusive
    assert "busy or closed" in explained(BUSY, look(), BUILD) and "busy" in explained(BUSY, Look(), None)


def test_errors_at_first_use_are_told_as_their_causes() -> None:
    assert explained(OLD, look(driver="535.1"), BUILD) == why_unused(look(driver="535.1"), BUILD)
    insufficient = RuntimeError("CUDA error: CUDA driver version is insufficient for CUDA runtime version")
    assert "nvidia.com/drivers" in explained(insufficient, Look(), None)
    assert "6.1" in explained(NO_CODE, look(capability=(6, 1)), BUILD)
    assert "--device cpu" in explained(NO_CODE, Look(), None)
    assert explained(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), look(), BUILD) == ""


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error: unspecified launch failure", "CUDA error: device-side assert triggered",
        "CUDA error: an illegal memory access was encountered", "CUDA error: the launch timed out and was terminated",
        "CUDA error: uncorrectable ECC error encountered", "Unable to determine the device handle: GPU is lost",
        "CUDA error: unknown error", "CUDA error: misaligned address", "GPU has fallen off the bus",
    ],
)  # fmt: skip
def test_errors_after_which_a_card_is_lost(words: str) -> None:
    assert is_card_lost(RuntimeError(words)) and is_cuda_error(RuntimeError(words))
    assert "end this program and start it again" in unusable(RuntimeError(words))


@pytest.mark.parametrize("words", [str(BUSY), str(NO_CODE), "CUDA out of memory. Tried to allocate …", "mat1 shapes"])
def test_errors_after_which_it_is_not(words: str) -> None:
    assert not is_card_lost(RuntimeError(words))
    assert not is_card_lost(ValueError("unspecified launch failure")), "CUDA's errors are RuntimeErrors"


def test_after_a_loss_it_is_told_where_things_lie_and_how_to_go_on() -> None:
    folder = Path("outputs/people/anna")
    told = card_lost("anna", folder, "2026-01-02_03-04-05", 300)
    assert "end this program and start it again" in told and str(folder) in told and "300 steps" in told
    assert "python3 app.py train --person anna --run 2026-01-02_03-04-05" in told and "Go on from there" in told
    assert "train" not in card_lost("anna", folder) and str(folder) not in card_lost("", folder)
