"""Which base model is in memory: at most one, loaded only when it fits, gone after an error.

Only the worker thread of the job queue may use it.
"""

from __future__ import annotations

import gc
import json
import logging
import struct
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.errors import Cancelled, MemoryBudgetError, ModelError, StoreError
from headshot_ui.meter import StageUse
from headshot_ui.store import read_json, readable_bytes, write_json_atomic

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo, LoadedBase
    from headshot_ui.settings import Settings

# Measured with the demo base: the process with torch and diffusers needs this much beside the weights.
OVERHEAD_BYTES = 2**29
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Memory:
    """Bytes of memory of one kind."""

    kind: str  # "memory" or "graphics memory"
    needed: int
    free: int

    @property
    def fits(self) -> bool:
        return self.needed <= self.free


class Residency:
    """Holds the one loaded base model between jobs, so that the next job of the same base starts at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._info: BaseInfo | None = None
        self._loaded: LoadedBase | None = None
        self._peaks_file = settings.outputs_dir / "peaks.json"

    @property
    def resident(self) -> BaseInfo | None:
        """The base model in memory now."""
        return self._info

    @contextmanager
    def use(
        self, info: BaseInfo, loader: Callable[[], LoadedBase], others: Iterable[BaseInfo] = ()
    ) -> Iterator[LoadedBase]:
        """The loaded base model, for the length of the block.

        It stays in memory afterwards with all LoRAs taken off; an error other than Cancelled evicts it.
        Room is made before a load: another model goes first. Raises MemoryBudgetError before loading when it
        does not fit, naming the largest of ``others`` that does; and what ``loader`` raises.
        """
        if self._info != info:
            self.evict()
            self._check_budget(info, others)
            self._loaded = loader()
            self._info = info
        assert self._loaded is not None
        try:
            try:
                yield self._loaded
            finally:
                self._loaded.use_loras(())
        except Cancelled:
            raise
        except BaseException:
            self.evict()
            raise

    def evict(self) -> None:
        """Drop the resident model and give its memory back."""
        loaded, self._loaded, self._info = self._loaded, None, None
        if loaded is not None:
            try:
                loaded.release()
            except Exception:  # after a GPU error even this may fail; the first error is the one to tell
                _log.exception("Releasing the base model failed")
        del loaded
        gc.collect()
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_initialized():
            with suppress(RuntimeError):
                torch.cuda.empty_cache()

    # --- peaks ------------------------------------------------------------------------------------
    def record(self, info: BaseInfo, use: StageUse) -> None:
        """Keep the largest peaks seen per (base, stage) in ``outputs/peaks.json``."""
        everything = self._read_peaks()
        stages = everything.setdefault(info.id, {})
        old = stages.get(use.name)
        if old is not None:
            use = StageUse(
                use.name,
                use.seconds,
                max(use.peak_ram_bytes, old.peak_ram_bytes),
                max(use.peak_vram_bytes, old.peak_vram_bytes),
            )
        stages[use.name] = use
        plain = {base: {name: asdict(use) for name, use in uses.items()} for base, uses in everything.items()}
        try:
            write_json_atomic(self._peaks_file, plain)
        except StoreError as error:  # a number for the next plan is not worth failing a finished stage
            _log.warning("%s", error)

    def peaks(self, info: BaseInfo) -> dict[str, StageUse]:
        """Largest memory and latest seconds seen for each stage of this base on this machine."""
        return self._read_peaks().get(info.id, {})

    def _read_peaks(self) -> dict[str, dict[str, StageUse]]:
        if not self._peaks_file.is_file():
            return {}
        try:
            data = read_json(self._peaks_file)
            return {base: {name: StageUse(**use) for name, use in uses.items()} for base, uses in data.items()}
        except (StoreError, TypeError, AttributeError) as error:
            _log.warning("Measured peaks are forgotten: %s", error)
            return {}

    # --- budget -----------------------------------------------------------------------------------
    def memory_for(self, info: BaseInfo) -> tuple[Memory, ...]:
        """What loading ``info`` takes and what is free, per kind of memory. Raises ModelError for damaged files."""
        parts = weight_bytes(info.folder, self._settings.dtype)
        memory = Memory("memory", sum(parts.values()) + OVERHEAD_BYTES, _free_ram_bytes())
        if self._settings.device != "cuda":
            return (memory,)
        # Stages take turns on the GPU, so the largest part counts there, not the sum.
        largest = max(parts.values(), default=0)
        return memory, Memory("graphics memory", largest + OVERHEAD_BYTES, _free_vram_bytes(self._settings))

    def _check_budget(self, info: BaseInfo, others: Iterable[BaseInfo]) -> None:
        short = next((memory for memory in self.memory_for(info) if not memory.fits), None)
        if short is None:
            return
        fitting = self._largest_that_fits(others)
        advice = f"choose the base model “{fitting.id}”" if fitting else "add memory (no installed model needs less)"
        raise MemoryBudgetError(
            f"“{info.title}” needs about {readable_bytes(short.needed)} of {short.kind} and "
            f"{readable_bytes(short.free)} is free: close other programs, or {advice}."
        )

    def _largest_that_fits(self, others: Iterable[BaseInfo]) -> BaseInfo | None:
        needs = []
        for other in others:
            with suppress(ModelError):
                memories = self.memory_for(other)
                if all(memory.fits for memory in memories):
                    needs.append((memories[0].needed, other.id, other))
        return max(needs)[2] if needs else None


def weight_bytes(folder: Path, dtype: str) -> dict[str, int]:
    """Bytes in memory of each part (subfolder) of a model in diffusers layout, once loaded as ``dtype``.

    Reads the headers of the safetensors files only. A file that is there in several number formats
    (``model.safetensors`` and ``model.fp16.safetensors``) counts once. Raises ModelError for a damaged one.
    """
    parts: dict[str, dict[str, int]] = {}
    for path in sorted(folder.glob("*/*.safetensors")):
        files = parts.setdefault(path.parent.name, {})
        files[path.name.replace(".fp16.", ".").replace(".bf16.", ".")] = _file_bytes(path, dtype)
    return {part: sum(files.values()) for part, files in parts.items()}


def _file_bytes(path: Path, dtype: str) -> int:
    """A safetensors file begins with the length of its JSON header (8 bytes, little-endian) and that header."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > path.stat().st_size:
                raise ValueError("header longer than the file")
            header = json.loads(file.read(length))
        total = 0
        for name, tensor in header.items():
            if name != "__metadata__":
                start, end = tensor["data_offsets"]
                stored = _ITEM_BYTES.get(tensor["dtype"])  # whole numbers keep their size
                total += (end - start) * _DTYPE_BYTES[dtype] // stored if stored else end - start
        return total
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise ModelError(f"{path} is damaged: remove the folder {path.parent.parent} and get it again.") from error


def _free_ram_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().available)


def _free_vram_bytes(settings: Settings) -> int:
    import torch

    free = int(torch.cuda.mem_get_info()[0]) + int(torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    limit = settings.vram_limit_bytes
    return free if limit is None else min(free, limit - int(torch.cuda.memory_allocated()))
