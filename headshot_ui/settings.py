"""Where things lie and what to compute on; read once from the environment.

| variable | meaning |
|---|---|
| HEADSHOT_UI_ROOT | folder of the program; models, outputs and logs lie under it unless named themselves |
| HEADSHOT_UI_MODELS | base models and networks |
| HEADSHOT_UI_OUTPUTS | everything made |
| HEADSHOT_UI_LOGS | log files |
| HEADSHOT_UI_RELEASE_MIRROR | address to fetch releases from instead of https://github.com |
| HEADSHOT_UI_DEVICE | auto, cuda, mps or cpu |
| HEADSHOT_UI_DTYPE | auto, float32, bfloat16 or float16 |
| HEADSHOT_UI_VRAM_LIMIT | most GPU memory to use, e.g. 8GB |
| HEADSHOT_UI_RAM_LIMIT | most main memory to use, e.g. 12GB |
| HEADSHOT_UI_COMPILE | never, auto (in a training, where it pays) or always: whether blocks are compiled |
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

from headshot_ui.bfloat16 import computes_in_bfloat16
from headshot_ui.card_words import why_unused
from headshot_ui.errors import SetupError
from headshot_ui.graphics import Look, has_kernels, hidden_by, installed_build, known_cards

DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = ("auto", "float32", "bfloat16", "float16")
NEVER, AUTO, ALWAYS = "never", "auto", "always"
COMPILE = (NEVER, AUTO, ALWAYS)
# A card sold as "8GB" has 8 * 2**30 bytes, so both spellings mean powers of 1024.
_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


@dataclass(frozen=True)
class Settings:
    """Paths and device. Building one touches neither disk nor torch."""

    root: Path
    models_dir: Path
    outputs_dir: Path
    logs_dir: Path
    release_mirror: str = ""  # "": GitHub itself
    wanted_device: str = "auto"
    wanted_dtype: str = "auto"
    vram_limit_bytes: int | None = None  # None: all there is
    ram_limit_bytes: int | None = None  # of main memory, for the whole process; None: all there is
    compile: str = AUTO  # one of COMPILE; see ``training.compiled``

    @classmethod
    def from_environment(
        cls,
        *,
        root: str | Path | None = None,
        models_dir: str | Path | None = None,
        outputs_dir: str | Path | None = None,
        logs_dir: str | Path | None = None,
        device: str | None = None,
        dtype: str | None = None,
        vram_limit: str | int | None = None,
        ram_limit: str | int | None = None,
        compile: str | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> Settings:
        """Settings from arguments, else HEADSHOT_UI_* variables, else defaults. Raises SetupError."""

        def given(argument: str | Path | int | None, variable: str, default: str | Path) -> str:
            return str(argument if argument is not None else environment.get(f"HEADSHOT_UI_{variable}") or default)

        def folder(argument: str | Path | None, variable: str, default: Path) -> Path:
            return Path(given(argument, variable, default)).expanduser().absolute()

        top = folder(root, "ROOT", Path(__file__).parents[1])
        outputs = folder(outputs_dir, "OUTPUTS", top / "outputs")
        vram, ram = given(vram_limit, "VRAM_LIMIT", ""), given(ram_limit, "RAM_LIMIT", "")
        return cls(
            root=top,
            models_dir=folder(models_dir, "MODELS", top / "models"),
            outputs_dir=outputs,
            logs_dir=folder(logs_dir, "LOGS", outputs / "logs"),
            release_mirror=given(None, "RELEASE_MIRROR", "").rstrip("/"),
            wanted_device=_one_of("device", given(device, "DEVICE", "auto"), DEVICES),
            wanted_dtype=_one_of("dtype", given(dtype, "DTYPE", "auto"), DTYPES),
            vram_limit_bytes=parse_bytes(vram) if vram else None,
            ram_limit_bytes=parse_bytes(ram) if ram else None,
            compile=_one_of("compile", given(compile, "COMPILE", AUTO), COMPILE),
        )

    @cached_property
    def device(self) -> str:
        """ "cuda", "mps" or "cpu". The first look imports torch, unless "cpu" was asked for. Raises SetupError."""
        if self.wanted_device == "cpu":
            return "cpu"
        found = pick_device()
        if self.wanted_device not in ("auto", found) and not _usable(self.wanted_device):
            why = why_no_card() if self.wanted_device == "cuda" else ""
            raise SetupError(
                f"The device “{self.wanted_device}” was asked for, but torch finds only “{found}” here: "
                + (f"choose “auto”. {why}" if why else "choose “auto”, or install the driver and run the set-up again.")
            )
        return found if self.wanted_device == "auto" else self.wanted_device

    @cached_property
    def dtype(self) -> str:
        """Number format of the frozen models: "float32", "bfloat16" or "float16"."""
        return pick_dtype(self.device) if self.wanted_dtype == "auto" else self.wanted_dtype


def parse_bytes(text: str) -> int:
    """ "8GB", "7.5 GiB", "512M" or a plain number of bytes to bytes (1 GB is 2**30). Raises SetupError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:I?B)?\s*", text.upper())
    count = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if count <= 0:
        raise SetupError(f"The memory limit “{text}” cannot be read: write it like 8GB or 6500MB.")
    return count


