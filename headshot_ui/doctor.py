"""What this computer can run, and what is missing: facts and advice, nothing printed, nothing changed."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.card_state import WORTH_TELLING, dtype_note, unused_card, who_holds_memory
from headshot_ui.card_words import MEANWHILE, NO_FALLBACK
from headshot_ui.errors import DeviceError, HeadshotError
from headshot_ui.memory import vram_not_held
from headshot_ui.store import free_bytes, readable_bytes
from headshot_ui.wording import how_to_get

if TYPE_CHECKING:
    from packaging.requirements import Requirement

    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.settings import Settings

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 13)
# The demo is made for 8 GB machines, which report a little less than that.
RAM_NEEDED_BYTES = 7 * 2**30
DISK_NEEDED_BYTES = 2 * 2**30  # photos, a run with its checkpoints and some hundred pictures
WHOLE_COPY = "Get a complete copy of the program."
WHOLE_BASE = "Put a complete copy of this base model there."
WHOLE_REFINER = "Put a complete copy of this refiner there."
MEND = "Delete the folder .venv beside app.py and start again: set-up makes it anew."

#: What the demo needs below the models folder, and what to call it.
DEMO_FILES = {
    "demo base": "demo/sdxl/base.json",
    "demo refiner": "demo/sdxl-refiner/refiner.json",
    "demo restorer": "demo/restorer/restorer.safetensors",
    "demo face detector": "demo/detector/retinaface_mobile025.safetensors",
    "demo recogniser": "demo/recogniser/recogniser.safetensors",
    "demo strangers": "demo/recogniser/gallery.safetensors",
    "demo photos": "demo/people/robin/*.jpg",
}


@dataclass(frozen=True)
class Check:
    """One thing looked at."""

    name: str
    ok: bool | None  # None: it works, and there is something worth knowing
    detail: str  # what was found
    advice: str = ""  # what to do; "" when all is well


def examine(settings: Settings) -> list[Check]:
    """Look at everything a job needs. Raises nothing: what cannot be found out is a check that failed."""
    return [
        check_python(),
        check_packages(settings.root / "requirements.txt"),
        check_device(settings),
        *check_graphics_memory(settings),
        check_memory(),
        check_disk(settings.outputs_dir),
        check_writable(settings.outputs_dir),
        *check_bases(settings),
        *check_refiners(settings),
        *check_misfits(settings),
        *check_restorers(settings),
        *check_downloads(settings),
        *check_demo_files(settings.models_dir),
    ]


def check_python() -> Check:
    detail = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    good = OLDEST_PYTHON <= sys.version_info[:2] <= NEWEST_PYTHON
    return Check("Python", good, detail, "" if good else "Start app.py with Python 3.11, 3.12 or 3.13.")


# --- packages -----------------------------------------------------------------------------------


def check_packages(lock: Path) -> Check:
    """Compare what is installed with the lock, without importing any of it."""
    from packaging.version import Version

    try:
        wanted = list(read_lock(lock))
    except (OSError, ValueError) as error:
        return Check("packages", False, f"{lock} cannot be read ({error})", WHOLE_COPY)
    missing, other = [], []
    for requirement in wanted:
        try:
            present = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        # torch from PyTorch's own index is "2.15.0+cpu" where the lock says "2.15.0".
        if not requirement.specifier.contains(Version(present).public, prereleases=True):
            other.append(f"{requirement.name} {present} instead of {str(requirement.specifier).lstrip('=')}")
    if missing:
        return Check("packages", False, f"not installed: {', '.join(missing)}", MEND)
    if other:
        return Check("packages", None, f"not the tested versions: {', '.join(other)}", MEND)
    return Check("packages", True, f"all {len(wanted)} as tested")


def read_lock(lock: Path) -> Iterator[Requirement]:
    """What the lock asks for on this machine. Raises OSError, or ValueError for a line that is no requirement.

    A torch with a local version ("+cpu", "+cu130") came from PyTorch's own index, with its own NVIDIA libraries or
    with none, so the lock's are not asked for then.
    """
    from packaging.requirements import Requirement

    own_build = "+" in (_version("torch") or "")
    for line in lock.read_text(encoding="utf-8").splitlines():
        text = line.split(" #")[0].strip()
        if not text or text.startswith("#"):
            continue
        requirement = Requirement(text)
        belongs_to_torch = requirement.name.startswith(("nvidia-", "cuda-", "triton"))
        if (requirement.marker is None or requirement.marker.evaluate()) and not (own_build and belongs_to_torch):
            yield requirement


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


# --- the machine --------------------------------------------------------------------------------


def check_device(settings: Settings) -> Check:
    """What torch computes on and how much memory that has; imports torch."""
    try:
        device, dtype = settings.device, settings.dtype
        memory_bytes, title = _device_memory(device)
        note = dtype_note(settings) if device == "cuda" else ""
    except HeadshotError as error:
        return Check("device", False, "not usable", str(error))
    except (ImportError, OSError, RuntimeError, AttributeError) as error:
        return Check("device", False, f"torch does not work: {error}", MEND)
    limit = f", of which {readable_bytes(settings.vram_limit_bytes)} may be used" if settings.vram_limit_bytes else ""
    if device != "cpu":
        detail = f"{title} with {readable_bytes(memory_bytes)}{limit}, computing in {dtype}"
        return Check("device", True, f"{detail}. {note}" if note else detail)
    unused = unused_card(settings)
    detail = f"no GPU in use: {os.cpu_count()} CPU cores, computing in {dtype}"
    return Check("device", None if unused else True, detail, f"{unused} {MEANWHILE}" if unused else "")


def check_graphics_memory(settings: Settings) -> list[Check]:
    """How much of the card is free and who holds the rest; on Windows also what becomes of what does not fit."""
    try:
        if settings.device != "cuda":
            return []
        free, total = vram_not_held()
    except DeviceError as error:
        return [Check("graphics memory", False, "the card does not answer", str(error))]
    except (HeadshotError, ImportError, OSError, RuntimeError, AttributeError):
        return []  # told by check_device
    detail = f"{readable_bytes(total)}, {readable_bytes(free)} of it free"
    others = who_holds_memory(WORTH_TELLING)
    checks = [Check("graphics memory", None if others else True, detail, others)]
    if sys.platform == "win32":
        spill = "Windows moves into main memory what does not fit on a card; this program takes only what is free"
        checks.append(Check("memory fallback", None, spill, NO_FALLBACK))
    return checks


def _device_memory(device: str) -> tuple[int, str]:
    """Bytes of the device's own memory, and its name."""
    import torch

    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        return card.total_memory, card.name
    if device == "mps":
        return torch.mps.recommended_max_memory(), "Apple GPU"
    return 0, "CPU"


