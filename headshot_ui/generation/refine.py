"""The refiner's stage: all pictures of a request at once, after the base has drawn them and left the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from headshot_ui.capture import graphs
from headshot_ui.errors import ModelError
from headshot_ui.families.protocol import BaseInfo, LoadedRefiner, PromptEmbeds, RefineRequest, RefinerInfo
from headshot_ui.generation.plan import PlannedPicture, batches
from headshot_ui.generation.refiner_choice import ENSEMBLE, IMG2IMG, OFF, Refining, choose_refining, wanted_way
from headshot_ui.generation.smaller import draw_all
from headshot_ui.generation.work import DrawingStage, Drawn, Work, stacked
from headshot_ui.memory import card_bytes

if TYPE_CHECKING:
    import torch

    from headshot_ui.likeness import Likeness
    from headshot_ui.settings import Settings
    from headshot_ui.specs import GenerateSpec

REFINING = "Refining"
#: A refiner knows nobody's face. Where its picture is less alike than the base's by more than this (percent points
#: of likeness; smaller differences also come from noise), the base's picture is kept.
LIKENESS_MAY_FALL_BY = 5.0
#: What the encoders read as the empty text, where a refiner's unconditional embedding is that and not zeros.
EMPTY_BUT_READ = " "

OpenRefiner = Callable[[], AbstractContextManager[LoadedRefiner]]


@dataclass(frozen=True)
class RefinerDoor:
    """An ``OpenRefiner`` that can be told a moment before that it will be called."""

    open: OpenRefiner
    expect: Callable[[], None]

    def __call__(self) -> AbstractContextManager[LoadedRefiner]:
        return self.open()


def expect(open_refiner: OpenRefiner | None) -> None:
    """The refiner comes next."""
    if isinstance(open_refiner, RefinerDoor):
        open_refiner.expect()


_log = logging.getLogger(__name__)


def chosen_refiner(spec: GenerateSpec, info: BaseInfo, settings: Settings) -> RefinerInfo | None:
    """The refiner that ``spec`` will use with the base ``info``; None when it is not refined.

    Raises ModelError or SpecError when the request asks for refining that cannot be done.
    """
    refining = choose_refining(spec, info, settings)
    return None if refining is None else refining.info


def refining_here(spec: GenerateSpec, info: BaseInfo, settings: Settings, can_open: bool) -> Refining | None:
    """As ``choose_refining``, for a caller that may have no way of opening refiners: ModelError, if one is needed."""
    if can_open:
        return choose_refining(spec, info, settings)
    way, asked = wanted_way(spec, info)
    if asked and way != OFF:
        raise ModelError(f"“{way}” needs a refiner, and none can be opened here: choose “{OFF}” for refine.")
    return None


def refine_all(work: Work, embeds: Mapping[str, PromptEmbeds], open_refiner: OpenRefiner) -> None:
    """Take every picture of ``work.drawn`` through the refiner; those that are through say so.

    The base leaves the device before the refiner is opened. Raises Cancelled and what the refiner raises; pictures
    not reached by then stay as the base left them.
    """
    refining = work.refining
    assert refining is not None
    settings = work.store.settings
    stage = DrawingStage(work, REFINING, len(work.drawn), refining.refiner_steps)
    work.loaded.keep(frozenset())
    by_index = {item.planned.index: item for item in work.drawn}
    with open_refiner() as refiner:
        try:
            with graphs(settings.device) as recorded:

                def draw(batch: Sequence[PlannedPicture], last: bool) -> None:
                    items = [by_index[picture.index] for picture in batch]
                    request = replace(_request(work, refining, embeds, items), recorder=recorded.record)
                    latents, _ = stage.run(refiner.refine(request), len(items))
                    for row, item in enumerate(items):
                        _put(item, latents[row : row + 1])
                    stage.keep(len(items))

                groups = batches(work.planned, settings.device, card_bytes(settings))
                draw_all(groups, draw, stage.tell, settings.device, let_go=recorded.drop)
        finally:  # the VAE needs the room; after a GPU error this may fail too, and the first error is the one to tell
            with suppress(RuntimeError):
                refiner.keep(frozenset())


def _request(
    work: Work, refining: Refining, embeds: Mapping[str, PromptEmbeds], items: Sequence[Drawn]
) -> RefineRequest:
    import torch

    pictures = [item.planned for item in items]
    return RefineRequest(
        latents=torch.cat([item.latents for item in items]),
        embeds=stacked(embeds, (picture.prompt for picture in pictures)),
        negative_embeds=stacked(embeds, (refiner_negative(picture, refining) for picture in pictures)),
        seeds=[picture.seed for picture in pictures],
        steps=work.steps,
        guidance_scale=work.guidance_scale,
        height=pictures[0].height,
        width=pictures[0].width,
        start_at=refining.switch if refining.way == ENSEMBLE else None,
        strength=refining.strength if refining.way == IMG2IMG else None,
        guided_share=work.guided_share,
    )


def refiner_negative(picture: PlannedPicture, refining: Refining) -> str:
    """The text whose embedding the refiner is steered away from."""
    return picture.negative_prompt or ("" if refining.facts.zeros_for_empty_prompt else EMPTY_BUT_READ)


def _put(item: Drawn, latents: torch.Tensor) -> None:
    item.unrefined = None if item.noisy else item.latents
    item.latents, item.clean, item.noisy, item.refined = latents, None, False, True


def finishable(work: Work) -> list[Drawn]:
    """The pictures that can be finished. Those that are still noisy after a stop become what the base expected of them.

    Where a family cannot tell, they are left out, and the log counts them.
    """
    for item in work.drawn:
        if item.noisy and item.clean is not None:
            item.latents, item.clean, item.noisy, item.unfinished = item.clean, None, False, True
    clean = [item for item in work.drawn if not item.noisy]
    if len(clean) < len(work.drawn):
        _log.warning(
            "%d of %d pictures were still noisy when the work stopped and are left out",
            len(work.drawn) - len(clean), len(work.drawn),
        )  # fmt: skip
    return clean


def why_not_refined(refined: Likeness, unrefined: Likeness) -> str:
    """One sentence when the unrefined picture is to be kept; "" when refining did no harm."""
    if unrefined.reason:
        return ""
    if refined.reason:
        return f"After refining, {refined.reason}, so the unrefined picture was kept."
    if refined.percent >= unrefined.percent - LIKENESS_MAY_FALL_BY:
        return ""
    return (
        f"Refining lowered the likeness from {unrefined.percent:.0f} to {refined.percent:.0f} percent, "
        "so the unrefined picture was kept."
    )