@cache
def gpu_in_sight() -> bool:
    """Whether anything here looks like a GPU that torch might use; asks no torch and takes microseconds."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    return bool(shutil.which("nvidia-smi")) or Path("/dev/nvidiactl").exists() or Path("/dev/kfd").exists()


def pick_device() -> str:
    """The best device torch can use: "cuda", "mps" or "cpu". Imports torch."""
    return next((device for device in ("cuda", "mps") if _usable(device)), "cpu")


def pick_dtype(device: str) -> str:
    """The number format that suits a device. Imports torch, but for "cpu"."""
    if device == "cpu":
        return "float32"  # slower with half precision
    if device == "mps":  # in float32 SDXL would take half of a Mac with 32 GB; in float16 its VAE overflows
        return "bfloat16" if computes_in_bfloat16(device) else "float32"
    import torch

    # From compute capability 8.0 (Ampere) on the hardware has bfloat16; before it is emulated and slow.
    return "bfloat16" if torch.cuda.get_device_capability()[0] >= 8 else "float16"


def _usable(device: str) -> bool:
    try:
        import torch
    except ImportError as error:
        raise SetupError("The package torch is not installed: run “python3 app.py” to set everything up.") from error
    if device == "cuda":
        return torch.cuda.is_available() and _holds_code_for_the_card()
    return device == "cpu" or torch.backends.mps.is_available()


def _holds_code_for_the_card() -> bool:
    """torch finds cards that its build has no code for as well, and fails at the first computation."""
    import torch

    try:
        of_card = torch.cuda.get_device_capability()
    except RuntimeError:  # the driver answers and the card does not start; why_no_card asks again for the reason
        return False
    return torch.version.cuda is None or has_kernels(of_card, torch.cuda.get_arch_list())


def why_no_card() -> str:
    """Why an NVIDIA card that is there is not computed on, and what to do; "" where there is none. Imports torch."""
    look, says = known_cards(), ""
    if not look.cards:
        return why_unused(look, None)
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        facts = torch.cuda.get_device_properties(0)
        of_card = (int(facts.major), int(facts.minor))  # the driver counts cards in another order
        look = Look((replace(look.cards[0], name=str(facts.name), capability=of_card),))
    except (RuntimeError, AssertionError) as error:
        says = str(error)
    return why_unused(look, installed_build(), hidden_by(), says)


def _one_of(what: str, value: str, choices: tuple[str, ...]) -> str:
    if value.lower() not in choices:
        raise SetupError(f"The {what} “{value}” is not known: use one of {', '.join(choices)}.")
    return value.lower()
