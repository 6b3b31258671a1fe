"""How many bytes models take and how many are free: headers of weight files, main memory, graphics memory."""

from __future__ import annotations

import json
import math
import struct
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.card_words import explained, full_card, unusable
from headshot_ui.errors import DeviceError, ModelError
from headshot_ui.gguf_files import SHORTENED, SUFFIX, read_gguf
from headshot_ui.graphics import installed_build, known_cards, programs_on

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

#: Measured with the demo base: the process with torch and diffusers needs this much beside the weights.
OVERHEAD_BYTES = 2**29
#: Graphics memory that a process takes outside torch's allocator (driver context, kernels, library handles).
#: ``benchmarks/residency.py`` measures it as ``context_bytes``: 0.51 GiB on an H200, and some room is left above it.
CONTEXT_BYTES = 600 * 2**20
#: Left to the desktop on Windows beside what it has already: what is opened during a job would push the job's memory
#: out of the card, and nothing tells of it.
DESKTOP_BYTES = 256 * 2**20
#: Models that nobody uses may keep this share of main memory, so that other programs and the next job have theirs.
RAM_SHARE = 0.5
#: Graphics memory that stays free when weights are sent ahead: computing goes on beside them.
SPARE_BYTES = 2**28
#: Of main memory, what may be page-locked for the graphics card (see ``pinned``).
LOCKED_SHARE, LOCKED_SHARE_WINDOWS = 0.4, 0.2
#: Bytes for each pixel of a picture that SDXL's VAE computes in 16 bit, beside its weights; twice as many in float32.
DECODING, ENCODING = 2500, 1300
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Memory:
    """Bytes of memory of one kind."""

    kind: str  # "memory" or "graphics memory"
    needed: int
    free: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.free


@dataclass(frozen=True)
class StoredTensor:
    """One entry of the header of a weight file."""

    name: str
    dtype: str  # as safetensors calls it, e.g. "F16", or GGUF, e.g. "Q4_K"
    shape: tuple[int, ...]
    stored_bytes: int

    def loaded_bytes(self, dtype: str) -> int:
        """Bytes in memory once loaded as ``dtype``; whole numbers keep their size."""
        if self.dtype in SHORTENED:
            return math.prod(self.shape) * _DTYPE_BYTES[dtype]
        item = _ITEM_BYTES.get(self.dtype)
        return self.stored_bytes * _DTYPE_BYTES[dtype] // item if item else self.stored_bytes


@dataclass(frozen=True)
class FilePart:
    """One part of a weight file that holds several, or one of the files of a part."""

    file: Path
    name: str  # of the part, as its folder would be called, e.g. "unet"
    prefix: str  # with which the names of its tensors begin

    def tensors(self) -> tuple[StoredTensor, ...]:
        """By the header of the file; () where it is not there. Raises ModelError for a damaged one."""
        if not self.file.is_file():
            return ()
        return tuple(tensor for tensor in read_header(self.file) if tensor.name.startswith(self.prefix))


# --- weight files ---------------------------------------------------------------------------------
def files_bytes(paths: Iterable[Path | FilePart], dtype: str) -> dict[str, int]:
    """Bytes in memory of each part of a model, once loaded as ``dtype``.

    A folder is in diffusers layout and gives its subfolders; a file is one part, named after itself; pieces of one
    name are one part. What is not there takes nothing. Raises ModelError for a damaged file.
    """
    parts: dict[str, int] = {}
    for path in paths:
        if isinstance(path, FilePart):
            here = sum(tensor.loaded_bytes(dtype) for tensor in path.tensors())
            parts[path.name] = parts.get(path.name, 0) + here
        elif path.is_dir():
            parts |= weight_bytes(path, dtype)
        elif path.is_file():
            parts[path.stem] = file_bytes(path, dtype)
    return parts


def weight_bytes(folder: Path, dtype: str) -> dict[str, int]:
    """Bytes in memory of each part (subfolder) of a model in diffusers layout, once loaded as ``dtype``.

    Reads the headers of the safetensors files only. A file that is there in several number formats
    (``model.safetensors`` and ``model.fp16.safetensors``) counts once. Raises ModelError for a damaged one.
    """
    parts = {path.parent.name for path in folder.glob("*/*.safetensors")}
    return {part: sum(file_bytes(path, dtype) for path in part_files(folder, part)) for part in sorted(parts)}


