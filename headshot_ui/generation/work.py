"""One request while it runs, and how its stages tell how far they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.families.fits import Fitting
from headshot_ui.families.protocol import DenoiseStep, LoadedBase, PromptEmbeds
from headshot_ui.generation.ahead import one_ahead, read_aside
from headshot_ui.generation.loras import ChosenLora
from headshot_ui.generation.plan import PlannedPicture
from headshot_ui.generation.records import Picture
from headshot_ui.generation.refiner_choice import RefinerMark, Refining
from headshot_ui.generation.vae_mark import VaeMark
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import PNG_LEAST_EFFORT, Store, save_png

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from headshot_ui.jobs import Reporter

_log = logging.getLogger(__name__)

PREVIEW_EVERY = 3  # steps
PREVIEW_TILE_PX = 256
PREVIEW_TILES = 4
PREVIEW = "preview.png"  # of the batch being drawn; beside the folder with the pictures


@dataclass
class Drawn:
    """One picture as latents (1, C, h, w) float32 on the CPU."""

    planned: PlannedPicture
    latents: torch.Tensor
    noisy: bool = False  # the base stopped half-way for a refiner that has not been there yet
    clean: torch.Tensor | None = None  # while noisy: what the base expected behind the noise, should nobody come
    unfinished: bool = False  # nobody came: the latents are what the base expected
    refined: bool = False
    unrefined: torch.Tensor | None = None  # what the refiner drew over; None where it took over half-way


@dataclass
class Work:
    """One request while it runs."""

    spec: GenerateSpec  # resolved
    planned: tuple[PlannedPicture, ...]
    lora: ChosenLora | None
    refining: Refining | None
    mark: RefinerMark | None  # of the refiner, for the pictures
    vae: VaeMark | None  # likewise
    store: Store
    loaded: LoadedBase
    report: Reporter
    fitting: Fitting | None = None  # how the base was made to fit the card
    compiled: bool = False  # its blocks are: they round otherwise than ordinary ones
    drawn: list[Drawn] = field(default_factory=list)
    saved: list[Picture] = field(default_factory=list)

    @property
    def precision(self) -> str:
        """Of the denoiser where it was made to fit the card and its numbers are others, e.g. "8 bit"."""
        return "" if self.fitting is None else self.fitting.precision

    @property
    def steps(self) -> int:
        """Sampling steps of the whole schedule."""
        assert self.spec.steps is not None  # resolved
        return self.spec.steps

    @property
    def guidance_scale(self) -> float:
        assert self.spec.guidance_scale is not None  # resolved
        return self.spec.guidance_scale

    @property
    def guided_share(self) -> float:
        """Of the steps of the whole schedule, those that are guided."""
        assert self.spec.guided_share is not None  # resolved
        return self.spec.guided_share


class DrawingStage:
    """Takes one batch after the other through a denoiser.

    Steps are counted per picture, so that batches of unequal size progress evenly.
    """

    def __init__(self, work: Work, name: str, pictures: int, steps: int) -> None:
        self._work, self._name, self._steps = work, name, steps
        self._total = pictures * steps
        self._finished = 0  # pictures
        work.report(name, 0, self._total)

    def run(
        self, steps: Iterator[DenoiseStep], size: int, after_first: Callable[[], None] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(B, C, h, w) after the last step and, if noise is left, those expected behind it; both on the CPU.

        ``after_first`` is called after the first step. Raises Cancelled; call ``keep`` once they are safe.
        """
        done = None
        for done in one_ahead(steps, self._work.store.settings.device):
            if done.step == 1 and after_first is not None:
                after_first()
            shown = done.step % PREVIEW_EVERY == 0 or done.step == done.total
            preview = _save_preview(self._work, done.latents) if shown else None
            if done.step < done.total:  # the last step is reported once its pictures are kept: a cancel loses none
                self._report(self._finished * self._steps + done.step * size, preview)
        assert done is not None
        return done.latents.cpu(), None if done.clean is None else done.clean.cpu()

    def keep(self, size: int) -> None:
        """So many more pictures are safe. Raises Cancelled."""
        self._finished += size
        self._report(self._finished * self._steps, None)

    def tell(self, sentence: str) -> None:
        """Something a person should still read at the end."""
        _log.warning("%s", sentence)
        self._work.report(self._name, self._finished * self._steps, self._total, note=sentence)

    def _report(self, step: int, preview: Path | None) -> None:
        self._work.report(self._name, step, self._total, preview=preview)


def stacked(embeds: Mapping[str, PromptEmbeds], texts: Iterable[str]) -> PromptEmbeds:
    """The embeddings of these texts as one batch."""
    import torch

    rows = [embeds[text] for text in texts]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _save_preview(work: Work, latents: torch.Tensor) -> Path:
    """A small picture of what is being drawn."""
    path = work.store.headshots_dir(work.spec.person) / PREVIEW
    save_png(path, tiled(work.loaded.preview(read_aside(latents[:PREVIEW_TILES]))), {}, PNG_LEAST_EFFORT)
    return path


def tiled(images: Sequence[Image.Image]) -> Image.Image:
    """RGB pictures of one size side by side, two in a row, each at most ``PREVIEW_TILE_PX`` pixels."""
    from PIL import Image

    scale = PREVIEW_TILE_PX / max(images[0].size)
    width, height = (max(1, round(side * scale)) for side in images[0].size)
    columns = 1 if len(images) == 1 else 2
    sheet = Image.new("RGB", (columns * width, -(-len(images) // columns) * height))
    for index, image in enumerate(images):
        place = (index % columns * width, index // columns * height)
        sheet.paste(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), place)
    return sheet