def check_memory() -> Check:
    import psutil

    memory = psutil.virtual_memory()
    detail = f"{readable_bytes(memory.total)}, {readable_bytes(memory.available)} of it free"
    if memory.total < RAM_NEEDED_BYTES:
        return Check("memory", None, detail, "The demo is made for 8 GB: close other programs while it runs.")
    return Check("memory", True, detail)


def check_disk(outputs: Path) -> Check:
    try:
        free = free_bytes(outputs)
    except (HeadshotError, OSError) as error:
        return Check("disk", False, f"{outputs} cannot be looked at", str(error))
    advice = "" if free >= DISK_NEEDED_BYTES else f"Make room there: have {readable_bytes(DISK_NEEDED_BYTES)} free."
    return Check("disk", not advice, f"{readable_bytes(free)} free at {outputs}", advice)


def check_writable(outputs: Path) -> Check:
    place = next((folder for folder in (outputs, *outputs.parents) if folder.is_dir()), outputs)
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        advice = "Name another folder with --outputs or HEADSHOT_UI_OUTPUTS."
        return Check("outputs", False, f"{place} cannot be written ({error.strerror})", advice)
    return Check("outputs", True, f"{outputs} can be written")


# --- models -------------------------------------------------------------------------------------


def check_bases(settings: Settings) -> list[Check]:
    """Every base model a person can choose, and every one that is damaged."""
    from headshot_ui import families
    from headshot_ui.families.bases import damaged_base_files, damaged_weights
    from headshot_ui.usual_base import usual_base

    try:
        bases, damaged = families.all_bases(settings), damaged_base_files(settings)
    except (HeadshotError, OSError) as error:
        return [Check("base models", False, "they cannot be read", str(error))]
    checks, usual = [], usual_base(bases, settings)
    for base in bases:
        bad = ", ".join(str(path) for path in damaged_weights(base))
        meant = " It is used where no other is named." if base is usual else ""
        detail = f"{bad} is damaged" if bad else f"{base.title}, {base.size_px} px. {base.note}{meant}"
        advice = WHOLE_BASE if bad else _unusable(base)
        checks.append(Check(f"base {base.id}", not advice, detail, advice))
    for file in damaged:
        checks.append(Check("base models", False, f"{file} cannot be read", WHOLE_BASE))
    if not checks:
        advice = f"{WHOLE_COPY} Or name the folder with --models or HEADSHOT_UI_MODELS."
        checks.append(Check("base models", False, f"none found in {settings.models_dir}", advice))
    return checks


