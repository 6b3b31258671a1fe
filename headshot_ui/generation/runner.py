"""Draw a request: all prompts are read, all pictures drawn, all refined, then all developed and judged.

Staged for the whole request and not per picture, so that each part of the models moves to the GPU once.
A cancel or an error keeps every picture that was drawn to its end, or to where a refiner was to take over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui import families
from headshot_ui.errors import Cancelled, StoreError
from headshot_ui.families.protocol import BaseInfo, DenoiseRequest, LoadedBase, PromptEmbeds, Vocabulary
from headshot_ui.generation.finish import FINISHING, finish
from headshot_ui.generation.loras import ChosenLora, base_note, check_family, choose_lora, person_words
from headshot_ui.generation.plan import PlannedPicture, batches, plan, resolve
from headshot_ui.generation.presets import load_presets
from headshot_ui.generation.records import Picture, ordered, write_ranking
from headshot_ui.generation.refine import REFINING, OpenRefiner, refine_all, refiner_negative, refining_here
from headshot_ui.generation.refiner_choice import ENSEMBLE, Refining, choose_refining, mark_of
from headshot_ui.generation.work import DrawingStage, Drawn, Work, stacked
from headshot_ui.likeness import Judge, rank
from headshot_ui.memory import card_bytes
from headshot_ui.recipes import load_recipes, with_recipe
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import Store, check_free_space, new_folder

if TYPE_CHECKING:
    from headshot_ui.jobs import Reporter

READING, DRAWING = "Reading the prompts", "Drawing"
STAGES = (READING, DRAWING, REFINING, FINISHING)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GenerateResult:
    """Everything one request made."""

    folder: Path
    pictures: tuple[Picture, ...]  # best first; in the order of the request when nobody judged
    seconds: float


def check_request(spec: GenerateSpec, store: Store, info: BaseInfo) -> None:
    """Everything that can be told of a request without loading a model; ``generate`` asks the same again.

    Raises SpecError for presets, words and settings, ModelError or StoreError for a LoRA, refiner or tokenizer that
    cannot be used, StoreError when the disk has no room for the pictures.
    """
    _, lora, _ = _checked(spec, store, families.vocabulary(info), choose_refining(spec, info, store.settings))
    if lora is not None:
        families.check_lora(lora.path, info)


def generate(
    spec: GenerateSpec,
    store: Store,
    loaded: LoadedBase,
    report: Reporter,
    judge: Judge | None = None,
    open_refiner: OpenRefiner | None = None,
) -> GenerateResult:
    """Draw every picture of ``spec`` with ``loaded`` and, given a judge, rank them by likeness.

    ``open_refiner`` is called when the base has drawn everything and left the device, if the request is refined;
    without it a request that asks for refining is refused, and one whose base would is drawn without.
    Pictures and ``headshots.json`` go to a new folder named after the time in ``store.headshots_dir``. Raises
    SpecError, ModelError or StoreError before anything is drawn when the request cannot be carried out, and
    Cancelled from ``report`` after the finished pictures were saved.
    """
    started = time.monotonic()
    refining = refining_here(spec, loaded.info, store.settings, open_refiner is not None)
    resolved, lora, planned = _checked(spec, store, loaded, refining)
    mark = None if refining is None else mark_of(refining)
    work = Work(resolved, planned, lora, refining, mark, store, loaded, report)
    embeds = _read_prompts(work)
    folder = new_folder(store.headshots_dir(spec.person), datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    problem: Exception | None = None
    try:
        _draw(work, embeds)
        if refining is not None and open_refiner is not None:
            refine_all(work, embeds, open_refiner)
    except Exception as error:  # whatever it is, what was drawn before it is saved
        problem = error
    try:
        finish(work, folder, judge, quiet=problem is not None)
    except Exception as error:
        if problem is not None:
            _log.error("Saving finished pictures after another problem failed", exc_info=error)
        problem = problem or error
    pictures = ordered(work.saved, rank([picture.likeness for picture in work.saved]), spec.keep_best)
    seconds = time.monotonic() - started
    if pictures:
        state = "done" if problem is None else "cancelled" if isinstance(problem, Cancelled) else "failed"
        try:
            write_ranking(folder, work.spec, pictures, work.lora, seconds, state, mark)
        except StoreError as error:  # the first problem is the one to tell
            problem = problem or error
    else:
        folder.rmdir()
    if problem is not None:
        raise problem
    return GenerateResult(folder, pictures, seconds)


def _checked(
    spec: GenerateSpec, store: Store, base: Vocabulary, refining: Refining | None
) -> tuple[GenerateSpec, ChosenLora | None, tuple[PlannedPicture, ...]]:
    """The resolved request, its LoRA and its pictures; what can be wrong with them is found here, before any work."""
    spec = with_recipe(spec, base.info, load_recipes(store.settings))
    presets = load_presets(store.settings)
    lora = choose_lora(spec, store)
    check_family(lora, base.info)
    resolved = resolve(replace(spec, lora=None if lora is None else lora.name), base.info, presets, refining)
    trigger, class_word = person_words(lora, store, spec.person, base.info)
    planned = plan(resolved, base, presets, trigger, class_word)
    # PNGs of pictures are about half of the raw pixels; all of them is safe.
    check_free_space(store.headshots_dir(spec.person), sum(3 * p.width * p.height for p in planned))
    return resolved, lora, planned


def _use_lora(work: Work) -> None:
    """Put the request's LoRA on, before the prompts are read: it may change the text encoders too. ``_draw`` takes
    it off again. Says once when it was trained on another base model."""
    if work.lora is None:
        return
    work.loaded.use_loras([(work.lora.path, work.spec.lora_scale)])
    note = base_note(work.lora, work.loaded.info)
    if note:
        _log.warning("%s (%s)", note, work.lora.path)
        work.report(READING, 0, 1, note=note)


def _read_prompts(work: Work) -> Mapping[str, PromptEmbeds]:
    """Text → its embeddings with first dimension 1, each text once and alone, so that no other text touches it.

    They are read with the request's LoRA, which is on afterwards; when reading breaks off it is off again.
    """
    try:
        _use_lora(work)
        return _all_embeds(work)
    except BaseException:
        work.loaded.use_loras(())
        raise


def _all_embeds(work: Work) -> Mapping[str, PromptEmbeds]:
    wanted = [text for picture in work.planned for text in (picture.prompt, picture.negative_prompt)]
    if work.refining is not None:
        wanted += [refiner_negative(picture, work.refining) for picture in work.planned]
    texts = list(dict.fromkeys(wanted))
    work.report(READING, 0, len(texts))
    work.loaded.keep(frozenset({"text"}))
    embeds = {}
    for number, text in enumerate(texts, start=1):
        embeds[text] = work.loaded.encode_prompts([text])
        work.report(READING, number, len(texts))
    return embeds


def _draw(work: Work, embeds: Mapping[str, PromptEmbeds]) -> None:
    """Denoise batch after batch into ``work.drawn``. The LoRA is off again when this ends, however it ends."""
    settings, loaded, refining = work.store.settings, work.loaded, work.refining
    halfway = refining is not None and refining.way == ENSEMBLE
    stage = DrawingStage(work, DRAWING, len(work.planned), work.steps if refining is None else refining.base_steps)
    try:
        loaded.keep(frozenset({"denoiser"}))
        for batch in batches(work.planned, settings.device, card_bytes(settings)):
            request = DenoiseRequest(
                embeds=stacked(embeds, (picture.prompt for picture in batch)),
                negative_embeds=stacked(embeds, (picture.negative_prompt for picture in batch)),
                seeds=[picture.seed for picture in batch],
                steps=work.steps,
                guidance_scale=work.guidance_scale,
                height=batch[0].height,
                width=batch[0].width,
                stop_at=refining.switch if refining is not None and halfway else 1.0,
            )
            latents, clean = stage.run(loaded.denoise(request), len(batch))
            work.drawn += [
                Drawn(picture, latents[row : row + 1], halfway, None if clean is None else clean[row : row + 1])
                for row, picture in enumerate(batch)
            ]
            stage.keep(len(batch))
    finally:
        loaded.use_loras(())
