"""From latents to saved and judged pictures."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.generation.plan import PlannedPicture
from headshot_ui.generation.records import Picture, picture_metadata
from headshot_ui.generation.refine import finishable, why_not_refined
from headshot_ui.generation.work import Drawn, Work
from headshot_ui.less_memory import decode
from headshot_ui.likeness import Judge
from headshot_ui.logs import is_out_of_gpu_memory
from headshot_ui.store import save_png

if TYPE_CHECKING:
    import torch
    from PIL import Image

FINISHING = "Finishing the pictures"
SAVED_AT_ONCE = 3  # pictures that threads write while the next one is decoded
STOPPED = "The work stopped before this picture was refined."
UNFINISHED = "The work stopped before the refiner finished this picture: draw it again to see it finished."


@dataclass(frozen=True)
class _Saving:
    """A picture that a thread is writing."""

    item: Drawn
    image: Image.Image
    written: Future[Picture]


def finish(work: Work, folder: Path, judge: Judge | None, quiet: bool) -> None:
    """Decode, save and judge every drawn picture into ``work.saved``; after a cancel (``quiet``) without reporting.

    Threads write the last few pictures while the next one is decoded. A problem of the judge or a cancel is raised
    when all pictures are saved; one of saving ends the decoding, and what else was being written is kept.
    """
    items = finishable(work)
    if not items:
        return
    work.loaded.keep(frozenset({"vae"}))
    saving: deque[_Saving] = deque()
    finishing = _Finishing(work, folder, judge, quiet, len(items))
    with ThreadPoolExecutor(SAVED_AT_ONCE, "saving") as threads:
        try:
            for item in items:
                try:
                    image = _decode(work, item.latents)
                except RuntimeError as error:
                    if not is_out_of_gpu_memory(error):
                        raise
                    finishing.problem = finishing.problem or error  # one that has no room costs no other
                    continue
                written = threads.submit(_save, work, folder, item, image, _why_stopped(work, item))
                saving.append(_Saving(item, image, written))
                if len(saving) > SAVED_AT_ONCE and not finishing.take(saving.popleft()):
                    break
        finally:
            while saving:
                finishing.take(saving.popleft())
    if finishing.problem is not None:
        raise finishing.problem


@dataclass
class _Finishing:
    """What becomes of the pictures, in their order, once each is written."""

    work: Work
    folder: Path
    judge: Judge | None
    quiet: bool
    total: int
    problem: Exception | None = None  # the first one
    best: float | None = None

    def take(self, saving: _Saving) -> bool:
        """Wait until a picture is written, then judge and report it. False when it could not be written."""
        saved = self.work.saved
        try:
            saved.append(saving.written.result())
        except Exception as error:
            self.problem = self.problem or error
            return False
        try:  # saved before it is judged: whatever the judge does, the picture is there
            if self.judge is not None:
                saved[-1] = _judged(self.work, self.folder, saving.item, saving.image, self.judge)
                self.best = max(self.best or 0.0, _percent(saved[-1]))
            if not self.quiet and self.problem is None:
                metrics = None if self.best is None else {"best_likeness_percent": self.best}
                self.work.report(FINISHING, len(saved), self.total, preview=saved[-1].path, metrics=metrics)
        except Exception as error:
            self.problem = self.problem or error
        return True


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
    return decode(work.loaded, latents, work.store.settings.device)[0]


def _save(work: Work, folder: Path, item: Drawn, image: Image.Image, why: str) -> Picture:
    """Write one picture; ``why`` says that it is not the refined one although that was asked for."""
    planned = item.planned
    path = folder / _file_name(planned)
    about = picture_metadata(
        work.spec, planned, work.lora, work.mark, why, item.unfinished, work.vae, work.precision, work.compiled
    )
    save_png(path, image, about)
    refined = item.refined and not why
    return Picture(
        path, planned.preset, planned.title, planned.prompt, planned.seed, refined=refined, why_not_refined=why
    )


def _file_name(planned: PlannedPicture) -> str:
    return f"{planned.index + 1:03d}-{planned.preset or 'prompt'}-{planned.seed}.png"
