"""Copies of frozen weights in page-locked main memory, from which a card is filled eight times as fast as from other.

Measured on an H200: 55 GB/s instead of 6.7. Locking takes the driver up to 0.7 s per GiB, so it is done once per
module and by a thread of its own, while what was asked for computes: ``ask`` begins it, ``settle`` waits for it.
The copies lie side by side in a few blocks, each of which travels as one.

Locked memory is missing to everybody else, so it keeps to a share of main memory (``memory.lockable_bytes``), and
where the system refuses, weights stay in ordinary memory, which the log says once.
"""

from __future__ import annotations

import logging
import mmap
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from headshot_ui.memory import free_ram_bytes, lockable_bytes, total_ram_bytes

if TYPE_CHECKING:
    import torch

    from headshot_ui.settings import Settings

BLOCK_BYTES = 2**28
#: Less is not worth a block: a LoRA travels in milliseconds.
LEAST_BYTES = 2**24
_ALIGNED = 512  # bytes, as torch's own allocator aligns: kernels choose by it
_PLACE = "_headshot_ui_place"

_log = logging.getLogger(__name__)


@dataclass(eq=False)
class Block:
    """Weights of one number format side by side."""

    dtype: torch.dtype
    numbers: int
    here: torch.Tensor | None = None  # (numbers,) in locked memory, once it is filled and locked
    coming: tuple[torch.Tensor, Any] | None = None  # the same on a card, sent ahead, and the event of its arrival

    @property
    def bytes(self) -> int:
        return self.numbers * self.dtype.itemsize


@dataclass(eq=False)
class Place:
    """Where one tensor lies in a block."""

    block: Block
    start: int
    source: torch.Tensor | None  # what it is copied from, until ``master_of`` has let go of it
    version: int  # of the tensor then: one written to since is not what was copied
    shape: Sequence[int]
    stride: Sequence[int]

    def view(self, flat: torch.Tensor) -> torch.Tensor:
        """This tensor in the block ``flat``, wherever that lies and in whatever number format."""
        return flat.as_strided(self.shape, self.stride, self.start)


class _Locked:
    """What this process has locked and may lock, and the threads that are at it."""

    def __init__(self) -> None:
        self.may = 0  # bytes in all
        self.refused = False  # the system said no: it is not asked again
        self.sizes: dict[int, int] = {}  # address → bytes
        self.turn = threading.Lock()  # one thread after the other
        self.threads: list[threading.Thread] = []

    @property
    def bytes(self) -> int:
        return sum(list(self.sizes.values()))


_locked = _Locked()


# --- for the thread that moves models -------------------------------------------------------------
def allow(settings: Settings) -> None:
    """Say how much may be locked from now on; nothing may be before this is called.

    Settings for the CPU, as exports have them, say nothing of what the others may.
    """
    if settings.device == "cuda" and not _locked.refused:
        _locked.may = lockable_bytes(total_ram_bytes(), settings)


def allowed() -> bool:
    """Whether any memory may be locked."""
    return _locked.may > 0


