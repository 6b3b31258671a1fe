"""Training from beginning to end: run folder, caching, the loop, checkpoints, samples, the LoRA."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui import __version__
from headshot_ui.dataset.types import Dataset
from headshot_ui.errors import Cancelled, DatasetError, MemoryBudgetError, SpecError, StoreError
from headshot_ui.families.fits import Fitting
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.jobs import Reporter
from headshot_ui.less_memory import make_room, out_of_memory
from headshot_ui.memory import spare_vram_bytes
from headshot_ui.recipes import load_recipes
from headshot_ui.runs import Run, RunState, change_run, create_run, find_run, load_run, resume_run
from headshot_ui.specs import NONE, TrainSpec
from headshot_ui.store import Store, check_free_space, readable_bytes, write_json_atomic
from headshot_ui.training.cache import Embeds, cache_at_sizes, cache_class_pictures, encode_texts
from headshot_ui.training.checkpoint import KEPT, Checkpoint, newest_checkpoint, save_checkpoint, set_aside
from headshot_ui.training.compiled import Choice, Watch
from headshot_ui.training.drawing import class_pictures, draw_sample
from headshot_ui.training.fitting import ENOUGH, PRECISION, enough_bytes, enough_fact, work_of
from headshot_ui.training.loop import Trainer
from headshot_ui.training.optimizers import ADAMW, ADAMW_8BIT, choose_optimizer, moment_bytes
from headshot_ui.training.plan import (
    Plan,
    class_prompts,
    fingerprint,
    going_on,
    plan_of,
    resolve,
    sample_prompt,
    training_photos,
)
from headshot_ui.training.refitting import in_less_memory, sentence
from headshot_ui.training.rehearsal import look_ahead

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

STAGE = "Training"
CHECKPOINTS = "checkpoints"
LORA_FILE = "lora.safetensors"
LOSSES_FILE = "losses.json"  # one number per step
#: Beside a model in training, so much graphics memory holds a sample's drawing and its VAE: nothing has to move.
ROOM_TO_STAY = 12 * 2**30

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainResult:
    """What training made."""

    run_dir: Path
    lora_path: Path
    steps: int  # optimizer steps in all
    losses: tuple[float, ...]  # one per step, including those before a resume
    seconds: float  # of this call


def train(spec: TrainSpec, store: Store, loaded: LoadedBase, dataset: Dataset, report: Reporter) -> TrainResult:
    """Train a LoRA of ``dataset`` on ``loaded``; with ``spec.run`` go on where that run's last checkpoint ends.

    A run that goes on keeps its own settings; only a given ``steps`` replaces its number of steps. On the CPU it
    ends bit-equal to one that was never stopped. A cancel leaves a checkpoint. Afterwards the base has no LoRA.
    Raises SpecError, DatasetError, ModelError, StoreError, HeadshotError (training came apart) and Cancelled.
    """
    started = time.monotonic()
    _check_words(loaded, dataset)
    opened = _continue_run(spec, store, loaded, dataset) if spec.run else _begin_run(spec, store, loaded, dataset)
    run, saved = opened.run, opened.saved
    try:
        if opened.damaged:
            _tell_damaged(opened, report)
        fitting = _make_fit(opened, loaded, store.settings)
        trainer, texts = _trainer(opened, store, loaded, dataset, report)
        if saved:
            trainer.restore(saved)
        trainer = _loop(trainer, fitting, run, store, texts, sample_prompt(dataset), report)
        _finish(trainer, run, dataset, time.monotonic() - started)
    except BaseException as error:
        with suppress(StoreError):  # the first error is the one to tell
            change_run(load_run(run.folder), state=_end_state(error))
        raise
    finally:
        loaded.checkpoint_gradients(NONE)
        loaded.use_loras(())
    seconds = time.monotonic() - started
    return TrainResult(run.folder, run.folder / LORA_FILE, trainer.step, tuple(trainer.losses), seconds)


def _check_words(loaded: LoadedBase, dataset: Dataset) -> None:
    """Raise DatasetError for a trigger word the base cannot read; other strange words of captions are logged."""
    photos = training_photos(dataset)
    if loaded.unknown_words(dataset.trigger):
        raise DatasetError(
            f"“{loaded.info.title}” cannot read the trigger word “{dataset.trigger}”: prepare the photos again with "
            f"the word “{loaded.info.defaults.trigger}”."
        )
    strange = sorted({word for photo in photos for word in loaded.unknown_words(photo.caption)})
    if strange:
        _log.warning("Left out of the captions, because %s does not know them: %s", loaded.info.id, ", ".join(strange))


# --- the run folder ------------------------------------------------------------------------------
@dataclass(frozen=True)
class _OpenedRun:
    run: Run
    plan: Plan
    saved: Checkpoint | None = None  # the newest whole checkpoint
    damaged: tuple[str, ...] = ()  # names of newer ones


def _begin_run(spec: TrainSpec, store: Store, loaded: LoadedBase, dataset: Dataset) -> _OpenedRun:
    resolved = resolve(spec, loaded.info, load_recipes(store.settings))
    plan = plan_of(resolved)
    facts = {"dataset": fingerprint(dataset), "trigger": dataset.trigger, "class_word": dataset.class_word,
             "base_licence": loaded.info.licence}  # fmt: skip
    run = create_run(store, resolved, total=plan.steps)
    return _OpenedRun(change_run(run, spec=dataclasses.replace(resolved, run=run.name), facts=facts), plan)


def _continue_run(spec: TrainSpec, store: Store, loaded: LoadedBase, dataset: Dataset) -> _OpenedRun:
    run = find_run(store, spec.person, spec.run or "")
    if run.spec.base != loaded.info.id:
        raise SpecError("base", f"The run “{run.name}” was begun on “{run.spec.base}”: go on with that base model.")
    if run.facts.get("dataset") != fingerprint(dataset):
        raise DatasetError(
            f"The photos or captions of “{spec.person}” changed since the run “{run.name}” began: start a new run."
        )
    resolved = going_on(run.spec, spec, loaded.info)
    plan = plan_of(resolved)
    run = change_run(resume_run(run), spec=resolved, total=plan.steps)
    saved, damaged = newest_checkpoint(run.folder / CHECKPOINTS)
    set_aside(run.folder / CHECKPOINTS, damaged)
    return _OpenedRun(run, plan, saved, damaged)


def _tell_damaged(opened: _OpenedRun, report: Reporter) -> None:
    step = opened.saved.step if opened.saved else 0
    told = f"Going on from step {step}, because {' and '.join(opened.damaged)} is damaged"
    _log.warning("%s (%s)", told, opened.run.folder)
    report(told, step, opened.plan.steps)


def _end_state(error: BaseException) -> RunState:
    if isinstance(error, Cancelled):
        return "cancelled"
    return "failed" if isinstance(error, Exception) else "interrupted"


# --- stages --------------------------------------------------------------------------------------
def _trainer(
    opened: _OpenedRun, store: Store, loaded: LoadedBase, dataset: Dataset, report: Reporter
) -> tuple[Trainer, dict[str, Embeds]]:
    """Everything encoded once, one part of the model in memory at a time, and the LoRA in place."""
    plan = opened.plan
    prompts = class_prompts(dataset, plan.class_pictures) if plan.prior_preservation else ()
    captions = [photo.caption for photo in training_photos(dataset)]
    loaded.keep(frozenset({"text"}))
    texts = encode_texts(loaded, ["", sample_prompt(dataset), *captions, *prompts], report)
    pictures: tuple[Path, ...] = ()
    if prompts:
        loaded.keep(frozenset({"denoiser", "vae"}))
        pictures = class_pictures(loaded, store, dataset.person, prompts, texts, report)
    loaded.keep(frozenset({"vae"}))
    photos = cache_at_sizes(loaded, dataset, texts, report, plan.resolutions)
    class_items = cache_class_pictures(loaded, pictures, prompts, texts, photos) if prompts else {}
    loaded.keep(frozenset({"denoiser"}))
    saved = None if opened.saved is None else opened.saved.optimizer
    optimizer, problem = choose_optimizer(plan.optimizer, store.settings.device, saved)
    trainer = Trainer.start(loaded, dataclasses.replace(plan, optimizer=optimizer), photos, class_items, texts[""])
    if problem:
        _tell_32bit(trainer, problem, report)
    check_free_space(opened.run.folder, _disk_bytes(trainer))
    return trainer, texts


def _make_fit(opened: _OpenedRun, loaded: LoadedBase, settings: Settings) -> Fitting | None:
    """Have the base fit the memory, and note what of that changes numbers: a run that goes on keeps to it.

    One in which graphics memory ran out begins with the way that it found then.
    """
    loaded.use_loras(())
    run = load_run(opened.run.folder)
    begun = None if opened.saved is None else str(run.facts.get(PRECISION, ""))
    work, under = work_of(opened.plan), enough_bytes(run.facts, settings)
    try:
        fitting = loaded.fit(work, begun, under)
    except MemoryBudgetError:
        if under is None:
            raise
        fitting = loaded.fit(work, begun)
    else:
        if under is not None:
            _log.info("Graphics memory ran out in this run before: it begins with the way that was found then")
    if fitting is not None:
        _log.info("%s (%s)", fitting.sentence, run.folder)
    _note_precision(run, fitting)
    return fitting


def _note_precision(run: Run, fitting: Fitting | None) -> None:
    if fitting is not None or PRECISION in run.facts:
        change_run(run, facts={**run.facts, PRECISION: "" if fitting is None else fitting.precision})


def _tell_32bit(trainer: Trainer, problem: str, report: Reporter) -> None:
    """A run never fails for want of 8-bit AdamW: it would only save a little memory."""
    sizes = [parameter.numel() for parameter in trainer.parameters]
    more = sum(moment_bytes(size, ADAMW) - moment_bytes(size, ADAMW_8BIT) for size in sizes)
    note = (
        f"8-bit AdamW was not used, because {problem}: the training goes on with AdamW in 32 bit, which learns the "
        f"same and takes {readable_bytes(more)} more memory."
    )
    _log.warning("%s", note)
    report(note, trainer.step, trainer.plan.steps, note=note)


def _disk_bytes(trainer: Trainer) -> int:
    """Room for the checkpoints (LoRA and two optimizer moments each) and the finished LoRA."""
    lora = sum(parameter.numel() * parameter.element_size() for parameter in trainer.parameters)
    return lora * (3 * (KEPT + 1) + 1)


def _loop(
    trainer: Trainer,
    fitting: Fitting | None,
    run: Run,
    store: Store,
    texts: Mapping[str, Embeds],
    prompt: str,
    report: Reporter,
) -> Trainer:
    """Steps until ``plan.steps``, with checkpoints and samples in between; a cancel saves what there is.

    Returns the trainer that came to the end: another one where memory ran out and a smaller way was found.
    """
    trainer.keep(trainer.capture())
    try:
        report(STAGE, trainer.step, trainer.plan.steps)
        choice = Choice.of(trainer, store.settings, fitting)
        while True:
            with choice.stretch(report) as watch:  # ends before blocks are changed
                failed = _steps(trainer, watch, run, store, texts, prompt, report)
            if failed is None and trainer.step >= trainer.plan.steps:
                return trainer
            if failed is None:
                choice.look_again(watch)
                continue
            if choice.after_memory_ran_out():
                continue
            found = in_less_memory(trainer, trainer.capture(), fitting)
            if found is None:
                raise failed
            trainer, fitting = found
            _tell_smaller(trainer, fitting, run, store.settings, report)
            choice = Choice.of(trainer, store.settings, fitting)
    except Cancelled:  # raised by report, so between two steps, or in one that leaves no trace
        _save(trainer, run)
        raise
    finally:
        trainer.let_go()


def _steps(
    trainer: Trainer,
    watch: Watch,
    run: Run,
    store: Store,
    texts: Mapping[str, Embeds],
    prompt: str,
    report: Reporter,
) -> RuntimeError | None:
    """Until the end, until ``watch`` ends, or until a step finds too little graphics memory: its error is returned."""
    plan = trainer.plan
    while trainer.step < plan.steps and not watch.ends:
        look_ahead(trainer)
        with watch.step():
            failed = out_of_memory(trainer.run_step, "A training step")
        if failed is not None:
            return failed
        if trainer.step % plan.checkpoint_every == 0 or trainer.step == plan.steps:
            _save(trainer, run)
        report(STAGE, trainer.step, plan.steps, metrics=trainer.metrics())
        if trainer.step % plan.sample_every == 0:
            path = run.folder / "samples" / f"step-{trainer.step:06d}.png"
            if _sample(trainer, path, store, texts, prompt, report):
                report(STAGE, trainer.step, plan.steps, preview=path)
    return None


def _sample(
    trainer: Trainer, path: Path, store: Store, texts: Mapping[str, Embeds], prompt: str, report: Reporter
) -> bool:
    """Draw a sample to ``path``; False where there is too little graphics memory for it, which ends no training."""
    loaded, device, seed = trainer.loaded, store.settings.device, trainer.plan.seed
    room = spare_vram_bytes(store.settings) >= ROOM_TO_STAY
    for stay in (True, False) if room else (False,):
        if not stay:
            trainer.let_go()
        failed = out_of_memory(
            lambda stay=stay: draw_sample(loaded, path, prompt, texts, seed, report, device, stay),  # type: ignore[misc]
            "A sample",
        )
        if failed is None:
            return True
        trainer.let_go()
        loaded.keep(frozenset())
        make_room(device)
        loaded.keep(frozenset({"denoiser"}))
    note = f"No sample was drawn at step {trainer.step}: the graphics memory ran out. The training goes on without it."
    _log.warning("%s", note)
    report(note, trainer.step, trainer.plan.steps, note=note)
    return False


def _tell_smaller(
    trainer: Trainer, fitting: Fitting | None, run: Run, settings: Settings, report: Reporter
) -> None:
    """Of a way that was found when memory ran out; the run's files say how it goes on."""
    now = load_run(run.folder)
    level = trainer.plan.gradient_checkpointing
    facts = now.facts if fitting is None else {**now.facts, ENOUGH: enough_fact(fitting, settings)}
    now = change_run(now, spec=dataclasses.replace(now.spec, gradient_checkpointing=level), facts=facts)
    _note_precision(now, fitting)
    note = sentence(trainer.plan, trainer.step, fitting)
    _log.warning("%s", note)
    report(note, trainer.step, trainer.plan.steps, note=note)


def _save(trainer: Trainer, run: Run) -> None:
    save_checkpoint(run.folder / CHECKPOINTS, trainer.capture())
    change_run(load_run(run.folder), step=trainer.step)


def _finish(trainer: Trainer, run: Run, dataset: Dataset, seconds: float) -> None:
    metadata = {
        "rank": str(trainer.plan.rank),
        "alpha": str(trainer.plan.alpha),
        "trigger": dataset.trigger,
        "class_word": dataset.class_word,
        "steps": str(trainer.step),
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "program": f"headshot_ui {__version__}",
        "licence": trainer.loaded.info.licence,  # a LoRA may inherit it
    }
    trainer.loaded.save_lora(run.folder / LORA_FILE, trainer.loaded.trainable_lora_state(), metadata)
    now = load_run(run.folder)
    write_json_atomic(run.folder / LOSSES_FILE, trainer.losses)
    facts = {**now.facts, "seconds": round(now.facts.get("seconds", 0) + seconds, 1)}
    change_run(now, state="done", step=trainer.step, lora=LORA_FILE, facts=facts)
