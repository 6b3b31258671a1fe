"""What is said of graphics cards: plain functions from facts to one sentence of what is so and what to do about it.

Nothing here asks the machine anything (that does ``card_state``), so every sentence can be had on any computer.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from headshot_ui.graphics import (
    Build,
    Card,
    Look,
    Program,
    has_kernels,
    is_driver_too_old,
    needed_driver,
    oldest_kernels,
)
from headshot_ui.wording import listed, readable_bytes

DRIVERS = "nvidia.com/drivers"
ANEW = "delete the folder .venv beside app.py and start again"
MEANWHILE = "Until then the processor computes, which takes many times as long."
RESTART = "end this program and start it again"
#: On Windows the driver goes on in main memory when the card is full, and everything takes 30 to 150 times as long.
NO_FALLBACK = (
    "In the NVIDIA Control Panel, under Manage 3D settings, set “CUDA - Sysmem Fallback Policy” to “Prefer No Sysmem "
    "Fallback”, so that what does not fit is told and does not crawl."
)
NAMES_TOLD = 4
#: Programs of Windows' own desktop: they are always there, need little and cannot be closed.
_DESKTOP = frozenset({
    "dwm", "explorer", "csrss", "ApplicationFrameHost", "LockApp", "SearchApp", "SearchHost", "ShellExperienceHost",
    "ShellHost", "StartMenuExperienceHost", "SystemSettings", "TextInputHost",
})  # fmt: skip
#: What CUDA and the libraries above it say when the work on the card broke off. After any of these the process cannot
#: use the card again: CUDA keeps the error until the process ends.
_LOST = (
    "unspecified launch failure", "device-side assert", "illegal memory access", "illegal instruction",
    "misaligned address", "invalid program counter", "hardware stack error", "launch timed out",
    "uncorrectable ecc error", "fallen off the bus", "gpu is lost", "cuda error: unknown error",
    "operation not supported on global/shared address space", "invalid address space",
)  # fmt: skip
_CUDA = ("CUDA error", "CUDA driver error", "CUBLAS_STATUS", "CUDNN_STATUS", "CUSOLVER_STATUS", "cudaError")


# --- a card that is there and not used ------------------------------------------------------------
def why_unused(look: Look, build: Build | None, hidden: str = "", torch_says: str | None = None) -> str:
    """Why torch does not compute on the NVIDIA card that is there, and what to do; "" where there is no card.

    ``hidden`` is the variable that hides all cards, ``torch_says`` what torch answered when it was asked to start
    with the card; None: it was not asked yet, and "" is returned where nothing speaks against the card so far.
    The first cause in the order in which they must be mended is told.
    """
    if look.trouble:
        return _driver_trouble(look.trouble)
    if not look.cards or build is None:
        return ""
    card = look.cards[0]
    if hidden:
        return f"{card.name} is there, but the variable {hidden} hides it: unset it and start again."
    if build.cuda is None:
        if build.for_others:
            return f"{card.name} is there, but torch {build.version} was built for other makers' cards: {ANEW}."
        return (
            f"{card.name} is there, but torch {build.version} was built without CUDA: {ANEW} while "
            "download.pytorch.org can be reached; set-up then takes the build that fits the driver."
        )
    if is_driver_too_old(card.driver, build.cuda):
        return _driver_too_old(card, build)
    if card.capability is not None and not has_kernels(card.capability, build.archs):
        return no_kernels(card.name, card.capability, build)
    if card.mode == "Prohibited":
        return (
            f"{card.name} is closed to all programs (compute mode “Prohibited”): open it as administrator with "
            "“nvidia-smi -c 0”, and start again."
        )
    if torch_says is None:
        return ""
    said = f" (torch says: {' '.join(torch_says.split())[:200]})" if torch_says else ""
    return (
        f"{card.name} with driver {card.driver} should do for torch {build.version}, but torch cannot start with it"
        f"{said}: restart the computer; if that does not help, install the driver anew from {DRIVERS}, then {ANEW}."
    )


def _driver_trouble(trouble: str) -> str:
    if "version mismatch" in trouble:
        return (
            "NVIDIA's driver was brought up to date and the old one still runs, so the graphics card cannot be used: "
            "restart the computer."
        )
    if "No devices were found" in trouble:
        return (
            "NVIDIA's driver is there and finds no card: see that the card is firmly in its place and has its power, "
            "and restart the computer."
        )
    return (
        f"NVIDIA's driver does not answer (“{trouble[:160].rstrip('. ')}”), so the graphics card cannot be used: "
        f"restart the computer; if that does not help, install the driver anew from {DRIVERS}."
    )


def _driver_too_old(card: Card, build: Build) -> str:
    assert build.cuda is not None
    return (
        f"{card.name} is there, but its driver {card.driver} is too old for torch {build.version}, which was built "
        f"with CUDA {build.cuda} and needs driver {needed_driver(build.cuda)} or newer: install a newer one from "
        f"{DRIVERS}; where there is none for this card, {ANEW}, and set-up looks for a build that fits the old one."
    )


def no_kernels(name: str, capability: tuple[int, int], build: Build) -> str:
    """A card that this torch holds no code for: it is older than what torch supports, or newer."""
    oldest = oldest_kernels(build.archs)
    if oldest is not None and capability < oldest:
        return (
            f"{name} (compute capability {_dotted(capability)}) is too old for torch {build.version}, which needs "
            f"{_dotted(oldest)} or newer: compute on the processor (--device cpu), or use a newer card."
        )
    return (
        f"{name} (compute capability {_dotted(capability)}) is newer than torch {build.version} knows: get the newest "
        f"version of this program, {ANEW}; until then compute on the processor (--device cpu)."
    )


# --- number formats -------------------------------------------------------------------------------
def why_this_dtype(dtype: str, capability: tuple[int, int], asked: bool) -> str:
    """Why a card computes in float16, or slowly in an imitated bfloat16; "" where there is nothing to explain."""
    if capability[0] >= 8:
        return ""
    lacks = f"its compute capability is {_dotted(capability)}, and bfloat16 begins at 8.0"
    if dtype == "float16":
        return f"The card computes in float16 with a scaled loss: {lacks}."
    if dtype == "bfloat16" and asked:
        return f"bfloat16 was asked for and the card can only imitate it, slowly: {lacks}; float16 is faster."
    return ""


def _dotted(capability: tuple[int, int]) -> str:
    return f"{capability[0]}.{capability[1]}"


# --- who holds the memory -------------------------------------------------------------------------
def who_holds_it(total: int, free: int, held: int, programs: Sequence[Program]) -> str:
    """How much of the card is free, and what others hold: "2.0 GB of 8.0 GB are free …; others hold 5.4 GB: …".

    ``held`` bytes are those of other programs; ``programs`` those the driver names, where it names any.
    """
    told = f"{readable_bytes(max(0, free))} of the card's {readable_bytes(total)} are free for this program"
    names = _names(programs)
    if held <= 0:
        return f"{told}."
    if not names:
        return f"{told}; other programs and the desktop hold {readable_bytes(held)}: close what draws or plays video."
    return f"{told}; others hold {readable_bytes(held)}: close what is not needed of {listed(names)}."


def full_card(programs: Sequence[Program]) -> str:
    """For a card so full that not even the driver's own part of a new program found room on it."""
    names = listed(_names(programs)) or "what else uses it (“nvidia-smi” lists it)"
    return f"The graphics card is full before anything was begun on it: close {names}, and try again."


