"""How a FLUX.1 transformer is made to fit: decided from numbers alone, before anything is loaded.

From the fastest way to the smallest: 16 bit; 16 bit without the modulation layers; 8 bit; 8 bit with some blocks in
main memory. Weights are counted from the model's config; what computing takes beside them is estimated from what
torch's allocator reserved of an H200 (torch 2.11, batch 1, rank 16 on attention and feed-forward; memory in pieces and
the recording of a step included). ``tests/families/flux/test_flux_fitting.py`` holds the estimates against each of
these measurements: they lie above every one, by less than 8 %.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from headshot_ui.errors import MemoryBudgetError
from headshot_ui.families.fits import ROOM_FOR_DOUBT
from headshot_ui.families.flux_parts.sizes import Shape, block_bytes, row_numbers, weight_bytes
from headshot_ui.memory import CONTEXT_BYTES
from headshot_ui.specs import FULL, NONE, PARTIAL
from headshot_ui.wording import readable_bytes

#: Main memory of the process with everything imported and CUDA's libraries in it.
PROCESS_BYTES = 2 * 2**30
#: Kept free on the card: what multiplying needs on each stream, and what lies in pieces whatever is computed.
SPARE_BYTES = 2**28
#: Bytes of a learned number: itself, its gradient and Adam's two moments in float32, a copy in 16 bit, and its gradient
#: once more, because a recorded step has its own.
LEARNED_BYTES = 22
#: A pixel's side of one token of the picture: 8 by the VAE, 2 by packing.
TOKEN_PX = 16
#: Numbers per token and width of the model: kept of a block until its gradients, held while a block computes with
#: gradients, and without. A block has about half of the latter two at once; the allocator keeps them in pieces of many
#: sizes, and takes about twice as much.
_KEPT, _KEPT_RECOMPUTED, _LEARNING, _DRAWING = 17, 1, 54, 40
#: Share of the blocks that compute again at each level of gradient checkpointing.
RECOMPUTED = {NONE: 0.0, PARTIAL: 0.5, FULL: 1.0}
#: What T5 computes 512 tokens with, beside its weights.
READING_BYTES = 2**28
#: Fewer travelling blocks save nothing: two slots take the room of two.
_FEWEST_STREAMED = 4


# --- what computing takes -------------------------------------------------------------------------
@dataclass(frozen=True)
class Work:
    """What is to be done with the transformer."""

    learning: bool
    width: int  # pixels
    height: int
    steps: int  # of the training, or of a picture times prompts: rows of the modulation table
    batch: int = 1
    lora: int = 0  # numbers of the LoRA that learns, or that is on
    recomputed: float = 1.0  # share of the blocks that compute again, of a training (see ``recomputing``)
    text_tokens: int = 512
    may_drop: bool = True  # no LoRA learns on the modulation layers

    @property
    def tokens(self) -> int:
        return self.batch * (self.text_tokens + (self.width // TOKEN_PX) * (self.height // TOKEN_PX))


def working_bytes(shape: Shape, work: Work, eight_bit: bool) -> int:
    """An estimate of what computing takes on the card beside the transformer's weights, the LoRA included."""
    computing = activation_bytes(shape, work.tokens, work.recomputed if work.learning else None)
    largest = 2 * 5 * shape.width * shape.width if eight_bit else 0  # a weight as it is multiplied, twice with the next
    if not work.learning:
        return computing + 2 * largest + 4 * work.lora
    return computing + 2 * largest + LEARNED_BYTES * work.lora


def activation_bytes(shape: Shape, tokens: int, recomputed: float | None, item_bytes: int = 2) -> int:
    """Of it, what goes with ``tokens`` of pictures and texts together, each number of ``item_bytes``.

    ``recomputed`` is the share of the blocks that compute again while learning; None while drawing.
    """
    activations = float(_DRAWING)
    if recomputed is not None:
        activations = _LEARNING + shape.blocks * (_KEPT + recomputed * (_KEPT_RECOMPUTED - _KEPT))
    return int(activations * item_bytes * shape.width * tokens)


