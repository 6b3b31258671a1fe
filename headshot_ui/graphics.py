"""NVIDIA's graphics cards as the driver tells of them, whether or not torch can use them. Standard library only.

Everything here is a fact; what is made of it in words stands in ``card_words``. The driver is asked through its own
program ``nvidia-smi``, which comes with it on Linux and Windows; each question takes ``ask``, so that tests answer.
"""

from __future__ import annotations

import ast
import csv
import importlib.machinery
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PureWindowsPath

#: Without its persistence mode the driver wakes the card for each question, which takes seconds.
ASK_TIMEOUT_S = 20
#: Oldest driver for all minor versions of a CUDA version, by its first number; from NVIDIA's page on minor version
#: compatibility. A newer CUDA than these needs at least the last one.
OLDEST_DRIVERS = {11: 450, 12: 525, 13: 580}
MIB = 2**20

#: Exit code and output of ``nvidia-smi`` with these arguments; None where there is no such program.
Ask = Callable[[Sequence[str]], "tuple[int, str] | None"]


@dataclass(frozen=True)
class Card:
    """One card as the driver tells it."""

    name: str
    uuid: str
    driver: str  # e.g. "535.104.05"
    total_bytes: int  # 0: not told
    mode: str = "Default"  # or "Exclusive_Process", "Prohibited"
    capability: tuple[int, int] | None = None  # None: a driver too old to tell


@dataclass(frozen=True)
class Look:
    """What the driver answered: cards, or its trouble in its own words. Neither: nothing here is NVIDIA's."""

    cards: tuple[Card, ...] = ()
    trouble: str = ""


@dataclass(frozen=True)
class Program:
    """A program that has graphics memory."""

    pid: int
    name: str  # without folders and ".exe"; "" where the system does not tell
    used_bytes: int | None  # None: Windows does not tell


@dataclass(frozen=True)
class Build:
    """The installed torch."""

    version: str  # e.g. "2.15.0+cu132"
    cuda: str | None  # e.g. "13.2"; None: built without
    for_others: bool = False  # for AMD's or Intel's cards
    archs: tuple[str, ...] = ()  # e.g. "sm_75", "compute_120"; (): not known


