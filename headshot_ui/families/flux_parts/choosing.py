"""Which way of fitting a FLUX.1 base takes on this machine, from its configs and headers alone; imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from headshot_ui.errors import MemoryBudgetError
from headshot_ui.families import weight_places
from headshot_ui.families.fits import DenoiserWork, Fitting, LeastBytes
from headshot_ui.families.flux_parts.configs import read_facts, transformer_config
from headshot_ui.families.flux_parts.files import TRANSFORMER, VAE
from headshot_ui.families.flux_parts.fitting import (
    READING_BYTES,
    RECOMPUTED,
    SPARE_BYTES,
    Fit,
    Together,
    Work,
    least_bytes_of,
    plan,
    streams_text,
    together,
)
from headshot_ui.families.flux_parts.sizes import Shape, lora_parameters, shape_of
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.memory import (
    CONTEXT_BYTES,
    DECODING,
    files_bytes,
    free_ram_bytes,
    own_ram_bytes,
    ram_budget_bytes,
    vram_budget_bytes,
)

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

#: See ``protocol.Fitting.precision``.
WHOLE, EIGHT_BIT = "", "8 bit"
_TEXT = "text_encoder"
_T5_BLOCKS = 24


@dataclass(frozen=True)
class Budget:
    """Bytes that this process may take in all."""

    vram: int
    ram: int

    @classmethod
    def of(cls, settings: Settings) -> Budget:
        """Those of now. Raises DeviceError where the card does not answer."""
        return cls(
            vram_budget_bytes(settings), ram_budget_bytes(free_ram_bytes() + own_ram_bytes(), settings)
        )  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """A way of fitting, and how T5 is read beside it."""

    fit: Fit
    streams_text: bool = False
    text_bytes: int = 0  # of the text encoders
    together: Together | None = None  # all parts stay on the card; None: they take turns

    @property
    def fitting(self) -> Fitting:
        """As it is shown and recorded."""
        if self.together is not None:
            fit = replace(self.fit, vram_bytes=self.together.vram_bytes)
            return Fitting(
                title=f"{fit.title}, all parts on the card",
                sentence=fit.sentence(together=True),
                precision=WHOLE,
                vram_bytes=fit.vram_bytes,
                text_vram_bytes=CONTEXT_BYTES + SPARE_BYTES + self.together.weights + READING_BYTES,
                ram_bytes=fit.ram_bytes,
                staying_bytes=self.together.weights,
            )
        text = self.text_bytes if not self.streams_text else 3 * self.text_bytes // _T5_BLOCKS
        return Fitting(
            title=self.fit.title,
            sentence=self.fit.sentence(),
            precision=EIGHT_BIT if self.fit.eight_bit else WHOLE,
            vram_bytes=self.fit.vram_bytes,
            text_vram_bytes=CONTEXT_BYTES + SPARE_BYTES + text + READING_BYTES,
            ram_bytes=self.fit.ram_bytes,
            every_block=self.fit.streamed > 0,
        )


@dataclass(frozen=True)
class OfLoras:
    """What the way depends on of LoRAs that are on."""

    numbers: int = 0
    on_modulation: bool = False  # some change these layers, so they must be there


#: As ``choose``; tests put another one in its place.
Choose = Callable[[BaseInfo, DenoiserWork, "Settings", str | None, OfLoras, int | None], Chosen | None]


def choose(
    info: BaseInfo,
    work: DenoiserWork,
    settings: Settings,
    precision: str | None = None,
    loras: OfLoras = OfLoras(),
    under: int | None = None,
) -> Chosen | None:
    """The fastest way that fits the card; None where there is none, and everything is in main memory, or where somebody
    wants it computed in float32, for which these ways are not made.

    ``precision`` is that of a run that goes on, None where there is a choice; ``under`` bytes of the card at most are
    planned with, however many there are. Raises MemoryBudgetError with one sentence, ModelError for a damaged config
    and DeviceError for a card that does not answer.
    """
    if settings.device != "cuda" or settings.dtype == "float32":
        if precision == EIGHT_BIT:
            raise MemoryBudgetError(
                "This training was begun with FLUX.1 in 8 bit, which is for graphics cards that compute in bfloat16: "
                "go on with it on one, or start a new run."
            )
        return None
    budget = Budget.of(settings)
    if under is not None:
        budget = replace(budget, vram=min(budget.vram, under))
    return choose_for(info, work, budget, precision, loras)


def choose_for(
    info: BaseInfo, work: DenoiserWork, budget: Budget, precision: str | None = None, loras: OfLoras = OfLoras()
) -> Chosen:
    """As ``choose``, for these budgets."""
    shape = shape_of(transformer_config(info))
    text = _text_bytes(info)
    wanted = _work(info, shape, work, loras)
    eight_bit = None if precision is None else precision == EIGHT_BIT
    if wanted.learning and wanted.recomputed < 1 and eight_bit is None:
        # Checkpointing costs time and 8 bit costs exactness, so no checkpointing is never a reason for 8 bit.
        eight_bit = plan(shape, replace(wanted, recomputed=1.0), budget.vram, budget.ram, text).eight_bit
    try:
        fit = plan(shape, wanted, budget.vram, budget.ram, text, eight_bit)
    except MemoryBudgetError as error:
        if precision is None:
            raise
        begun = "8 bit" if eight_bit else "16 bit"
        raise MemoryBudgetError(f"This training was begun in {begun} and goes on only so. {error}") from error
    beside = together(shape, wanted, fit, text + _vae_bytes(info), DECODING * work.width * work.height, budget.vram)
    return Chosen(fit, streams_text(text, budget.vram), text, beside)


def least_bytes(info: BaseInfo) -> dict[str, LeastBytes]:
    """What the parts take at least, by the names of their folders. Raises ModelError."""
    shape = shape_of(transformer_config(info))
    found = {TRANSFORMER: LeastBytes(*least_bytes_of(shape))}
    for name, size in files_bytes(weight_places(info), "bfloat16").items():
        if name.startswith(_TEXT):
            found[name] = LeastBytes(3 * size // _T5_BLOCKS, size)
    return found


def _work(info: BaseInfo, shape: Shape, work: DenoiserWork, loras: OfLoras) -> Work:
    return Work(
        learning=work.learning is not None,
        width=work.width,
        height=work.height,
        steps=work.steps,
        batch=work.batch,
        lora=lora_parameters(shape, work.rank) if work.rank else loras.numbers,
        recomputed=1.0 if work.learning is None else RECOMPUTED[work.learning],
        text_tokens=read_facts(info).text_tokens,
        may_drop=not loras.on_modulation,
    )


def _text_bytes(info: BaseInfo) -> int:
    sizes = files_bytes(weight_places(info), "bfloat16")
    return sum(size for name, size in sizes.items() if name.startswith(_TEXT))


def _vae_bytes(info: BaseInfo) -> int:
    """In float32, in which it reads photos."""
    return files_bytes(weight_places(info), "float32").get(VAE, 0)