def tokens_of(pixels: int, batch: int, cell_px: int, text_tokens: int) -> int:
    """Tokens of ``batch`` pictures of so many pixels with their texts; a token is a square of 2 cells a side."""
    return batch * (pixels // (2 * cell_px) ** 2 + text_tokens)


# --- the plan -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Fit:
    """A way in which the transformer fits."""

    eight_bit: bool
    dropped: bool  # without the modulation layers
    streamed: int  # blocks that wait in main memory
    blocks: int  # in all
    vram_bytes: int  # of the process at most, CUDA's context included
    ram_bytes: int  # of the process at least
    keeps_copy: bool  # main memory also holds the weights while they are on the card, so that they come back at once

    @property
    def title(self) -> str:
        """For people: "16 bit without modulation layers"."""
        bits = "8 bit" if self.eight_bit else "16 bit"
        less = " without modulation layers" if self.dropped and not self.eight_bit else ""
        return f"{bits}{less}" if not self.streamed else f"{bits}, {self.streamed} of {self.blocks} blocks streamed"

    def sentence(self, together: bool = False) -> str:
        """How it fits, shown before a job starts; ``together``: with all other parts beside it."""
        if not self.eight_bit:
            how = "FLUX.1 fits in 16 bit"
            how += ", because what depends on the timestep only is computed beforehand" if self.dropped else ""
        elif not self.streamed:
            how = "FLUX.1 fits in 8 bit"
        else:
            how = (
                f"FLUX.1 fits in 8 bit, with {self.streamed} of its {self.blocks} blocks in main memory, which travel "
                "to the card one ahead"
            )
        how += ", and its text encoders stay on the card beside it" if together else ""
        need = (
            f"{readable_bytes(self.vram_bytes)} of graphics memory and {readable_bytes(self.ram_bytes)} of main memory"
        )
        return f"{how} (about {need})."


def plan(
    shape: Shape, work: Work, vram_bytes: int, ram_bytes: int, text_bytes: int = 0, eight_bit: bool | None = None
) -> Fit:
    """The fastest way that fits into ``vram_bytes`` (this process in all) and ``ram_bytes`` (what it may still take).

    ``text_bytes``: of the text encoders in main memory, which have their turn before. ``eight_bit``: whether it must be
    in 8 bit or must not, None where both may be. Raises MemoryBudgetError with one sentence where no way fits.
    """
    ways = [way for way in _ways(shape, work, text_bytes, ram_bytes) if eight_bit in (None, way.eight_bit)]
    for way in ways:
        if way.vram_bytes <= vram_bytes and way.ram_bytes <= ram_bytes:
            return way
    doing = f"to {'learn' if work.learning else 'draw'} at {work.width} x {work.height} pixels"
    on_card = [way for way in ways if way.vram_bytes <= vram_bytes]
    if on_card:
        least = min(way.ram_bytes for way in on_card)
        raise MemoryBudgetError(
            f"FLUX.1 needs about {readable_bytes(least)} of free main memory {doing}, and {readable_bytes(ram_bytes)} "
            "may be used: close other programs, raise --ram-limit, or choose a smaller base model."
        )
    least = min(way.vram_bytes for way in ways)
    help_ = "choose smaller pictures or a smaller base model"
    if work.learning and work.recomputed < 1:
        help_ = "learn with full gradient checkpointing"
    raise MemoryBudgetError(
        f"FLUX.1 needs about {readable_bytes(least)} of graphics memory {doing}, and {readable_bytes(vram_bytes)} may "
        f"be used: {help_}, or allow more with --vram-limit."
    )


@dataclass(frozen=True)
class Together:
    """All parts of the base on the card, whichever of them computes."""

    weights: int  # bytes
    vram_bytes: int  # of the process at most, CUDA's context included


def together(
    shape: Shape, work: Work, fit: Fit, other_bytes: int, decoding_bytes: int, vram_bytes: int
) -> Together | None:
    """Text encoders and VAE, of ``other_bytes``, stay on the card beside a transformer that draws; None: they do not.

    Only where the card holds the whole transformer in 16 bit and everything else clearly: it saves less than a second.
    ``decoding_bytes``: what a picture is decoded with. A training reads words at its beginning only.
    """
    if work.learning or fit.eight_bit or fit.dropped:
        return None
    weights = weight_bytes(shape, False, False) + other_bytes
    computing = max(working_bytes(shape, work, False), READING_BYTES, decoding_bytes)
    most = CONTEXT_BYTES + SPARE_BYTES + weights + computing
    return Together(weights, most) if ROOM_FOR_DOUBT * most <= vram_bytes else None


def streams_text(text_bytes: int, vram_bytes: int) -> bool:
    """Whether a card that holds ``vram_bytes`` does not hold the text encoders, so that T5's blocks must travel."""
    return CONTEXT_BYTES + SPARE_BYTES + text_bytes + READING_BYTES > vram_bytes


def _ways(shape: Shape, work: Work, text_bytes: int, ram_bytes: int) -> Iterator[Fit]:
    """All ways, the fastest first."""
    counts = [0]
    if work.recomputed == 1 or not work.learning:
        counts += [*range(_FEWEST_STREAMED, shape.blocks, 2), shape.blocks]
    kinds = [(False, False, 0)]
    if work.may_drop:
        kinds.append((False, True, 0))
    kinds += [(True, work.may_drop, count) for count in counts]
    for eight_bit, dropped, streamed in kinds:
        weights = weight_bytes(shape, eight_bit, dropped)
        away, slots = _streamed_bytes(shape, eight_bit, dropped, streamed)
        table = 2 * row_numbers(shape) * work.steps * work.batch if dropped else 0
        vram = CONTEXT_BYTES + SPARE_BYTES + weights - away + slots + working_bytes(shape, work, eight_bit)
        passing = 2 * max(block_bytes(shape, False, False))  # a block on its way from the file
        copy = PROCESS_BYTES + max(text_bytes, weights + table + passing)
        # What learns leaves the card while the VAE makes a sample, and cannot be read again.
        ram = copy if work.learning else PROCESS_BYTES + max(text_bytes, away + table + passing)
        yield Fit(eight_bit, dropped, streamed, shape.blocks, vram, ram, keeps_copy=copy <= ram_bytes)


def least_bytes_of(shape: Shape) -> tuple[int, int]:
    """What the transformer takes at least on a card, where all blocks travel, and in main memory while it is read."""
    weights = weight_bytes(shape, True, True)
    away, slots = _streamed_bytes(shape, True, True, shape.blocks)
    return weights - away + slots, weights + 2 * max(block_bytes(shape, False, False))


def _streamed_bytes(shape: Shape, eight_bit: bool, dropped: bool, count: int) -> tuple[int, int]:
    """What ``count`` blocks take in main memory, and their slots on the card; single blocks go first."""
    double, single = block_bytes(shape, eight_bit, dropped)
    doubles = max(0, count - shape.single)
    largest = 0 if not count else double if doubles else single
    return (count - doubles) * single + doubles * double, 2 * largest