def _unusable(base: BaseInfo) -> str:
    """What is wrong with a base model whose weights are whole; "" when nothing is."""
    from headshot_ui import families

    try:
        families.check_base(base)
    except HeadshotError as error:
        return str(error)
    except (ImportError, OSError) as error:  # torch or transformers do not work, which is told elsewhere
        return f"Its tokenizers cannot be tried: {error}"
    return ""


def check_misfits(settings: Settings) -> list[Check]:
    """What was dropped into the models folder and cannot be used; a wrong file hides no other."""
    from headshot_ui import families

    try:
        found = families.all_misfits(settings)
    except (HeadshotError, OSError) as error:
        return [Check("models folder", False, "it cannot be read", str(error))]
    return [
        Check(f"file {misfit.path.name}", False if misfit.damaged else None, "cannot be used as a model", misfit.reason)
        for misfit in found
        if not misfit.quiet
    ]


def check_refiners(settings: Settings) -> list[Check]:
    """Every refiner; having none is no fault, for pictures are drawn without one too."""
    from headshot_ui import families
    from headshot_ui.families.bases import damaged_weights

    try:
        refiners = families.all_refiners(settings)
    except (HeadshotError, OSError) as error:
        return [Check("refiners", False, "they cannot be read", str(error))]
    checks = []
    for refiner in refiners:
        bad = ", ".join(str(path) for path in damaged_weights(refiner))
        made_for = ", ".join(refiner.bases) or f"every base of the family {refiner.family}"
        detail = f"{bad} is damaged" if bad else f"{refiner.title}, for {made_for}. {refiner.note}"
        checks.append(Check(f"refiner {refiner.id}", not bad, detail, WHOLE_REFINER if bad else ""))
    return checks


def check_restorers(settings: Settings) -> list[Check]:
    """Every face restorer the program knows; one that is not installed is worth a note, with what to do."""
    from headshot_ui import restoration

    checks = []
    for restorer in restoration.all_restorers().values():
        missing = restorer.missing(settings)
        detail = f"{restorer.info.title} {'cannot be used yet' if missing else 'can be used'}. {restorer.info.note}"
        checks.append(Check(f"restorer {restorer.info.id}", None if missing else True, detail, missing))
    return checks


def check_downloads(settings: Settings) -> list[Check]:
    """Every model that can be downloaded and is here, or was begun; told from sizes, without reading them."""
    from headshot_ui.downloads.catalogue import load_catalogue
    from headshot_ui.downloads.states import entry_state

    checks = []
    for entry in load_catalogue().values():
        found = entry_state(entry, settings)
        if found.state == "missing":
            continue
        good = {"damaged": False, "unfinished": None}.get(found.state, True)
        state = f"unfinished, {found.size_words} are here" if good is None else "here" if good else found.state
        detail = f"{entry.title} is {state}. {found.detail}".strip()
        checks.append(Check(f"model {entry.id}", good, detail, "" if good else f"G{how_to_get(entry.id)[1:]}."))
    return checks


def check_demo_files(models: Path) -> list[Check]:
    """The files of the demo, one check each."""
    from headshot_ui.families.bases import weights_fault

    checks = []
    for name, pattern in DEMO_FILES.items():
        found = [path for path in models.glob(pattern) if path.is_file() and path.stat().st_size]
        detail = f"{len(found)} files" if len(found) > 1 else f"{models / pattern} is {'there' if found else 'missing'}"
        weights = [path for path in found if path.suffix == ".safetensors"]
        faults = [f"{path} is {fault}" for path in weights if (fault := weights_fault(path))]
        good = bool(found) and not faults
        checks.append(Check(name, good, "; ".join(faults) or detail, "" if good else WHOLE_COPY))
    return checks
