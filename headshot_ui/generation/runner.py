"""Draw a request: all prompts are read, all pictures drawn, all refined, then all developed and judged.

Staged for the whole request and not per picture, so that each part of the models moves to the GPU once.
A cancel or an error keeps every picture that was drawn to its end, or to where a refiner was to take over.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui import compiling, families
from headshot_ui.capture import graphs
from headshot_ui.errors import Cancelled, StoreError
from headshot_ui.families.fits import DenoiserWork
from headshot_ui.families.protocol import BaseInfo, DenoiseRequest, LoadedBase, PromptEmbeds, Recorder, Vocabulary
from headshot_ui.generation.finish import FINISHING, finish
from headshot_ui.generation.kept_prompts import KeptPrompts
from headshot_ui.generation.loras import ChosenLora, base_note, check_family, choose_lora, person_words
from headshot_ui.generation.plan import PlannedPicture, batches, plan, resolve
from headshot_ui.generation.presets import load_presets
from headshot_ui.generation.records import Picture, ordered, write_ranking
from headshot_ui.generation.refine import REFINING, OpenRefiner, expect, refine_all, refiner_negative, refining_here
from headshot_ui.generation.refiner_choice import ENSEMBLE, Refining, choose_refining, mark_of
from headshot_ui.generation.smaller import draw_all, fit_smaller
from headshot_ui.generation.speeds import products_in_8_bit, reuse_below
from headshot_ui.generation.vae_mark import vae_mark
from headshot_ui.generation.work import DrawingStage, Drawn, Work, stacked
from headshot_ui.likeness import Judge, rank
from headshot_ui.memory import card_bytes, spare_vram_bytes
from headshot_ui.recipes import load_recipes, with_recipe
from headshot_ui.specs import FAST, GenerateSpec
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
    work = Work(resolved, planned, lora, refining, mark, vae_mark(loaded), store, loaded, report)
    _tell_speed(work)
    embeds = _read_prompts(work)
    folder = new_folder(store.headshots_dir(spec.person), datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    problem: Exception | None = None
    try:
        _draw(work, embeds, partial(expect, open_refiner))
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
            write_ranking(folder, work.spec, pictures, work.lora, seconds, state, mark, work.vae)
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


def _tell_speed(work: Work) -> None:
    """“Fast” leaves out a pass that some base models have none of: said, with what it does instead."""
    info = work.loaded.info
    can = families.abilities(info)
    if work.spec.speed != FAST or can.reads_negative_prompt:
        return
    note = f"“{info.title}” draws every step in one pass, so that “fast” makes no difference."
    if can.reuses_blocks:
        note = (
            f"“{info.title}” is drawn fast: in steps that change little, most of the network is left out. Details "
            "differ from those of an exact picture."
        )
    work.report(READING, 0, 1, note=note)


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

    Those that the base has read before may be kept on disk (``kept_prompts``). They are read with the request's LoRA,
    which is on afterwards; when reading breaks off it is off again.
    """
    try:
        _use_lora(work)
        _make_fit(work)
        return _all_embeds(work)
    except BaseException:
        work.loaded.use_loras(())
        raise


def _make_fit(work: Work) -> None:
    """Have the base fit the memory for the largest of what is drawn at once; what it costs stands in the pictures."""
    groups = _groups(work)
    largest = max(groups, key=lambda group: len(group) * group[0].width * group[0].height)
    drawing = DenoiserWork(None, largest[0].width, largest[0].height, max(map(len, groups)), work.steps)
    work.fitting = work.loaded.fit(drawing)
    if work.fitting is not None:
        _log.info("%s", work.fitting.sentence)


def _fit_smaller(work: Work) -> str:
    """Have the base draw one picture in the next smaller way, and say which it is; "" if there is none."""
    largest = max(work.planned, key=lambda picture: picture.width * picture.height)
    drawing = DenoiserWork(None, largest.width, largest.height, 1, work.steps)
    found = fit_smaller(work.loaded, drawing, work.fitting, any_numbers=not work.drawn)
    if found is None:
        return ""
    work.fitting = found
    work.loaded.keep(frozenset({"denoiser"}))
    return found.sentence


