"""What there is to say of this computer's graphics card now: facts of driver and torch, put into ``card_words``."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

from headshot_ui.card_words import (
    MEANWHILE,
    NO_FALLBACK,
    is_card_lost,
    is_cuda_error,
    who_holds_it,
    why_this_dtype,
    why_unused,
)
from headshot_ui.errors import DeviceError
from headshot_ui.graphics import Program, hidden_by, installed_build, known_cards, programs_on
from headshot_ui.memory import CONTEXT_BYTES, vram_not_held
from headshot_ui.settings import why_no_card

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

#: What others hold is told from here on before a job; a desktop with a browser takes about half of it.
WORTH_TELLING = 2**30
#: When memory has run out, already this much of others is told. Less may be what the driver itself takes.
HELD_AT_ALL = 2**28
PROGRAMS_KNOWN_S = 10.0  # a plan is made at every change of a form, and the driver takes a moment to answer


# --- before anything runs -------------------------------------------------------------------------
def unused_card(settings: Settings) -> str:
    """Why the NVIDIA card of this computer is not computed on and what to do; "" where it is, or is not wanted.

    Does not import torch: before ``settings.device`` was looked at, the driver and the installed files are judged.
    """
    if settings.wanted_device not in ("auto", "cuda"):
        return ""
    if "device" not in vars(settings):
        return why_unused(known_cards(), installed_build(), hidden_by())
    return "" if settings.device == "cuda" else why_no_card()


def plan_notes(settings: Settings, device: str) -> tuple[str, ...]:
    """What a person should know of the card before a job that computes on ``device``; mostly nothing."""
    if device == "cuda":
        return tuple(filter(None, (dtype_note(settings), who_holds_memory(WORTH_TELLING))))
    unused = unused_card(settings)
    return (f"{unused} {MEANWHILE}",) if unused else ()


def dtype_note(settings: Settings) -> str:
    """Why the card computes in the number format of the settings, where that is worth saying. Imports torch."""
    import torch

    if torch.version.cuda is None:  # AMD's cards count otherwise
        return ""
    return why_this_dtype(settings.dtype, torch.cuda.get_device_capability(), settings.wanted_dtype != "auto")


# --- memory ---------------------------------------------------------------------------------------
def who_holds_memory(least: int = 0) -> str:
    """How much of the card is free and who holds the rest; "" where others hold less than ``least`` bytes.

    Also "" where the card does not answer: that is told elsewhere.
    """
    try:
        not_held, total = vram_not_held()
    except DeviceError:
        return ""
    held = total - not_held - CONTEXT_BYTES
    if held < max(least, HELD_AT_ALL):
        return "" if least else who_holds_it(total, not_held, 0, ())
    return who_holds_it(total, not_held, held, _programs.now())


def out_of_graphics_memory() -> str:
    """What follows “the graphics memory ran out”: who holds how much, and on Windows the switch that matters."""
    windows = NO_FALLBACK if sys.platform == "win32" else ""
    return " ".join(filter(None, (who_holds_memory(), windows)))


class _Programs:
    """The programs on torch's card, asked for at most once in ten seconds."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: tuple[Program, ...] = ()
        self._asked_s = -PROGRAMS_KNOWN_S

    def now(self) -> tuple[Program, ...]:
        with self._lock:
            if time.monotonic() - self._asked_s >= PROGRAMS_KNOWN_S:
                self._known = programs_on(_uuid())
                self._asked_s = time.monotonic()
            return self._known

    def forget(self) -> None:
        with self._lock:
            self._asked_s = -PROGRAMS_KNOWN_S


_programs = _Programs()  # one per process, as the card it asks about


def _uuid() -> str:
    """Of torch's card; "" where it cannot be told."""
    import torch

    return str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))


# --- after an error -------------------------------------------------------------------------------
def has_lost_card(error: BaseException | None) -> bool:
    """Whether ``error``, or one beneath it, has made the card unusable for this process. Never imports torch.

    Where the words do not tell, the card is asked to compute something small.
    """
    while error is not None:
        if is_card_lost(error):
            return True
        if is_cuda_error(error) and "out of memory" not in str(error) and "ALLOC_FAILED" not in str(error):
            return not _card_answers()
        error = error.__cause__
    return False


def _card_answers() -> bool:
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is None or not cuda.is_initialized():
        return True  # it was never used, so nothing of this process is lost
    try:
        sys.modules["torch"].ones(1, device="cuda")
        cuda.synchronize()
    except RuntimeError:
        return False
    return True