def part_files(folder: Path, part: str) -> tuple[Path, ...]:
    """The weight files of a part (subfolder); of one that is there in several number formats only the plain one."""
    paths = sorted((folder / part).glob("*.safetensors"))
    return tuple({path.name.replace(".fp16.", ".").replace(".bf16.", "."): path for path in paths}.values())


def file_bytes(path: Path, dtype: str) -> int:
    """Bytes of one weight file in memory; a file that is no safetensors counts as it is. Raises ModelError."""
    if path.suffix != ".safetensors":
        return path.stat().st_size
    return sum(tensor.loaded_bytes(dtype) for tensor in read_header(path))


def read_header(path: Path) -> tuple[StoredTensor, ...]:
    """What a safetensors or GGUF file holds; reads its header only. Raises ModelError for a damaged one."""
    try:
        if path.suffix.lower() == SUFFIX:
            held = read_gguf(path).tensors
            return tuple(StoredTensor(one.name, one.format, one.shape, one.stored_bytes) for one in held)
        state = path.stat()
        return _header(path, state.st_size, state.st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(f"{path} is damaged: remove it and get it again.") from error


@lru_cache(maxsize=64)
def _header(path: Path, size: int, changed_ns: int) -> tuple[StoredTensor, ...]:
    """A safetensors file begins with the length of its JSON header (8 bytes, little-endian) and that header.

    Size and time of change decide whether it is read again, because a plan is made at every change of a form.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > size:
            raise ValueError("header longer than the file")
        header: Mapping[str, Mapping[str, Any]] = json.loads(file.read(length))
    return tuple(_stored(name, entry) for name, entry in header.items() if name != "__metadata__")


def _stored(name: str, entry: Mapping[str, Any]) -> StoredTensor:
    start, end = entry["data_offsets"]
    return StoredTensor(name, str(entry["dtype"]), tuple(map(int, entry["shape"])), int(end) - int(start))


# --- what is free ---------------------------------------------------------------------------------
def free_ram_bytes() -> int:
    """Main memory that can be had without another program suffering."""
    import psutil

    return int(psutil.virtual_memory().available)


def total_ram_bytes() -> int:
    """All main memory of this computer."""
    import psutil

    return int(psutil.virtual_memory().total)


def own_ram_bytes() -> int:
    """Main memory this process has now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def ram_budget_bytes(total: int, settings: Settings) -> int:
    """Main memory this process may take in all: ``total``, or the limit."""
    return total if settings.ram_limit_bytes is None else min(total, settings.ram_limit_bytes)


def within_ram_limit(free: int, settings: Settings) -> int:
    """How much of ``free`` main memory this process may still take."""
    limit = settings.ram_limit_bytes
    return free if limit is None else min(free, max(0, limit - own_ram_bytes()))


def is_read_in_turns(weights: int, total_ram: int, settings: Settings) -> bool:
    """Whether a model is so large beside main memory that its parts must take turns there too."""
    return weights > RAM_SHARE * ram_budget_bytes(total_ram, settings)


def lockable_bytes(total_ram: int, settings: Settings) -> int:
    """Main memory that may be page-locked: a share of it, and none where the process is to keep to a limit.

    Windows takes at most half of main memory for all programs together, and fails oddly near that.
    """
    if settings.device != "cuda" or settings.ram_limit_bytes is not None:
        return 0
    return int(total_ram * (LOCKED_SHARE_WINDOWS if sys.platform == "win32" else LOCKED_SHARE))


def free_vram_bytes(settings: Settings) -> int:
    """Graphics memory that torch may still fill, within ``settings.vram_limit_bytes``. Imports torch.

    Raises DeviceError where the card does not answer.
    """
    import torch

    allocated = int(torch.cuda.memory_allocated())
    free = _free_and_total()[0] + int(torch.cuda.memory_reserved()) - allocated - _for_the_desktop()
    limit = settings.vram_limit_bytes
    return free if limit is None else min(free, max(0, limit - CONTEXT_BYTES) - allocated)


def spare_vram_bytes(settings: Settings) -> int:
    """Graphics memory that nothing at work now will ask for; 0 without a CUDA card. Imports torch.

    What torch's allocator holds counts as needed, used or not: it was needed a moment ago.
    """
    if settings.device != "cuda":
        return 0
    import torch

    spare = _free_and_total()[0] - _for_the_desktop()
    if settings.vram_limit_bytes is not None:
        spare = min(spare, settings.vram_limit_bytes - CONTEXT_BYTES - int(torch.cuda.memory_reserved()))
    return max(0, spare - SPARE_BYTES)


def vram_budget_bytes(settings: Settings) -> int:
    """Graphics memory this process may take in all, context included: the limit, or what others leave free.

    Raises DeviceError where the card does not answer.
    """
    there = vram_not_held()[0] + CONTEXT_BYTES - _for_the_desktop()
    limit = settings.vram_limit_bytes
    return there if limit is None else min(there, limit)


def vram_not_held() -> tuple[int, int]:
    """Graphics memory that no other program holds, without this process's context, and all there is.

    Raises DeviceError where the card does not answer.
    """
    import torch

    # The first question sets the context up, so it is there and counts as used when it is answered.
    free, total = _free_and_total()
    return free + int(torch.cuda.memory_reserved()), total


def _free_and_total() -> tuple[int, int]:
    """As the driver says. Usually the first thing that truly needs the card, so what is wrong with it is told here."""
    import torch

    try:
        free, total = torch.cuda.mem_get_info()
    except (RuntimeError, AssertionError) as error:  # the latter from a torch without CUDA
        if "out of memory" in str(error):  # not even the driver's own small part found room
            raise DeviceError(full_card(programs_on(""))) from error
        sentence = explained(error, known_cards(), installed_build()) or unusable(error)
        raise DeviceError(sentence) from error
    return int(free), int(total)


def _for_the_desktop() -> int:
    return DESKTOP_BYTES if sys.platform == "win32" else 0


def card_bytes(settings: Settings) -> int | None:
    """Graphics memory that a plan may count on: the limit, or all the card has; None without a CUDA card."""
    limit = settings.vram_limit_bytes
    torch = sys.modules.get("torch")
    if settings.device != "cuda" or torch is None or not torch.cuda.is_available():
        return limit
    total = int(torch.cuda.get_device_properties(0).total_memory)
    return total if limit is None else min(total, limit)


def shared_vram_bytes(settings: Settings) -> int:
    """How much of main memory Apple's GPU may have: what Metal recommends, or the limit. Imports torch."""
    import torch

    recommended = int(torch.mps.recommended_max_memory())
    return recommended if settings.vram_limit_bytes is None else min(recommended, settings.vram_limit_bytes)


def limit_vram(settings: Settings) -> None:
    """Have torch's allocator keep to ``settings.vram_limit_bytes``: beyond it an allocation fails.

    The allocator gets the limit less ``CONTEXT_BYTES``. Without a limit nothing is done, but on Windows: there the
    driver would go on in main memory and crawl, so with a limit or without the allocator never gets more than what is
    truly free. Apple's GPUs share main memory and have no context to count; nothing is done for a CPU. Raises
    DeviceError where the card does not answer.
    """
    limit = settings.vram_limit_bytes
    if settings.device == "mps" and limit is not None:
        _limit_shared(limit)
    windows = sys.platform == "win32"
    if settings.device != "cuda" or (limit is None and not windows):
        return
    import torch

    total = int(torch.cuda.get_device_properties(0).total_memory)
    allowed = vram_budget_bytes(settings) if windows or limit is None else limit
    share = (allowed - CONTEXT_BYTES) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, share)), 0)


