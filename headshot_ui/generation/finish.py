"""From latents to saved and judged pictures."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.generation.plan import PlannedPicture
from headshot_ui.generation.records import Picture, picture_metadata
from headshot_ui.generation.refine import finishable, why_not_refined
from headshot_ui.generation.work import Drawn, Work
from headshot_ui.likeness import Judge
from headshot_ui.store import save_png

if TYPE_CHECKING:
    import torch
    from PIL import Image

FINISHING = "Finishing the pictures"
STOPPED = "The work stopped before this picture was refined."
UNFINISHED = "The work stopped before the refiner finished this picture: draw it again to see it finished."


def finish(work: Work, folder: Path, judge: Judge | None, quiet: bool) -> None:
    """Decode, save and judge every drawn picture into ``work.saved``; after a cancel (``quiet``) without reporting.

    A problem of the judge or a cancel is raised when all pictures are saved.
    """
    items = finishable(work)
    if not items:
        return
    problem: Exception | None = None
    work.loaded.keep(frozenset({"vae"}))
    best = None
    for number, item in enumerate(items, start=1):
        image = _decode(work, item.latents)
        # Saved before it is judged: whatever the judge does, the picture is there.
        work.saved.append(_save(work, folder, item, image, _why_stopped(work, item)))
        try:
            if judge is not None:
                work.saved[-1] = _judged(work, folder, item, image, judge)
                best = max(best or 0.0, _percent(work.saved[-1]))
            if not quiet and problem is None:
                metrics = None if best is None else {"best_likeness_percent": best}
                work.report(FINISHING, number, len(items), preview=work.saved[-1].path, metrics=metrics)
        except Exception as error:
            problem = problem or error
    if problem is not None:
        raise problem


def _why_stopped(work: Work, item: Drawn) -> str:
    """What a stop took from the picture; "" when it got all that was asked for."""
    if item.refined or work.refining is None:
        return ""
    return UNFINISHED if item.unfinished else STOPPED


def _judged(work: Work, folder: Path, item: Drawn, image: Image.Image, judge: Judge) -> Picture:
    """The last saved picture with its likeness, or the unrefined one in its place where that is more alike."""
    likeness = judge.score(image)
    if item.unrefined is not None:
        before = _decode(work, item.unrefined)
        unrefined = judge.score(before)
        why = why_not_refined(likeness, unrefined)
        if why:
            return replace(_save(work, folder, item, before, why), likeness=unrefined)
    return replace(work.saved[-1], likeness=likeness)


def _percent(picture: Picture) -> float:
    return 0.0 if picture.likeness is None else picture.likeness.percent


def _decode(work: Work, latents: torch.Tensor) -> Image.Image:
    # One at a time: the VAE needs the most memory of all parts, and no picture depends on its neighbours.
    return work.loaded.decode_latents(latents)[0]


def _save(work: Work, folder: Path, item: Drawn, image: Image.Image, why: str) -> Picture:
    """Write one picture; ``why`` says that it is not the refined one although that was asked for."""
    planned = item.planned
    path = folder / _file_name(planned)
    save_png(path, image, picture_metadata(work.spec, planned, work.lora, work.mark, why, item.unfinished))
    refined = item.refined and not why
    return Picture(
        path, planned.preset, planned.title, planned.prompt, planned.seed, refined=refined, why_not_refined=why
    )


def _file_name(planned: PlannedPicture) -> str:
    return f"{planned.index + 1:03d}-{planned.preset or 'prompt'}-{planned.seed}.png"
