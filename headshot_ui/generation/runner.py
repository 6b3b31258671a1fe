"""Draw a request: all prompts are read, then all pictures drawn, then all developed and judged.

Staged for the whole request and not per picture, so that each part of the model moves to the GPU once.
A cancel or an error keeps every picture that was drawn to its end.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.errors import Cancelled, StoreError
from headshot_ui.families.protocol import DenoiseRequest, LoadedBase, PromptEmbeds
from headshot_ui.generation.loras import ChosenLora, choose_lora, person_words
from headshot_ui.generation.plan import PlannedPicture, batches, plan, resolve
from headshot_ui.generation.presets import load_presets
from headshot_ui.generation.records import Picture, ordered, picture_metadata, write_ranking
from headshot_ui.likeness import Judge, rank
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import Store, check_free_space, new_folder, save_png

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from headshot_ui.jobs import Reporter

PREVIEW_EVERY = 3  # steps
PREVIEW_TILE_PX = 256
PREVIEW_TILES = 4
PREVIEW = "preview.png"  # of the batch being drawn; beside the folder with the pictures
READING, DRAWING, FINISHING = "Reading the prompts", "Drawing", "Finishing the pictures"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerateResult:
    """Everything one request made."""

    folder: Path
    pictures: tuple[Picture, ...]  # best first; in the order of the request when nobody judged
    seconds: float


@dataclass
class _Work:
    """One request while it runs."""

    spec: GenerateSpec  # resolved
    planned: tuple[PlannedPicture, ...]
    lora: ChosenLora | None
    store: Store
    loaded: LoadedBase
    report: Reporter
    drawn: list[tuple[PlannedPicture, torch.Tensor]] = field(default_factory=list)  # latents (1, C, h, w)
    saved: list[Picture] = field(default_factory=list)


def generate(
    spec: GenerateSpec, store: Store, loaded: LoadedBase, report: Reporter, judge: Judge | None = None
) -> GenerateResult:
    """Draw every picture of ``spec`` with ``loaded`` and, given a judge, rank them by likeness.

    Pictures and ``headshots.json`` go to a new folder named after the time in ``store.headshots_dir``. Raises
    SpecError, ModelError or StoreError before anything is drawn when the request cannot be carried out, and
    Cancelled from ``report`` after the finished pictures were saved.
    """
    started = time.monotonic()
    work = _prepare(spec, store, loaded, report)
    embeds = _read_prompts(work)
    folder = new_folder(store.headshots_dir(spec.person), datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    problem: Exception | None = None
    try:
        _draw(work, embeds)
    except Exception as error:  # whatever it is, what was drawn before it is saved
        problem = error
    try:
        _finish(work, folder, judge, quiet=problem is not None)
    except Exception as error:
        if problem is not None:
            _log.error("Saving finished pictures after another problem failed", exc_info=error)
        problem = problem or error
    pictures = ordered(work.saved, rank([picture.likeness for picture in work.saved]), spec.keep_best)
    seconds = time.monotonic() - started
    if pictures:
        state = "done" if problem is None else "cancelled" if isinstance(problem, Cancelled) else "failed"
        try:
            write_ranking(folder, work.spec, pictures, work.lora, seconds, state)
        except StoreError as error:  # the first problem is the one to tell
            problem = problem or error
    else:
        folder.rmdir()
    if problem is not None:
        raise problem
    return GenerateResult(folder, pictures, seconds)


def _prepare(spec: GenerateSpec, store: Store, loaded: LoadedBase, report: Reporter) -> _Work:
    """Everything that can be wrong with a request is found here, before any work."""
    presets = load_presets(store.settings)
    lora = choose_lora(spec, store)
    resolved = resolve(replace(spec, lora=None if lora is None else lora.name), loaded.info, presets)
    trigger, class_word = person_words(lora, store, spec.person, loaded.info)
    planned = plan(resolved, loaded, presets, trigger, class_word)
    # PNGs of pictures are about half of the raw pixels; all of them is safe.
    check_free_space(store.headshots_dir(spec.person), sum(3 * p.width * p.height for p in planned))
    return _Work(resolved, planned, lora, store, loaded, report)


def _read_prompts(work: _Work) -> Mapping[str, PromptEmbeds]:
    """Text → its embeddings with first dimension 1, each text once and alone, so that no other text touches it."""
    texts = list(dict.fromkeys(text for p in work.planned for text in (p.prompt, p.negative_prompt)))
    work.report(READING, 0, len(texts))
    work.loaded.keep(frozenset({"text"}))
    embeds = {}
    for number, text in enumerate(texts, start=1):
        embeds[text] = work.loaded.encode_prompts([text])
        work.report(READING, number, len(texts))
    return embeds


def _stacked(embeds: Mapping[str, PromptEmbeds], texts: Iterable[str]) -> PromptEmbeds:
    import torch

    rows = [embeds[text] for text in texts]
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def _draw(work: _Work, embeds: Mapping[str, PromptEmbeds]) -> None:
    """Denoise batch after batch into ``work.drawn``. The LoRA is off again when this ends, however it ends."""
    settings, loaded, spec = work.store.settings, work.loaded, work.spec
    assert spec.steps is not None and spec.guidance_scale is not None  # resolved
    loaded.keep(frozenset({"denoiser"}))
    work.report(DRAWING, 0, len(work.planned) * spec.steps)
    try:
        if work.lora is not None:
            loaded.use_loras([(work.lora.path, spec.lora_scale)])
        for batch in batches(work.planned, settings.device, settings.vram_limit_bytes):
            request = DenoiseRequest(
                embeds=_stacked(embeds, (picture.prompt for picture in batch)),
                negative_embeds=_stacked(embeds, (picture.negative_prompt for picture in batch)),
                seeds=[picture.seed for picture in batch],
                steps=spec.steps,
                guidance_scale=spec.guidance_scale,
                height=batch[0].height,
                width=batch[0].width,
            )
            latents = _denoise(work, request)
            work.drawn += [(picture, latents[row : row + 1].cpu()) for row, picture in enumerate(batch)]
            work.report(DRAWING, len(work.drawn) * spec.steps, len(work.planned) * spec.steps)
    finally:
        loaded.use_loras(())


def _denoise(work: _Work, request: DenoiseRequest) -> torch.Tensor:
    """(B, C, h, w) of one batch. Steps are counted per picture, so that batches of unequal size progress evenly."""
    before, size = len(work.drawn) * request.steps, len(request.seeds)
    total = len(work.planned) * request.steps
    latents = None
    for done in work.loaded.denoise(request):
        latents = done.latents
        shown = done.step % PREVIEW_EVERY == 0 or done.step == done.total
        preview = _save_preview(work, latents) if shown else None
        if done.step < done.total:  # the last step is reported once its pictures are kept: a cancel loses none
            work.report(DRAWING, before + done.step * size, total, preview=preview)
    assert latents is not None
    return latents


def _save_preview(work: _Work, latents: torch.Tensor) -> Path:
    """A small picture of what is being drawn."""
    path = work.store.headshots_dir(work.spec.person) / PREVIEW
    save_png(path, tiled(work.loaded.preview(latents[:PREVIEW_TILES])), {})
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


def _finish(work: _Work, folder: Path, judge: Judge | None, quiet: bool) -> None:
    """Decode, save and judge every drawn picture into ``work.saved``; after a cancel, without reporting.

    A problem of the judge or a cancel is raised when all pictures are saved.
    """
    if not work.drawn:
        return
    problem: Exception | None = None
    work.loaded.keep(frozenset({"vae"}))
    best = None
    for number, (planned, latents) in enumerate(work.drawn, start=1):
        # One at a time: the VAE needs the most memory of all parts, and no picture depends on its neighbours.
        image = work.loaded.decode_latents(latents)[0]
        path = folder / _file_name(planned)
        save_png(path, image, picture_metadata(work.spec, planned, work.lora))
        picture = Picture(path, planned.preset, planned.title, planned.prompt, planned.seed)
        work.saved.append(picture)
        try:
            if judge is not None:
                likeness = judge.score(image)
                work.saved[-1] = replace(picture, likeness=likeness)
                best = max(best or 0.0, likeness.percent)
            if not quiet and problem is None:
                metrics = None if best is None else {"best_likeness_percent": best}
                work.report(FINISHING, number, len(work.drawn), preview=path, metrics=metrics)
        except Exception as error:
            problem = problem or error
    if problem is not None:
        raise problem


def _file_name(planned: PlannedPicture) -> str:
    return f"{planned.index + 1:03d}-{planned.preset or 'prompt'}-{planned.seed}.png"
