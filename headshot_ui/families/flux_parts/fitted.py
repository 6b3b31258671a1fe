"""A transformer of FLUX.1 in the way that was found for it: how it is read, and what goes with it while it is there.

``fitting`` says which way; here it is carried out. What a transformer without its modulation layers needs, and that
some of its blocks travel, is kept with the module itself, so that both go when it is dropped from memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from headshot_ui.families.fits import COMPUTED_EACH_JOB
from headshot_ui.families.flux_parts import eight_bit, modulation, reading, streaming
from headshot_ui.families.flux_parts.fitting import Fit
from headshot_ui.families.flux_parts.modulation import Condition, Dropped, Rows
from headshot_ui.families.protocol import Told
from headshot_ui.families.shared_parts.load import quiet
from headshot_ui.swapping import forget_copies

#: What is told while it goes on.
READING = "Reading FLUX.1"
ROUNDING = "Reading FLUX.1 and rounding it to 8 bit"
COMPUTING = COMPUTED_EACH_JOB
PACKING = "Making FLUX.1 fit"
PACKING_TEXT = "Making FLUX.1's text encoders fit"
MOVING = "Bringing FLUX.1 to the graphics card"
MOVING_TEXT = "Bringing FLUX.1's text encoders to the graphics card"

#: Main memory for tables of modulation that were used: one of 28 steps for one prompt is 59 MB.
KEPT_BYTES = 2**28

_BEFOREHAND = "_headshot_ui_beforehand"
_STREAMED = "_headshot_ui_streamed"


def is_ordinary(fit: Fit | None) -> bool:
    """Whether the transformer is read as any other model: whole, and in its own number format."""
    return fit is None or not (fit.eight_bit or fit.dropped)


def read_fitted(
    place: Path,
    config: Mapping[str, Any],
    fit: Fit | None,
    work_on: str,
    dtype: torch.dtype,
    stay_on: str = "cpu",
    told: Told | None = None,
) -> Any:
    """The transformer in ``place``, frozen and on ``stay_on``, no more than a layer at a time in another format.

    ``place`` is its folder or a single file, ``config`` says how it is built; ``fit`` None: it is read whole, in
    ``dtype``. Rounding to 8 bit, and back from other formats, is done on ``work_on``. ``told`` hears of every layer;
    when it raises, all memory is given back. Raises ModelError for a file that is missing or damaged.
    """
    from diffusers import FluxTransformer2DModel

    with quiet(), reading.opened(place, dtype, work_on) as read:
        with torch.device("meta"):
            transformer: Any = FluxTransformer2DModel.from_config(dict(config))
        transformer = transformer.to(dtype).requires_grad_(False).eval()
        try:
            if fit is not None and fit.dropped:
                dropped = modulation.drop(transformer, let_go=True)
                transformer.__dict__[_BEFOREHAND] = Beforehand(dropped, place, dtype)
            if fit is not None and fit.eight_bit:
                eight_bit.shrink(
                    transformer, dtype, work_on=work_on, stay_on=stay_on, read=read, told=counted(told, ROUNDING)
                )
            reading.fill(transformer, read, dtype, stay_on, counted(told, READING))
        except BaseException:
            transformer.to("meta")  # it refers to itself, so its weights would stay until Python's collector comes by
            raise
    return transformer


def counted(told: Told | None, stage: str) -> Callable[[int, int], None] | None:
    """``told`` for one stage."""
    return None if told is None else partial(told, stage)


# --- modulation computed beforehand ---------------------------------------------------------------
@dataclass(frozen=True)
class Beforehand:
    """Of a transformer without modulation layers: makes the rows they stand for, reading the layers once more.

    The last tables are kept, for the next pictures of the same prompts, in the next job too, and the next sample of a
    training: making one reads the layers' 6.5 GB again.
    """

    dropped: Dropped
    place: Path  # of the weights: a folder, or a single file
    dtype: torch.dtype  # in which the transformer computes
    last: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict, compare=False)

    def use(self, row: torch.Tensor) -> None:
        """See ``Dropped.use``."""
        self.dropped.use(row)

    def table(self, conditions: Sequence[Condition], told: Told | None = None) -> torch.Tensor:
        """See ``modulation.table``; computed where the transformer is. Raises ModelError, and what ``told`` raises."""
        transformer: Any = self.dropped.transformer
        key = transformer.device, *(condition.key() for condition in conditions)
        made = self.last.pop(key, None)
        if made is None:
            with self.dropped.in_place(), self._opened() as read:
                made = modulation.table(
                    transformer, conditions, transformer.device, self.dtype, read, counted(told, COMPUTING)
                )
        while self.last and made.nbytes + sum(one.nbytes for one in self.last.values()) > KEPT_BYTES:
            del self.last[next(iter(self.last))]  # the longest unused
        self.last[key] = made
        return made

    def _opened(self) -> AbstractContextManager[reading.Read]:
        transformer: Any = self.dropped.transformer
        return reading.opened(self.place, self.dtype, transformer.device)

    def forget(self) -> None:
        """The layers that embed timestep and prompt have changed."""
        self.last.clear()

    def rows(self, conditions: Iterable[Condition], told: Told | None = None) -> Rows:
        """See ``modulation.rows_for``; computed where the transformer is. Raises ModelError, and what ``told`` does."""
        transformer: Any = self.dropped.transformer
        with self.dropped.in_place(), self._opened() as read:
            return modulation.rows_for(
                transformer, conditions, transformer.device, self.dtype, read, counted(told, COMPUTING)
            )


def beforehand_of(transformer: Any) -> Beforehand | None:
    """None for a transformer with its modulation layers."""
    found: Beforehand | None = transformer.__dict__.get(_BEFOREHAND)
    return found


# --- blocks that travel ---------------------------------------------------------------------------
def set_out(
    model: Any,
    blocks: Sequence[torch.nn.Module],
    device: str,
    lock: bool = True,
    told: Callable[[int, int], None] | None = None,
) -> None:
    """Have these blocks of a model in main memory travel from now on (see ``streaming.stream``), if none do yet."""
    if _STREAMED not in model.__dict__:
        forget_copies(model)  # of a time when they were moved whole
        model.__dict__[_STREAMED] = streaming.stream(model, blocks, device, lock=lock, told=told)


def come_back(model: Any) -> None:
    """All of its blocks are in main memory again, and nothing travels. To be called before the model is moved."""
    streamed = model.__dict__.pop(_STREAMED, None)
    if streamed is not None:
        streamed.stop()


def is_travelling(model: Any) -> bool:
    return _STREAMED in model.__dict__