def _groups(work: Work) -> list[list[PlannedPicture]]:
    settings = work.store.settings
    return batches(work.planned, settings.device, card_bytes(settings))


def _all_embeds(work: Work) -> Mapping[str, PromptEmbeds]:
    wanted = [text for picture in work.planned for text in (picture.prompt, *_negative(work, picture))]
    if work.refining is not None:
        wanted += [refiner_negative(picture, work.refining) for picture in work.planned]
    texts = list(dict.fromkeys(wanted))
    kept = KeptPrompts.of(work.store.prompts_dir(work.spec.person), work.loaded.text_key)
    embeds = {} if kept is None else {text: found for text in texts if (found := kept.find(text)) is not None}
    work.report(READING, len(embeds), len(texts))
    unread = [text for text in texts if text not in embeds]
    if unread:  # else no text encoder is needed at all
        work.loaded.keep(frozenset({"text"}))
    for text in unread:
        embeds[text] = work.loaded.encode_prompts([text])
        if text == unread[0]:
            work.loaded.expect(frozenset({"denoiser"}), spare_vram_bytes(work.store.settings))
        if kept is not None:
            kept.keep(text, embeds[text])
        work.report(READING, len(embeds), len(texts))
    return embeds


def _negative(work: Work, picture: PlannedPicture) -> tuple[str, ...]:
    """The text that the picture is steered away from; none where it would be read without effect."""
    can = families.abilities(work.loaded.info)
    return (picture.negative_prompt,) if can.reads_negative_prompt and work.guidance_scale > 1 else ()


def _compiling(work: Work) -> Callable[[int], None]:
    """How many graphs there will be is not known before."""
    return lambda done: work.report(compiling.STAGE, done, done + 1)


def _draw(work: Work, embeds: Mapping[str, PromptEmbeds], expect_next: Callable[[], None]) -> None:
    """Denoise batch after batch into ``work.drawn``. The LoRA is off again when this ends, however it ends.

    ``expect_next`` is called in the last batch, when it is known how much room computing takes.
    """
    settings, loaded, refining = work.store.settings, work.loaded, work.refining
    halfway = refining is not None and refining.way == ENSEMBLE
    can = families.abilities(loaded.info)
    try:
        loaded.keep(frozenset({"denoiser"}))  # tells how far it is where that takes long, so drawing is told after it
        stage = DrawingStage(work, DRAWING, len(work.planned), work.steps if refining is None else refining.base_steps)
        groups = _groups(work)
        with graphs(settings.device) as recorded, ExitStack() as stack:
            record: Recorder = recorded.record
            if compiling.wanted(settings):
                work.compiled = True
                record = compiling.when_ready(record, loaded.repeated, stack, _compiling(work))

            def draw(batch: Sequence[PlannedPicture], last: bool) -> None:
                negative = [text for picture in batch for text in _negative(work, picture)]
                request = DenoiseRequest(
                    embeds=stacked(embeds, (picture.prompt for picture in batch)),
                    negative_embeds=stacked(embeds, negative) if negative else None,
                    seeds=[picture.seed for picture in batch],
                    steps=work.steps,
                    guidance_scale=work.guidance_scale,
                    height=batch[0].height,
                    width=batch[0].width,
                    stop_at=refining.switch if refining is not None and halfway else 1.0,
                    guided_share=work.guided_share,
                    reuse_below=reuse_below(work.spec.speed) if can.reuses_blocks else 0.0,
                    products_in_8_bit=products_in_8_bit(work.spec.speed) and can.reuses_blocks,
                    recorder=record,
                )
                after_first = expect_next if last else None
                latents, clean = stage.run(loaded.denoise(request), len(batch), after_first)
                work.drawn += [
                    Drawn(picture, latents[row : row + 1], halfway, None if clean is None else clean[row : row + 1])
                    for row, picture in enumerate(batch)
                ]
                stage.keep(len(batch))

            def smaller() -> str:
                stack.close()  # what is compiled would keep the weights that are to go
                return _fit_smaller(work)

            draw_all(groups, draw, stage.tell, settings.device, smaller, recorded.drop)
    finally:
        loaded.use_loras(())