# --- asking the driver ----------------------------------------------------------------------------
def nvidia_smi(arguments: Sequence[str]) -> tuple[int, str] | None:
    """See ``Ask``. What goes wrong while asking counts as an answer with exit code 1."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    flags = getattr(subprocess, "CREATE_NO_WINDOW", 0)  # else a console flashes up on Windows
    try:
        told = subprocess.run(
            [program, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            text=True, errors="replace", timeout=ASK_TIMEOUT_S, creationflags=flags, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        return 1, f"nvidia-smi does not answer ({type(error).__name__})"
    return told.returncode, told.stdout


def look_at_cards(ask: Ask = nvidia_smi) -> Look:
    """All cards of this computer."""
    fields = "name,uuid,driver_version,memory.total,compute_mode"
    told = ask([f"--query-gpu={fields},compute_cap", "--format=csv,noheader,nounits"])
    if told is not None and told[0] and "compute_cap" in told[1]:  # a driver of before 2021 does not know that field
        told = ask([f"--query-gpu={fields}", "--format=csv,noheader,nounits"])
    if told is None:
        return Look()
    code, text = told
    if code:
        return Look(trouble=" ".join(text.split()) or f"nvidia-smi ended with code {code}")
    return Look(tuple(_card(row) for row in _rows(text) if len(row) >= 5))


@lru_cache(maxsize=1)
def known_cards() -> Look:
    """``look_at_cards``, asked once per process: cards and their driver stay what they are until a restart."""
    return look_at_cards()


def programs_on(uuid: str, ask: Ask = nvidia_smi) -> tuple[Program, ...]:
    """Programs other than this one that compute on a card, or on Windows draw on it, those with the most memory first.

    ``uuid`` "" asks for all cards. () where the driver tells none, as it does inside a container.
    """
    told = ask(["--query-compute-apps=gpu_uuid,pid,used_memory,process_name", "--format=csv,noheader,nounits"])
    if told is None or told[0]:
        return ()
    found: dict[int, Program] = {}
    for row in _rows(told[1]):
        here = not uuid or row[0].removeprefix("GPU-") == uuid.removeprefix("GPU-")  # torch writes it without
        if here and len(row) >= 4 and row[1].isdigit() and int(row[1]) != os.getpid():
            pid = int(row[1])  # a name may hold commas: it comes last
            found[pid] = Program(pid, _program_name(", ".join(row[3:])), _mib(row[2]))
    return tuple(sorted(found.values(), key=lambda program: -(program.used_bytes or 0)))


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]


def _card(row: Sequence[str]) -> Card:
    name, uuid, driver, total, mode, *more = row
    capability = re.fullmatch(r"(\d+)\.(\d+)", more[0]) if more else None
    return Card(
        name, uuid, driver, _mib(total) or 0, mode,
        (int(capability[1]), int(capability[2])) if capability else None,
    )  # fmt: skip


def _mib(text: str) -> int | None:
    return int(text) * MIB if text.isdigit() else None  # else "[N/A]" or "[Not Supported]"


def _program_name(path: str) -> str:
    if path.startswith("["):  # "[Not Found]", "[Insufficient Permissions]"
        return ""
    return PureWindowsPath(path.split(" --")[0]).name.removesuffix(".exe")  # takes either kind of slash


# --- the installed torch --------------------------------------------------------------------------
def installed_build(folder: Path | None = None) -> Build | None:
    """What the installed torch was built for, from its ``version.py``; None without torch.

    torch itself is not imported. Where it is loaded already, the kernels it carries are known too. ``folder`` is
    torch's own, for tests.
    """
    if folder is None:
        spec = importlib.machinery.PathFinder.find_spec("torch")  # looks at folders only, whatever is loaded
        if spec is None or spec.origin is None:
            return None
        folder = Path(spec.origin).parent
    facts = _constants(folder / "version.py")
    if "__version__" not in facts:
        return None
    cuda = facts.get("cuda")
    others = any(facts.get(name) for name in ("hip", "rocm", "xpu"))
    return _with_archs(Build(str(facts["__version__"]), None if cuda is None else str(cuda), others))


@lru_cache(maxsize=4)
def _constants(file: Path) -> dict[str, object]:
    """Names and values that a module gives without computing; {} where it cannot be read."""
    facts: dict[str, object] = {}
    with suppress(OSError, SyntaxError, ValueError):
        for node in ast.parse(file.read_text("utf-8")).body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            value = getattr(node, "value", None)
            if isinstance(value, ast.Constant):
                facts |= {target.id: value.value for target in targets if isinstance(target, ast.Name)}
    return facts


def _with_archs(build: Build) -> Build:
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    archs = getattr(cuda, "get_arch_list", None)  # another thread may be half-way through importing it
    return build if build.cuda is None or archs is None else replace(build, archs=tuple(archs()))


# --- rules ----------------------------------------------------------------------------------------
def has_kernels(capability: tuple[int, int], archs: Sequence[str]) -> bool:
    """Whether a torch with these kernels computes on a card of this capability; True where they are not known.

    Machine code ("sm_80") runs on the same major version from its minor version on; intermediate code ("compute_80")
    is compiled by the driver for everything newer. A letter behind the number ties it to that one version ("a") or
    major version ("f").
    """
    found = [re.fullmatch(r"(sm|compute)_(\d+)(\d)([a-z]?)", arch) for arch in archs]
    known = [(match[1], (int(match[2]), int(match[3])), match[4]) for match in found if match]
    if not known:
        return True
    return any(
        capability == made_for if letter == "a"
        else capability >= made_for and (capability[0] == made_for[0] or (kind == "compute" and not letter))
        for kind, made_for, letter in known
    )  # fmt: skip


def oldest_kernels(archs: Sequence[str]) -> tuple[int, int] | None:
    """The lowest capability that a torch with these kernels computes on; None where it is not known."""
    found = [re.fullmatch(r"(?:sm|compute)_(\d+)(\d)[a-z]?", arch) for arch in archs]
    return min(((int(match[1]), int(match[2])) for match in found if match), default=None)


def needed_driver(cuda: str) -> int:
    """First number of the oldest driver for a CUDA version such as "13.2"."""
    major = int(cuda.partition(".")[0])
    return OLDEST_DRIVERS.get(major, max(OLDEST_DRIVERS.values()))


def is_driver_too_old(driver: str, cuda: str) -> bool:
    """Whether a driver such as "535.104.05" is older than this CUDA version needs; False where it cannot be told."""
    first = re.match(r"\d+", driver)
    return first is not None and int(first[0]) < needed_driver(cuda)


def hidden_by(environment: Mapping[str, str] = os.environ) -> str:
    """The variable that hides all cards from torch, as it is written; "" where none does."""
    value = environment.get("CUDA_VISIBLE_DEVICES")
    hides = value is not None and value.split(",")[0].strip() in ("", "-1", "NoDevFiles")
    return f"CUDA_VISIBLE_DEVICES={value}" if hides else ""
