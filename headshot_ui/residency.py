"""Which models are in memory and which of them on the device: room is made before a load, never after an error.

    on the device   one at a time, several only where their weights are small beside its memory, or where the large one
                    says what it takes
    main memory     those used last stay for the next job while they fit; the longest unused goes first, and then
                    those in use drop what they do not need now and read it again from their files later

Only one thread may use a Residency: the worker thread of its lane.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from headshot_ui import pinned
from headshot_ui.card_state import out_of_graphics_memory
from headshot_ui.errors import Cancelled, MemoryBudgetError, ModelError
from headshot_ui.families.fits import ROOM_FOR_DOUBT, LeastBytes
from headshot_ui.memory import (
    OVERHEAD_BYTES,
    RAM_SHARE,
    FilePart,
    Memory,
    files_bytes,
    free_ram_bytes,
    free_vram_bytes,
    give_back,
    is_read_in_turns,
    limit_vram,
    ram_budget_bytes,
    spare_vram_bytes,
    total_ram_bytes,
    vram_budget_bytes,
    within_ram_limit,
)
from headshot_ui.store import readable_bytes

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

#: Weights of several models stay on the device together only up to this share of its memory: computing with one of
#: them needs the rest (a training step of SDXL takes 1.5 times its weights, a batch of four pictures as much again).
DEVICE_SHARE = 0.25
#: Kinds that are loaded in the number format of the settings; networks for faces compute in float32 everywhere.
_IN_SETTINGS_DTYPE = frozenset({"base", "refiner"})
_NOUNS = {"base": "base model"}

T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelKey:
    """Names a model; equal keys are the same model in memory."""

    kind: str  # "base", "refiner", "detector", "restorer", "upscaler", "parser" or "captioner"
    id: str
    title: str  # for people
    files: tuple[Path | FilePart, ...]  # weight files, parts of one, or folders in diffusers layout
    version: str = ""  # anything else that makes it another model, such as settings read along with it
    least: tuple[tuple[str, LeastBytes], ...] = ()  # of parts that are made to fit a card: what they take at least


@dataclass
class _Held:
    """A model in memory. One without ``keep``, ``shed``, ``release`` or ``use_loras`` has nothing to move, drop …"""

    thing: Any
    users: int = 0  # blocks that use it now, one inside the other
    on_device: bool = True
    broken: bool = False  # an error met it: not to be used again
    shed: bool = False  # parts of it were dropped and will be read again

    def leave_device(self) -> None:
        if self.on_device:
            self.on_device = False
            getattr(self.thing, "keep", _nothing)(frozenset())

    def drop_unused(self) -> None:
        """What a block around has no need of while another model works inside it."""
        if not self.shed and hasattr(self.thing, "shed"):
            self.shed = True
            self.thing.shed()

    def without_loras(self) -> None:
        getattr(self.thing, "use_loras", _nothing)(())

    def release(self) -> None:
        getattr(self.thing, "release", _nothing)()


def _nothing(*_: object) -> None:
    """For a model without that method."""


class Residency:
    """Holds the loaded models between jobs, so that the next job with the same ones starts at once."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._held: dict[ModelKey, _Held] = {}  # the longest unused first

    @property
    def resident(self) -> tuple[ModelKey, ...]:
        """The models in memory now, the one used last at the end."""
        return tuple(self._held)

    @contextmanager
    def use(self, key: ModelKey, loader: Callable[[], T], others: Iterable[ModelKey] = ()) -> Iterator[T]:
        """The loaded model, for the length of the block; blocks may lie inside one another.

        Every other model has left the device when the block begins, unless both clearly fit. Afterwards the model
        stays in memory with all LoRAs taken off; an error other than Cancelled evicts it. Room is made before a
        load. Raises MemoryBudgetError before loading when it does not fit, naming the largest of ``others`` that
        does; and what ``loader`` raises.
        """
        limit_vram(self._settings)
        pinned.allow(self._settings)
        self._clear_device(key)
        if key not in self._held:
            self._forget_older(key)
            self._make_room(key, others)
            self._held[key] = _Held(loader())
        elif self._reads_again(key):
            self._evict_idle(key)
        held = self._held[key] = self._held.pop(key)  # to the end: used last
        held.users += 1
        held.on_device = True
        try:
            yield held.thing
        except Cancelled:
            raise
        except BaseException:
            held.broken = True
            raise
        finally:
            held.users -= 1
            self._leave(key, held)

    def expect(self, key: ModelKey, parts: frozenset[str]) -> None:
        """``key`` is used next: if it is in memory, its weights may set out while something else computes.

        Only into room on the device that nothing asks for. From then on the model counts as being there.
        """
        held = self._held.get(key)
        if held is not None and not held.on_device and hasattr(held.thing, "expect"):
            held.on_device = held.thing.expect(parts, spare_vram_bytes(self._settings))

    def evict(self) -> None:
        """Drop every model that nobody uses, and those in use as soon as their blocks end."""
        for key, held in list(self._held.items()):
            held.broken = True
            if not held.users:
                self._evict(key)

    def _leave(self, key: ModelKey, held: _Held) -> None:
        """A block has ended: take LoRAs off, or drop what an error met, and make way for the block around it."""
        if held.users:
            return
        try:
            if not held.broken:
                held.without_loras()
        except BaseException:
            held.broken = True
            raise
        finally:
            around = [other for other in self._held.values() if other.users]
            for other in around:
                other.on_device = True  # it comes back by itself as soon as it computes
            if held.broken:
                self._evict(key)
            elif around and not self._clearly_fit(self._on_device()):
                held.leave_device()

    # --- room -------------------------------------------------------------------------------------
    def _clear_device(self, key: ModelKey) -> None:
        """Move others off the device, unused ones first, until those left clearly fit together with ``key``."""
        others = [other for other in self._on_device() if other != key]
        others.sort(key=lambda other: self._held[other].users > 0)
        while others and not self._clearly_fit(others, coming=key):
            self._held[others.pop(0)].leave_device()

    def _on_device(self) -> list[ModelKey]:
        return [key for key, held in self._held.items() if held.on_device]

    def _clearly_fit(self, keys: Iterable[ModelKey], coming: ModelKey | None = None) -> bool:
        """Whether all these are small beside the device's memory; a CPU has none of its own.

        The only large model among them counts as it says, if it does and is there: one that is ``coming`` may be to do
        something else now.
        """
        if self._settings.device != "cuda":
            return False
        takes = {key: self._weights(key) / DEVICE_SHARE for key in (*keys, *([] if coming is None else [coming]))}
        large = [key for key in takes if key.kind in _IN_SETTINGS_DTYPE]
        if len(large) == 1 and large[0] != coming:
            said: int | None = getattr(self._held[large[0]].thing, "takes_bytes", None)
            takes[large[0]] = takes[large[0]] if said is None else ROOM_FOR_DOUBT * said
        return sum(takes.values()) <= vram_budget_bytes(self._settings)

    def _forget_older(self, key: ModelKey) -> None:
        """Drop what was loaded under the same name before it changed."""
        for other, held in list(self._held.items()):
            if (other.kind, other.id) == (key.kind, key.id) and not held.users:
                self._evict(other)

    def _make_room(self, key: ModelKey, others: Iterable[ModelKey]) -> None:
        """Have ``key`` fit: by evicting unused models, then by having those in use drop what they can read again.

        Raises MemoryBudgetError.
        """
        give_back()
        self._evict_idle(key)
        for held in list(self._held.values()):
            if not all(memory.fits for memory in self.memory_for(key)):
                held.drop_unused()
        short = next((memory for memory in self.memory_for(key) if not memory.fits), None)
        if short is not None:
            raise MemoryBudgetError(self._refusal(key, short, others))

    def _evict_idle(self, key: ModelKey) -> None:
        """Evict unused models other than ``key``, the longest unused first, until it fits."""
        idle = [other for other, held in self._held.items() if not held.users and other != key]
        while idle and not self._fits_beside_the_held(key):
            self._evict(idle.pop(0))

    def _reads_again(self, key: ModelKey) -> bool:
        """Whether a model in memory will read parts from its files in a block that begins now."""
        held = self._held[key]
        in_turns = hasattr(held.thing, "shed") and self._is_read_in_turns(self._parts(key))
        return not held.users and (held.shed or in_turns)

    def _fits_beside_the_held(self, key: ModelKey) -> bool:
        together = sum(self._in_memory(other) for other in {*self._held, key})
        share = RAM_SHARE * ram_budget_bytes(total_ram_bytes(), self._settings)
        # What takes turns there is larger than its share by itself: it has main memory alone.
        return together <= max(share, self._in_memory(key)) and all(memory.fits for memory in self.memory_for(key))

    def _is_read_in_turns(self, parts: Mapping[str, int]) -> bool:
        return is_read_in_turns(sum(parts.values()), total_ram_bytes(), self._settings)

    def _in_memory(self, key: ModelKey) -> int:
        """Bytes of main memory that the parts of a model take: together, or one after the other."""
        parts = self._parts(key)
        if not self._is_read_in_turns(parts):
            return sum(parts.values())
        return max((self._least(key, name, size).memory for name, size in parts.items()), default=0)

    def _least(self, key: ModelKey, name: str, size: int) -> LeastBytes:
        """What a part of that size can be had in. Only for a card anything is made to fit."""
        least = dict(key.least).get(name) if self._settings.device == "cuda" else None
        return LeastBytes(size, size) if least is None else LeastBytes(min(size, least.card), min(size, least.memory))

    def _evict(self, key: ModelKey) -> None:
        """Drop a model and give its memory back."""
        held = self._held.pop(key, None)
        if held is None:
            return
        try:
            held.release()
        except Exception:  # after a GPU error even this may fail; the first error is the one to tell
            _log.exception("Releasing “%s” failed", key.title)
        held.thing = None
        gc.collect()
        give_back()

    # --- budget -----------------------------------------------------------------------------------
    def memory_for(self, key: ModelKey) -> tuple[Memory, ...]:
        """What loading ``key`` takes and what is free, per kind of memory. Raises ModelError for damaged files."""
        parts = self._parts(key)
        free = within_ram_limit(free_ram_bytes(), self._settings)
        memory = Memory("memory", self._in_memory(key) + OVERHEAD_BYTES, free)
        if self._settings.device != "cuda":
            return (memory,)
        # Stages take turns on the GPU, so the largest part counts there, not the sum.
        largest = max((self._least(key, name, size).card for name, size in parts.items()), default=0)
        return memory, Memory("graphics memory", largest + OVERHEAD_BYTES, free_vram_bytes(self._settings))

    def _parts(self, key: ModelKey) -> dict[str, int]:
        return files_bytes(key.files, self._settings.dtype if key.kind in _IN_SETTINGS_DTYPE else "float32")

    def _weights(self, key: ModelKey) -> int:
        return sum(self._parts(key).values())

    def _refusal(self, key: ModelKey, short: Memory, others: Iterable[ModelKey]) -> str:
        noun = _NOUNS.get(key.kind, key.kind)
        fitting = self._largest_that_fits(others)
        advice = f"choose the {noun} “{fitting.id}”" if fitting else "add memory (no installed model needs less)"
        held = out_of_graphics_memory() if short.kind == "graphics memory" else ""
        return (
            f"“{key.title}” needs about {readable_bytes(short.needed)} of {short.kind} and "
            f"{readable_bytes(max(0, short.free))} is free: close other programs, or {advice}."
        ) + (f" {held}" if held else "")

    def _largest_that_fits(self, others: Iterable[ModelKey]) -> ModelKey | None:
        needs = []
        for other in others:
            with suppress(ModelError):
                memories = self.memory_for(other)
                if all(memory.fits for memory in memories):
                    needs.append((memories[0].needed, other.id, other))
        return max(needs, key=lambda need: need[:2])[2] if needs else None
