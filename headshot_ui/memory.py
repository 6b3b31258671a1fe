"""How many bytes models take and how many are free: headers of weight files, main memory, graphics memory."""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.errors import ModelError

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

#: Measured with the demo base: the process with torch and diffusers needs this much beside the weights.
OVERHEAD_BYTES = 2**29
#: Graphics memory that a process takes outside torch's allocator (driver context, kernels, library handles).
#: ``benchmarks/residency.py`` measures it as ``context_bytes``: 0.51 GiB on an H200, and some room is left above it.
CONTEXT_BYTES = 600 * 2**20
#: Models that nobody uses may keep this share of main memory, so that other programs and the next job have theirs.
RAM_SHARE = 0.5
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
    """One entry of a safetensors header."""

    name: str
    dtype: str  # as safetensors calls it, e.g. "F16"
    shape: tuple[int, ...]
    stored_bytes: int

    def loaded_bytes(self, dtype: str) -> int:
        """Bytes in memory once loaded as ``dtype``; whole numbers keep their size."""
        item = _ITEM_BYTES.get(self.dtype)
        return self.stored_bytes * _DTYPE_BYTES[dtype] // item if item else self.stored_bytes


@dataclass(frozen=True)
class FilePart:
    """One part of a safetensors file that holds several."""

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

    A folder is in diffusers layout and gives its subfolders; a file is one part, named after itself. What is not
    there takes nothing. Raises ModelError for a damaged file.
    """
    parts: dict[str, int] = {}
    for path in paths:
        if isinstance(path, FilePart):
            parts[path.name] = sum(tensor.loaded_bytes(dtype) for tensor in path.tensors())
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
    parts: dict[str, dict[str, int]] = {}
    for path in sorted(folder.glob("*/*.safetensors")):
        files = parts.setdefault(path.parent.name, {})
        files[path.name.replace(".fp16.", ".").replace(".bf16.", ".")] = file_bytes(path, dtype)
    return {part: sum(files.values()) for part, files in parts.items()}


def file_bytes(path: Path, dtype: str) -> int:
    """Bytes of one weight file in memory; a file that is no safetensors counts as it is. Raises ModelError."""
    if path.suffix != ".safetensors":
        return path.stat().st_size
    return sum(tensor.loaded_bytes(dtype) for tensor in read_header(path))


def read_header(path: Path) -> tuple[StoredTensor, ...]:
    """What a safetensors file holds; reads its header only. Raises ModelError for a damaged one."""
    try:
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


def free_vram_bytes(settings: Settings) -> int:
    """Graphics memory that torch may still fill, within ``settings.vram_limit_bytes``. Imports torch."""
    import torch

    allocated = int(torch.cuda.memory_allocated())
    free = int(torch.cuda.mem_get_info()[0]) + int(torch.cuda.memory_reserved()) - allocated
    limit = settings.vram_limit_bytes
    return free if limit is None else min(free, max(0, limit - CONTEXT_BYTES) - allocated)


def vram_budget_bytes(settings: Settings) -> int:
    """Graphics memory this process may take in all, context included: the limit, or what others leave free."""
    import torch

    # The first question sets the context up, so it is there and counts as used when it is answered.
    there = int(torch.cuda.mem_get_info()[0]) + int(torch.cuda.memory_reserved()) + CONTEXT_BYTES
    limit = settings.vram_limit_bytes
    return there if limit is None else min(there, limit)


def card_bytes(settings: Settings) -> int | None:
    """Graphics memory that a plan may count on: the limit, or all the card has; None without a CUDA card."""
    limit = settings.vram_limit_bytes
    torch = sys.modules.get("torch")
    if settings.device != "cuda" or torch is None or not torch.cuda.is_available():
        return limit
    total = int(torch.cuda.get_device_properties(0).total_memory)
    return total if limit is None else min(total, limit)


def limit_vram(settings: Settings) -> None:
    """Have torch's allocator keep to ``settings.vram_limit_bytes``: beyond it an allocation fails.

    The allocator gets the limit less ``CONTEXT_BYTES``. Without a limit nothing is done, but on Windows: there the
    driver would go on in main memory and crawl, so the allocator gets what is truly free. Nothing without a CUDA card.
    """
    limit = settings.vram_limit_bytes
    if settings.device != "cuda" or (limit is None and sys.platform != "win32"):
        return
    import torch

    total = int(torch.cuda.get_device_properties(0).total_memory)
    share = ((vram_budget_bytes(settings) if limit is None else limit) - CONTEXT_BYTES) / total
    torch.cuda.set_per_process_memory_fraction(min(1.0, max(0.0, share)), 0)


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


def _trim_main_memory() -> None:
    if not sys.platform.startswith("linux"):
        return
    import ctypes

    with suppress(OSError, AttributeError):  # another C library than glibc
        ctypes.CDLL(None).malloc_trim(0)
