"""What exactly a run will do, settled before it begins."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

from headshot_ui.dataset.types import Dataset, PreparedPhoto
from headshot_ui.errors import DatasetError, SpecError
from headshot_ui.families import abilities
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.recipes import Recipe, with_recipe
from headshot_ui.specs import CHECKPOINTING, NONE, TRAIN_USUAL, TrainSpec

WARMUP_STEPS = 10


@dataclass(frozen=True)
class Plan:
    """A TrainSpec with nothing left open. See there for what the fields mean."""

    steps: int
    rank: int
    alpha: float
    learning_rate: float
    batch_size: int
    gradient_accumulation: int
    gradient_checkpointing: str
    min_snr_gamma: float | None  # None: no weighting
    caption_dropout: float
    prior_preservation: bool
    prior_weight: float
    class_pictures: int
    seed: int
    checkpoint_every: int
    sample_every: int
    optimizer: str
    size_px: int
    resolutions: tuple[int, ...]  # each photo is learned at each; the largest is ``size_px``


def plan_of(resolved: TrainSpec) -> Plan:
    """The plan in a spec that came from ``resolve``."""
    return Plan(**{field.name: getattr(resolved, field.name) for field in dataclasses.fields(Plan)})


def resolve(spec: TrainSpec, info: BaseInfo, recipes: Mapping[str, Recipe]) -> TrainSpec:
    """``spec`` with every None replaced by what its recipe says, else by the base model's own default.

    ``run`` stays None, and so does a weighting that neither of them has. Raises SpecError for an unknown recipe, and
    for photos that should be larger than the base model's own size, a base model that cannot be trained on, and a
    setting that means nothing to it.
    """
    return complete(with_recipe(spec, info, recipes), info)


def complete(spec: TrainSpec, info: BaseInfo) -> TrainSpec:
    """``resolve`` without a recipe: for a run that was begun, whose spec has all that its recipe said.

    Gradient checkpointing is none unless asked for; what the memory needs is asked for by ``forecast.settled``.
    """
    can, defaults = abilities(info), info.defaults
    if can.untrainable:
        raise SpecError("base", can.untrainable)
    if spec.min_snr_gamma is not None and not can.weighs_by_snr:
        raise SpecError(
            "min_snr_gamma", f"Min-SNR gamma has no meaning for “{info.title}”, whose loss needs none: leave it empty."
        )
    rank = spec.rank or defaults.rank
    size_px = max(spec.resolutions) if spec.resolutions else spec.size_px or info.size_px
    if size_px > info.size_px:
        raise SpecError(
            "resolutions" if spec.resolutions else "size_px",
            f"The size of the photos is {size_px}, but “{info.title}” is made for {info.size_px}: choose "
            f"{info.size_px} or less.",
        )
    usual = {name: value for name, value in TRAIN_USUAL.items() if getattr(spec, name) is None}
    return dataclasses.replace(
        spec,
        steps=spec.steps or defaults.train_steps,
        rank=rank,
        alpha=float(rank) if spec.alpha is None else spec.alpha,
        learning_rate=spec.learning_rate or defaults.learning_rate,
        gradient_checkpointing=spec.gradient_checkpointing or NONE,  # see forecast.settled
        batch_size=spec.batch_size or defaults.batch_size,
        min_snr_gamma=(spec.min_snr_gamma or defaults.min_snr_gamma) if can.weighs_by_snr else None,
        checkpoint_every=spec.checkpoint_every or defaults.checkpoint_every,
        sample_every=spec.sample_every or defaults.sample_every,
        size_px=size_px,
        resolutions=spec.resolutions or (size_px,),
        **usual,
    )


def going_on(begun: TrainSpec, spec: TrainSpec, info: BaseInfo) -> TrainSpec:
    """What a run that began as ``begun`` is when ``spec`` goes on with it: its own settings, for more steps if asked.

    Checkpointing changes no number, so it may go on with more of it on a card with less memory.
    """
    levels = (spec.gradient_checkpointing or NONE, begun.gradient_checkpointing or NONE)
    checkpointing = max(levels, key=CHECKPOINTING.index)
    return complete(
        dataclasses.replace(begun, steps=spec.steps or begun.steps, gradient_checkpointing=checkpointing), info
    )


def training_photos(dataset: Dataset) -> tuple[PreparedPhoto, ...]:
    """The photos to learn from, each with its crop on disk. Raises DatasetError when there is nothing to learn."""
    photos = tuple(photo for photo in dataset.photos if photo.verdict == "train")
    if not photos:
        raise DatasetError(
            f"There is no usable photo of “{dataset.person}” to learn from: add about twelve photos and prepare again."
        )
    for photo in photos:
        if not photo.crop or not (dataset.folder / photo.crop).is_file():
            raise DatasetError(
                f"The prepared picture of “{photo.source}” is missing in {dataset.folder}: prepare the photos again."
            )
    return photos


def fingerprint(dataset: Dataset) -> str:
    """Changes whenever what is learned changes: pictures, captions or sizes."""
    digest = hashlib.sha256()
    for photo in training_photos(dataset):
        digest.update((dataset.folder / photo.crop).read_bytes())
        entry = [photo.caption, list(photo.original_size), list(photo.crop_top_left)]
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()


def learning_rate_at(step: int, peak: float) -> float:
    """Learning rate of 0-based optimizer step ``step``: a short linear rise, then constant."""
    return peak * min(1.0, (step + 1) / WARMUP_STEPS)


def sample_prompt(dataset: Dataset) -> str:
    """What the sample pictures made while training show."""
    return f"portrait of {dataset.trigger} {dataset.class_word}"


def class_prompts(dataset: Dataset, count: int) -> tuple[str, ...]:
    """Prompts of the pictures of prior preservation: the photos' captions without the trigger word, in turn."""
    captions = [_without_trigger(photo.caption, dataset.trigger) for photo in training_photos(dataset)]
    captions = [caption or f"portrait of {dataset.class_word}" for caption in captions]
    return tuple(captions[index % len(captions)] for index in range(count))


def _without_trigger(caption: str, trigger: str) -> str:
    return " ".join(word for word in caption.split() if word.strip(".,").lower() != trigger.lower())
