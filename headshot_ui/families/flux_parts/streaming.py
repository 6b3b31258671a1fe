"""Blocks of a model that wait in main memory and travel to the card when their turn comes.

Two slots on the card take turns: while one block computes from its slot, the next one travels to the other, on a
stream of its own. Weights are frozen, so they travel one way only and nothing is copied back. A block is one run of
bytes, whatever number formats its weights have, and travels as one copy, from page-locked memory where ``pinned`` may
lock some.

A block's weights are views of its slot all the time, at addresses that do not change, so that a step can be recorded
as a CUDA graph: the copies are recorded with it. Nothing is known of the slots from one pass to the next, because a
recording that is repeated says nothing of what it left there: each pass begins with the first two blocks.

In training blocks come in order and then, with gradient checkpointing, once more in reverse: each is computed again
and at once its gradients. Autograd does what belongs to a later block before it turns to an earlier one (it takes work
in the reverse order of its making), so when a block is asked for, the one asked for before is done with. Without
checkpointing weights would have to stay until the gradients, so that is refused.

Of a FLUX.1 transformer single blocks take part first: they have the most to compute for each byte, and are half as
large as double ones, so that their slots are too. T5 travels whole where a card does not hold its 9.5 GB: exactly the
same numbers in one pass over the bus.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch

from headshot_ui import pinned

SLOTS = 2
_PACKED = "_headshot_ui_packed"  # of a block: its run of bytes and the places in it
_ALIGNED = 512  # bytes, as torch's own allocator aligns: kernels choose by it


class Carrier(Protocol):
    """How bytes get from main memory into the slots. Tests put one in place that notices what comes too early."""

    def slots(self, count: int, size: int) -> Sequence[torch.Tensor]:
        """``count`` times (size,) uint8 where blocks compute."""

    def send(self, slot: int, target: torch.Tensor, source: torch.Tensor) -> None:
        """Begin to copy ``source`` into ``target``, a piece of this slot, after all that was begun before."""

    def wait(self, slot: int) -> None:
        """What is begun from now on finds in the slot what was sent last."""

    def wait_for_all(self) -> None:
        """What is begun from now on finds everything that was sent."""


@dataclass
class CardCarrier:
    """Copies on a stream of a CUDA card beside the one that computes."""

    device: str
    stream: Any = None
    arrived: list[Any] = field(default_factory=list)

    def slots(self, count: int, size: int) -> Sequence[torch.Tensor]:
        cuda: Any = torch.cuda
        self.stream = cuda.Stream(self.device)
        self.arrived = [cuda.Event() for _ in range(count)]
        return [torch.empty(size, dtype=torch.uint8, device=self.device) for _ in range(count)]

    def send(self, slot: int, target: torch.Tensor, source: torch.Tensor) -> None:
        cuda: Any = torch.cuda
        # Told before the stream is part of the recording: torch gets over one that ends with a stream left open badly.
        if cuda.is_current_stream_capturing() and not source.is_pinned():
            raise RuntimeError("blocks travel from memory that is not page-locked, which a graph cannot repeat")
        self.stream.wait_stream(cuda.current_stream())  # the block that computed from this slot before is done then
        with cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
            self.arrived[slot].record(self.stream)

    def wait(self, slot: int) -> None:
        cuda: Any = torch.cuda
        cuda.current_stream().wait_event(self.arrived[slot])

    def wait_for_all(self) -> None:
        """Not by ``arrived``: where the last pass was recorded as a graph, CUDA lets nobody wait for its events."""
        cuda: Any = torch.cuda
        cuda.current_stream().wait_stream(self.stream)


class _Plain:
    """Copies at once: on the CPU blocks compute from slots too, so that everything else is the same there."""

    def slots(self, count: int, size: int) -> Sequence[torch.Tensor]:
        return [torch.empty(size, dtype=torch.uint8) for _ in range(count)]

    def send(self, slot: int, target: torch.Tensor, source: torch.Tensor) -> None:
        target.copy_(source)

    def wait(self, slot: int) -> None:
        pass

    def wait_for_all(self) -> None:
        pass


# --- blocks as bytes ------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Place:
    """One weight of a block in its run of bytes."""

    tensor: torch.Tensor
    start: int  # byte
    shape: torch.Size
    dtype: torch.dtype

    def view(self, flat: torch.Tensor) -> torch.Tensor:
        size = self.shape.numel() * self.dtype.itemsize
        return flat[self.start : self.start + size].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class _Block:
    module: torch.nn.Module
    flat: torch.Tensor  # (bytes,) uint8 in main memory
    places: tuple[_Place, ...]

    def here(self) -> torch.Tensor:
        """Its bytes in main memory, in page-locked memory as soon as they are there."""
        self.flat.data = pinned.master_of(self.flat, self.flat.data)
        return self.flat.data

    def is_whole(self) -> bool:
        """Whether these are the weights that the module has now, and they lie there."""
        now, start = _frozen(self.module), self.flat.data_ptr()
        return len(now) == len(self.places) and all(
            place.tensor is tensor and tensor.dtype == place.dtype and tensor.data_ptr() == start + place.start
            for place, tensor in zip(self.places, now, strict=True)
        )


def _frozen(module: torch.nn.Module) -> list[torch.Tensor]:
    """Weights that travel: those of a LoRA that learns change on the card and stay there."""
    named = [*module.named_parameters(), *module.named_buffers()]
    return [tensor for name, tensor in named if not tensor.requires_grad and ".lora_" not in name]


def block_bytes(module: torch.nn.Module) -> int:
    """How many bytes of a block travel."""
    return sum(_room(tensor.nbytes) for tensor in _frozen(module))


def _room(size: int) -> int:
    return -(-size // _ALIGNED) * _ALIGNED


def _packed(module: torch.nn.Module) -> _Block:
    """The block with its weights in one run of bytes; their old memory is given back.

    One that has travelled before and came back still has them so, and in page-locked memory perhaps.
    """
    before: _Block | None = None
    if _PACKED in module.__dict__:
        before = _Block(module, *module.__dict__[_PACKED])
    if before is not None and before.is_whole():
        return before
    places, start = [], 0
    for tensor in _frozen(module):
        places.append(_Place(tensor, start, tensor.shape, tensor.dtype))
        start += _room(tensor.nbytes)
    flat = torch.empty(start, dtype=torch.uint8)
    for place in places:
        here = place.view(flat)
        here.copy_(place.tensor.data)
        place.tensor.data = here
    module.__dict__[_PACKED] = flat, tuple(places)
    return _Block(module, flat, tuple(places))


def forget_packed(model: torch.nn.Module) -> None:
    """Other blocks are to travel, or none: those that did give up their runs of bytes as soon as they move."""
    for module in model.modules():
        module.__dict__.pop(_PACKED, None)


# --- which, and how -------------------------------------------------------------------------------
def chosen_blocks(transformer: Any, count: int) -> list[torch.nn.Module]:
    """``count`` blocks of a FluxTransformer2DModel in the order of a pass: spread over the single ones, then all.

    Between two that travel others compute, which is the time they have. Raises ValueError for more than there are.
    """
    double, single = list(transformer.transformer_blocks), list(transformer.single_transformer_blocks)
    if count > len(double) + len(single):
        raise ValueError(f"{count} blocks are to travel, and there are only {len(double) + len(single)}.")
    some = min(count, len(single))
    return _spread(double, count - some) + _spread(single, some)


def _spread(blocks: list[torch.nn.Module], count: int) -> list[torch.nn.Module]:
    return [blocks[(2 * i + 1) * len(blocks) // (2 * count)] for i in range(count)]


class Streamed:
    """A model some of whose blocks travel; made by ``stream``."""

    def __init__(
        self,
        model: torch.nn.Module,
        blocks: Sequence[torch.nn.Module],
        carrier: Carrier,
        lock: bool = True,
        told: Callable[[int, int], None] | None = None,
    ) -> None:
        self._model: Any = model
        self._carrier = carrier
        self._blocks: list[_Block] = []
        for one in blocks:  # one that is packed computes as before, should ``told`` raise
            if told is not None:
                told(len(self._blocks), len(blocks))
            self._blocks.append(_packed(one))
        if told is not None:
            told(len(blocks), len(blocks))
        if lock:
            pinned.ask((block.flat, block.flat) for block in self._blocks)
        size = max((len(block.flat) for block in self._blocks), default=0)
        self._slots = carrier.slots(min(SLOTS, len(blocks)), size)
        self._holds: list[int | None] = [None] * len(self._slots)  # which block was sent to each slot in this pass
        self._last = -1
        self._hooks = [model.register_forward_pre_hook(self._begin)]
        for index, block in enumerate(self._blocks):
            for place in block.places:
                place.tensor.data = place.view(self._slots[index % SLOTS])
            self._hooks.append(block.module.register_forward_pre_hook(partial(self._arrive, index)))

    @property
    def slot_bytes(self) -> int:
        """What the slots take on the card."""
        return sum(len(slot) for slot in self._slots)

    @property
    def waiting_bytes(self) -> int:
        """What waits in main memory."""
        return sum(len(block.flat) for block in self._blocks)

    def stop(self) -> None:
        """Blocks have their weights in main memory again, and nothing travels. To be called before they are moved."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._carrier.wait_for_all()  # a copy may be under way into memory that is given back now
        for block in self._blocks:
            flat = block.here()
            for place in block.places:
                place.tensor.data = place.view(flat)
        self._slots, self._blocks = (), []

    def _begin(self, module: torch.nn.Module, args: Any) -> None:
        if torch.is_grad_enabled() and not self._model.gradient_checkpointing:
            raise RuntimeError("Blocks that wait in main memory can only learn with gradient checkpointing.")
        self._holds = [None] * len(self._slots)
        self._last = -1
        for index in range(len(self._slots)):
            self._send(index)

    def _arrive(self, index: int, module: torch.nn.Module, args: Any) -> None:
        """Block ``index`` is about to compute: forwards, or again on the way back."""
        self._send(index)  # it is there already, or on its way, unless something went another way
        self._carrier.wait(index % SLOTS)
        following = index + 1 if index > self._last else index - 1
        if 0 <= following < len(self._blocks):
            self._send(following)
        self._last = index

    def _send(self, index: int) -> None:
        slot = index % SLOTS
        if self._holds[slot] != index:
            source = self._blocks[index].here()
            self._carrier.send(slot, self._slots[slot][: len(source)], source)
            self._holds[slot] = index


def stream(
    model: torch.nn.Module,
    blocks: Sequence[torch.nn.Module],
    device: str,
    new_carrier: Callable[[str], Carrier] | None = None,
    lock: bool = True,
    told: Callable[[int, int], None] | None = None,
) -> Streamed:
    """Have ``blocks`` of a model, in the order of its pass, wait in main memory and travel to ``device`` from now on.

    Of a transformer those of ``chosen_blocks``; of T5 ``encoder.block``, all of them, where a card does not hold it.
    The model must be in main memory; afterwards everything else of it may be moved, and the blocks' frozen weights
    are on the device already. LoRAs are put on after. ``new_carrier`` stands in for CUDA's copies. ``lock``: their
    memory is to be page-locked, which pays for itself from the second pass on. ``told`` is called with (blocks done,
    blocks in all) while they are packed; when it raises, the model is as it was and nothing travels.
    """
    if new_carrier is None:
        new_carrier = CardCarrier if device.startswith("cuda") else lambda device: _Plain()
    return Streamed(model, blocks, new_carrier(device), lock, told)