def _limit_shared(limit: int) -> None:
    """torch takes a share of what Metal recommends, at most twice as much; 0 would mean no limit at all."""
    import torch

    share = limit / int(torch.mps.recommended_max_memory())
    torch.mps.set_per_process_memory_fraction(min(2.0, max(0.001, share)))


def empty_cache(device: str) -> None:
    """Have torch give back what it keeps of the device's memory for itself. ``device``: "cuda", "mps" or "cpu"."""
    torch = sys.modules.get("torch")
    if torch is not None and device in ("cuda", "mps"):
        getattr(torch, device).empty_cache()


def give_back() -> None:
    """Return unused memory: torch's graphics memory to the driver, and main memory to the system.

    glibc keeps what was freed for itself when it lies between things still in use; ``malloc_trim`` gives back the
    pages in between too. Nothing is done for graphics memory where torch is not loaded.
    """
    _trim_main_memory()
    torch = sys.modules.get("torch")
    cuda = getattr(torch, "cuda", None)
    if cuda is not None and getattr(cuda, "is_initialized", bool)():
        with suppress(RuntimeError):
            cuda.empty_cache()
    elif sys.platform == "darwin" and torch is not None and torch.backends.mps.is_available():
        with suppress(RuntimeError):
            empty_cache("mps")


def _trim_main_memory() -> None:
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