def ask(weights: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Have a module's weights copied to locked memory, in the background: pairs of a tensor and what of it lies here.

    Once per module: nothing is done where one of them has a place already, or where too much is locked.
    """
    weights = list(weights)
    if not allowed() or any(_PLACE in tensor.__dict__ for tensor, _ in weights):
        return
    if sum(here.nbytes for _, here in weights) < LEAST_BYTES:
        return
    work = []
    room = min(_locked.may - _locked.bytes, free_ram_bytes() // 2)
    for block, group in _blocks(weights):
        room -= block.bytes
        if room < 0:
            break
        for tensor, place in group:
            setattr(tensor, _PLACE, place)
        work.append((block, [weakref.ref(place) for _, place in group]))
    if work:
        thread = threading.Thread(target=_fill_all, args=(work,), name="page-locking")
        _locked.threads = [other for other in _locked.threads if other.is_alive()] + [thread]
        thread.start()


def settle() -> None:
    """Wait until all that was asked for is locked, or given up.

    To be called before a CUDA graph is captured: while one is, the driver takes no such call from any thread.
    """
    for thread in _locked.threads:
        thread.join()
    _locked.threads.clear()


def settled() -> bool:
    """Whether nothing is being locked now, so that a CUDA graph may be captured."""
    return not any(thread.is_alive() for thread in _locked.threads)


def place_of(tensor: torch.Tensor) -> Place | None:
    """Where in locked memory the ``data`` of a tensor lies; None while it lies elsewhere."""
    place: Place | None = tensor.__dict__.get(_PLACE)
    here = None if place is None else place.block.here
    if place is None or here is None or here.dtype != tensor.dtype:
        return None
    return place if tensor.data_ptr() == here.data_ptr() + place.start * here.itemsize else None


def master_of(tensor: torch.Tensor, here: torch.Tensor) -> torch.Tensor:
    """``here``, the weights of ``tensor`` in main memory, or their copy in locked memory as soon as that is there."""
    place: Place | None = tensor.__dict__.get(_PLACE)
    if place is None or place.block.here is None or place.source is None:
        return here
    same = place.source.data_ptr() == here.data_ptr() and place.source.dtype == here.dtype
    if not same or place.version != tensor._version:
        forget(tensor)  # something else was put there meanwhile
        return here
    place.source = None
    return place.view(place.block.here)


def forget(tensor: torch.Tensor) -> None:
    """The copy of this tensor is of no use any more. Its block is unlocked with the last of them."""
    tensor.__dict__.pop(_PLACE, None)


# --- blocks ---------------------------------------------------------------------------------------
def _blocks(
    weights: Iterable[tuple[torch.Tensor, torch.Tensor]],
) -> Iterator[tuple[Block, list[tuple[torch.Tensor, Place]]]]:
    """Tensors in their order, those of each number format in blocks of ``BLOCK_BYTES``, or one larger tensor."""
    import torch

    by_dtype: dict[torch.dtype, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for tensor, here in weights:
        by_dtype.setdefault(here.dtype, []).append((tensor, here))
    for dtype, group in by_dtype.items():
        step = max(1, _ALIGNED // dtype.itemsize)
        block, placed = Block(dtype, 0), list[tuple[torch.Tensor, Place]]()
        for tensor, here in group:
            if placed and block.bytes + here.nbytes > BLOCK_BYTES:
                yield block, placed
                block, placed = Block(dtype, 0), []
            dense = torch.empty_like(here, device="meta").stride()  # without gaps, in the order they have now
            placed.append((tensor, Place(block, block.numbers, here, tensor._version, here.shape, dense)))
            block.numbers += -(-here.numel() // step) * step
        yield block, placed


def _fill_all(work: list[tuple[Block, list[weakref.ref[Place]]]]) -> None:
    """The thread's work. What was dropped meanwhile is passed over, and the program may end between two blocks."""
    with _locked.turn:
        while work and threading.main_thread().is_alive():
            block, places = work.pop(0)
            if all(place() is None for place in places):
                continue
            try:
                done = _fill(block, places)
            except Exception:  # nothing depends on it
                _log.exception("Weights stay in ordinary memory")
                return
            if not done:
                return


def _fill(block: Block, places: list[weakref.ref[Place]]) -> bool:
    """Copy and lock one block; False when no more is to be locked."""
    if _locked.bytes + block.bytes > _locked.may:
        return False
    flat = _memory(block.bytes).view(block.dtype)
    for weak in places:
        place = weak()
        if place is not None and place.source is not None:
            place.view(flat).copy_(place.source)
    address, size = flat.data_ptr(), flat.nbytes
    error = _cudart().cudaHostRegister(address, size, 0)
    if int(error) != 0:
        _locked.may, _locked.refused = 0, True
        _log.warning(
            "Main memory could not be page-locked (cudaHostRegister said %s): weights travel to the graphics card "
            "at the speed of ordinary memory", error,
        )  # fmt: skip
        return False
    _locked.sizes[address] = size
    weakref.finalize(block, _unlock, address).atexit = False
    block.here = flat
    return True


def _unlock(address: int) -> None:
    import torch

    _locked.sizes.pop(address, None)
    cuda: Any = torch.cuda
    if cuda.is_initialized():
        cuda.synchronize()  # a copy may still be under way
    _cudart().cudaHostUnregister(address)


def _memory(size: int) -> torch.Tensor:
    """(size,) uint8 of main memory, in large pages where the system has them: they are locked much sooner."""
    import torch

    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(size, dtype=torch.uint8)
    pages = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def _cudart() -> Any:
    import torch

    cuda: Any = torch.cuda
    return cuda.cudart()
