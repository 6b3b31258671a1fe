"""How a base model is made to fit a card, as families and the rest of the program tell each other."""

from __future__ import annotations

from dataclasses import dataclass

#: A stage that ``LoadedBase.report_to`` tells of in every job, and so no part of getting the base ready.
COMPUTED_EACH_JOB = "Computing what depends on the timestep only"
#: What was only estimated must leave this much over before a way is chosen because it is quicker.
ROOM_FOR_DOUBT = 1.1


@dataclass(frozen=True)
class DenoiserWork:
    """What a denoiser is to do, as far as the memory it takes depends on it."""

    learning: str | None  # None while drawing; else the level of gradient checkpointing, of ``specs.CHECKPOINTING``
    width: int  # pixels, of the largest picture
    height: int
    batch: int  # pictures at once
    steps: int  # of a picture, or of the training as far as the base is told of them (``prepare_for``)
    rank: int = 0  # of the LoRA that learns, or that is likely to be on


@dataclass(frozen=True)
class Fitting:
    """A way in which a base model fits into the memory there is."""

    title: str  # "8 bit, 12 of 57 blocks streamed"
    sentence: str  # how it fits, shown before a job starts
    precision: str  # what of it changes numbers, and must stay for a whole run; "": nothing
    vram_bytes: int  # of the process at most while the denoiser computes
    text_vram_bytes: int  # likewise while prompts are read
    ram_bytes: int  # of the process at least
    every_block: bool = False  # all blocks compute in every step, whatever ``DenoiseRequest.reuse_below`` allows
    staying_bytes: int = 0  # of all parts, where they stay on the card together whichever computes; 0: they take turns


@dataclass(frozen=True)
class LeastBytes:
    """What a part of a model takes at least, where it is made to fit a card."""

    card: int
    memory: int  # main memory