def _names(programs: Sequence[Program]) -> list[str]:
    """The largest few, each once with all its memory: "game (5.0 GB)", "browser", "3 more"."""
    named = [program for program in programs if program.name and program.name not in _DESKTOP]
    known: dict[str, int] = {}  # one program may run several times, as browsers do
    for program in named:
        known[program.name] = known.get(program.name, 0) + (program.used_bytes or 0)
    names = [f"{name} ({readable_bytes(used)})" if used else name for name, used in known.items()]
    more = len(names) - NAMES_TOLD
    return [*names[:NAMES_TOLD], f"{more} more"] if more > 0 else names


# --- errors of CUDA -------------------------------------------------------------------------------
def is_cuda_error(error: BaseException) -> bool:
    """Whether CUDA or a library above it broke off, other than for want of memory."""
    return any(words in str(error) for words in _CUDA) or is_card_lost(error)


def is_card_lost(error: BaseException) -> bool:
    """Whether this process cannot use the card any more after ``error``."""
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in _LOST)


def explained(error: BaseException, look: Look, build: Build | None) -> str:
    """One sentence for an error of CUDA at its first use; "" for any other."""
    text = str(error)
    if "busy or unavailable" in text or "exclusive" in text.lower():
        exclusive = next((card for card in look.cards if card.mode.startswith("Exclusive")), None)
        if exclusive is not None:
            return (
                f"Another program holds {exclusive.name}, which is set to serve one at a time (compute mode "
                f"“{exclusive.mode}”): end that program (“nvidia-smi” lists it), or let several in with "
                "“nvidia-smi -c 0” as administrator."
            )
        return "The graphics card is busy or closed to this program: end what else uses it (“nvidia-smi” lists it)."
    if "driver version is insufficient" in text or "driver on your system is too old" in text:
        if look.cards and build is not None and build.cuda is not None:
            return _driver_too_old(look.cards[0], build)
        return f"The graphics driver is too old for the installed torch: install a newer one from {DRIVERS}."
    if "no kernel image is available" in text:
        if look.cards and build is not None and look.cards[0].capability is not None:
            return no_kernels(look.cards[0].name, look.cards[0].capability, build)
        return "The installed torch holds no code for this graphics card: compute on the processor (--device cpu)."
    return ""


def unusable(error: BaseException) -> str:
    """For an error of CUDA that nothing better is known of."""
    said = next(iter(str(error).splitlines()), "") or type(error).__name__
    if is_card_lost(error):
        return f"The graphics card stopped working ({said[:120]}): {RESTART}."
    return (
        f"The graphics card cannot be used ({said[:120]}): {RESTART}; if that does not help, restart the computer, "
        f"and bring the driver up to date ({DRIVERS})."
    )


#: For the jobs after the one in which the card was lost.
LOST_BEFORE = f"The graphics card stopped working in an earlier job and cannot be used any more: {RESTART}."


def card_lost(person: str, folder: Path, run: str = "", steps: int = 0) -> str:
    """What to tell of the job in which the card was lost: where things lie and how to go on.

    ``person`` "" is a job about nobody; ``run`` the training that broke off after ``steps`` kept steps, or "".
    """
    told = f"The graphics card stopped working and cannot be used until you {RESTART}; what was finished is kept"
    told += f" in {folder}" if person else ""
    if not run:
        return f"{told}."
    return (
        f"{told}. {steps} steps of the training are kept: go on with “Go on from there” on the Train tab, or with "
        f"“python3 app.py train --person {person} --run {run}”."
    )
