"""What each stage of a request uses, told before it runs: models on the device, bytes, work and disk.

The runners note what a stage really took under the names given here, so that the next plan finds it again. Until
then memory is estimated, of base models as ``base_bytes`` says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.base_bytes import DRAWING, LEARNING, BaseParts, lora_bytes, moments_bytes
from headshot_ui.errors import HeadshotError, ModelError, SpecError
from headshot_ui.families import abilities
from headshot_ui.made_to_fit import drawing_made_to_fit, training_made_to_fit
from headshot_ui.memory import DECODING, ENCODING, card_bytes, files_bytes
from headshot_ui.specs import (
    AUTOMATIC,
    FAST,
    FULL,
    NONE,
    PARTIAL,
    ExportSpec,
    GenerateSpec,
    HeadshotsSpec,
    PrepareSpec,
    RestoreSpec,
    Spec,
    TrainSpec,
)
from headshot_ui.store import Store

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.parts import Parts
    from headshot_ui.restoration.protocol import Restorer
    from headshot_ui.settings import Settings

PICTURES_BEFORE = 4  # drawn without the LoRA to compare with; more would only cost time

RESTORING = 4000  # for each pixel of an aligned face, whatever the network
FINDING_FACES = 100 * 2**20
DESCRIBING = 2**30  # a picture of 768 x 768 pixels in float32, three beams
LARGEST_WINDOW = 512  # pixels of a picture that an upscaler sees at once
ENLARGING = 12_000  # for each of those pixels
_CHECKPOINTED = {NONE: "", PARTIAL: " partly checkpointed", FULL: " checkpointed"}
CHECKPOINTS = 3  # training keeps as many, each with the LoRA and two moments of every weight
PNG_SHARE = 0.5  # of the raw pixels
EXPORTED_BYTES = 400_000  # per layout, and again in the archive
HEADERS_READ = 20  # of pictures, to see how large they are


@dataclass(frozen=True)
class Turn:
    """Something that computes during a part of a stage."""

    name: str  # for people
    weight_bytes: int
    working_bytes: int  # estimate of what computing takes beside the weights


@dataclass(frozen=True)
class Alike:
    """Another way of doing a stage: what was measured of it says something of this one too."""

    size: str  # as of StagePlan
    share: float  # of its seconds that this way is likely to take
    note: str  # one sentence that says so


@dataclass(frozen=True)
class StagePlan:
    """One stage before it runs."""

    name: str  # as it is metered
    model: str  # id under which its peaks are kept
    size: str  # what memory depends on besides the model
    units: float  # work, which seconds grow with; 0: not known
    turns: tuple[Turn, ...]
    disk_bytes: int = 0
    notes: tuple[str, ...] = ()  # how it is made to fit
    alike: tuple[Alike, ...] = ()  # where this way was not measured, the first of these that was counts
    first_s: float | None = None  # estimate of reading the base and making it fit; None: no matter, or not known
    every_block: bool = False  # made to fit in a way in which a base that could leave blocks out computes all


@dataclass(frozen=True)
class Known:
    """What plans are made from."""

    settings: Settings
    parts: Parts
    device: str  # "cuda", "mps" or "cpu"
    dtype: str


def plan_stages(spec: Spec, known: Known) -> tuple[StagePlan, ...]:
    """The stages of a request in their order. Reads only headers. Raises ModelError, SpecError and StoreError."""
    if type(spec) not in _PLANNERS:
        raise SpecError("", "There is no plan for a job of this kind: it needs no model.")
    return tuple(_PLANNERS[type(spec)](spec, known))


def without_lora(spec: GenerateSpec, presets: Sequence[str]) -> GenerateSpec:
    """The few pictures by the bare base model that a trained person is compared with; ``presets`` are all there are."""
    own_words = bool(spec.prompt) and not spec.presets
    looks = () if own_words else (spec.presets or tuple(presets))[:PICTURES_BEFORE]
    count = min(spec.count, PICTURES_BEFORE) if own_words else 1
    return replace(spec, lora=None, keep_best=None, presets=looks, count=count)


# --- stages ---------------------------------------------------------------------------------------
def plan_prepare(spec: PrepareSpec, known: Known) -> StagePlan:
    """Photos → dataset."""
    info = known.parts.find_base(spec.base, known.settings)
    photos = _count(spec.photos)
    crops = int((photos or 0) * 3 * info.size_px**2 * PNG_SHARE)
    turns = (*_faces(known), *(_describing(info, known) if spec.captions == AUTOMATIC else ()))
    return StagePlan("prepare", info.id, "", photos or 0, turns, crops + _stored_bytes(spec.photos))


def plan_train(spec: TrainSpec, known: Known) -> StagePlan:
    """Dataset → LoRA."""
    from headshot_ui.training.plan import plan_of

    info = known.parts.find_base(spec.base, known.settings)
    full = plan_of(_resolved_training(spec, info, known))
    base = BaseParts.of(info, known.dtype)
    lora, moments = lora_bytes(info, full.rank), moments_bytes(info, full.rank, full.optimizer)
    level = full.gradient_checkpointing
    pixels = full.size_px**2
    working = base.denoiser_working(LEARNING[level], pixels, full.batch_size, level)
    turns = (
        Turn("text encoders", base.text, 0),
        Turn("VAE", base.vae, base.vae_working(ENCODING, pixels)),
        Turn("denoiser", base.denoiser, working + 2 * lora + moments),  # weights and gradients
    )
    size = f"{full.size_px}x{full.size_px} batch {full.batch_size}{_CHECKPOINTED[level]}"
    units = 0 if spec.run else full.steps * full.batch_size * full.gradient_accumulation
    disk = lora * (CHECKPOINTS + 1) + moments * CHECKPOINTS
    made = StagePlan("train", info.id, size, units, turns, disk)
    return training_made_to_fit(made, info, full, spec, known)


def _resolved_training(spec: TrainSpec, info: BaseInfo, known: Known) -> TrainSpec:
    """The request as it will run; that of a run that goes on is the run's own. Raises SpecError."""
    from headshot_ui.recipes import load_recipes
    from headshot_ui.runs import find_run
    from headshot_ui.training.plan import going_on, resolve

    if spec.run:
        with suppress(HeadshotError):  # told when it is gone on with
            return going_on(find_run(Store(known.settings), spec.person, spec.run).spec, spec, info)
    return resolve(spec, info, load_recipes(known.settings))


def plan_generate(spec: GenerateSpec, known: Known, name: str = "generate") -> StagePlan:
    """Presets × seeds → pictures."""
    from headshot_ui.generation.plan import batch_size, check_negative
    from headshot_ui.generation.speeds import guided_share
    from headshot_ui.recipes import load_recipes, with_recipe

    info = known.parts.find_base(spec.base, known.settings)
    spec = with_recipe(spec, info, load_recipes(known.settings))
    check_negative(info, spec.negative_prompt)
    sizes = _picture_sizes(spec, info, known)
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    room = card_bytes(known.settings) if known.device == "cuda" else None
    at_once = min(batch_size(known.device, width, height, room), len(sizes))
    base = BaseParts.of(info, known.dtype)
    pixels = width * height
    drawing = Turn("denoiser", base.denoiser, base.denoiser_working(DRAWING, pixels, at_once))
    turns = [Turn("text encoders", base.text, 0), drawing]
    refiner = known.parts.likely_refiner(spec, info, known.settings)
    if refiner is not None:
        other = BaseParts.of(refiner, known.dtype)
        turns.append(Turn("refiner", other.denoiser, other.denoiser_working(DRAWING, pixels, at_once)))
    turns += [Turn("VAE", base.vae, base.vae_working(DECODING, pixels)), *_faces(known)]
    size = f"{width}x{height} batch {at_once}{'' if refiner is None else ' refined'}"
    guided = guided_share(spec.speed) if spec.guided_share is None else spec.guided_share
    guided = guided if abilities(info).reads_negative_prompt else 1.0  # all its steps are alike
    steps = (spec.steps or info.defaults.sampling_steps) * (1 + guided) / 2  # a step without guidance is half a step
    disk = sum(3 * w * h for w, h in sizes) * PNG_SHARE
    made = StagePlan(name, info.id, size, steps * len(sizes), tuple(turns), int(disk))
    made = drawing_made_to_fit(made, info, (width, height), at_once, spec, known)
    return _at_speed(made, spec.speed) if abilities(info).reuses_blocks and not made.every_block else made


def _at_speed(made: StagePlan, speed: str) -> StagePlan:
    """Exact and fast are measured apart; until then one is estimated by the other."""
    from headshot_ui.generation.speeds import REUSING_SHARE

    fast = f"{made.size} fast"
    told = f"“Fast” is taken to need {REUSING_SHARE:.0%} of the time of exact pictures, as published:"
    if speed == FAST:
        note = f"{told} only those were measured on this computer yet."
        return replace(made, size=fast, alike=(Alike(made.size, REUSING_SHARE, note),))
    note = f"{told} only fast ones were measured on this computer yet."
    return replace(made, alike=(Alike(fast, 1 / REUSING_SHARE, note),))


def plan_restore(spec: RestoreSpec, known: Known, count: int | None = None, largest_px: int | None = None) -> StagePlan:
    """Pictures → the same with repaired faces. ``count`` and ``largest_px`` of pictures that are not there yet."""
    restorer = known.parts.choose_restorer(spec.restorer, known.settings)
    if count is None:
        count = _count(spec.pictures)
    largest = largest_px or _largest_pixels(spec.pictures)
    megapixels = 2 ** math.ceil(math.log2(max(largest, 2**16) / 10**6))  # so that pictures of about a size share it
    size = f"up to {megapixels:g} megapixels x{spec.upscale}{' outlined' if spec.parse_face else ''}"
    turns = [*_faces(known), restorer_turn(restorer, known)]
    if spec.parse_face:
        turns.append(Turn("face parser", 85 * 2**20, RESTORING * 512**2))
    if spec.upscale > 1:
        window = min(LARGEST_WINDOW**2, largest)
        turns.append(Turn("upscaler", 67 * 2**20, ENLARGING * window + 6 * largest * spec.upscale**2))
    disk = (count or 0) * 3 * largest * spec.upscale**2
    return StagePlan("restore", restorer.info.id, size, count or 0, tuple(turns), disk)


def restorer_turn(restorer: Restorer, known: Known) -> Turn:
    """A restorer while it repairs one face."""
    weights = sum(files_bytes([restorer.weights(known.settings)], "float32").values())
    return Turn("restorer", weights, RESTORING * restorer.info.size_px**2)


def plan_export(spec: ExportSpec, known: Known, count: int | None = None) -> StagePlan:
    """Finished pictures → files for a purpose; always on the CPU."""
    pictures = len(spec.pictures) if count is None else count
    files = pictures * len(spec.layouts)
    return StagePlan("export", "export", spec.file_type, files, _faces(known), 2 * files * EXPORTED_BYTES)


def _plan_headshots(spec: HeadshotsSpec, known: Known) -> Iterator[StagePlan]:
    from headshot_ui.generation.presets import load_presets

    yield plan_prepare(spec.prepare, known)
    yield plan_train(spec.train, known)
    yield plan_generate(without_lora(spec.generate, tuple(load_presets(known.settings))), known, "before")
    yield plan_generate(spec.generate, known)
    info = known.parts.find_base(spec.generate.base, known.settings)
    sizes = _picture_sizes(spec.generate, info, known)
    kept = min(len(sizes), spec.generate.keep_best or len(sizes))
    if spec.restore_best:
        wanted = restore_spec(spec, ("",), info, known.parts)
        with suppress(HeadshotError):  # without a restorer the rest is made all the same
            largest = max(width * height for width, height in sizes)
            yield plan_restore(wanted, known, min(spec.restore_best, kept), largest)
    if spec.export_best:
        yield plan_export(ExportSpec(spec.generate.person), known, min(spec.export_best, kept))


def restore_spec(spec: HeadshotsSpec, pictures: tuple[str, ...], info: BaseInfo, parts: Parts) -> RestoreSpec:
    """The request for restoring ``pictures`` of a whole job; drawn people are for the demo's restorer."""
    drawn = (name for name, restorer in parts.all_restorers().items() if restorer.info.demo)
    restorer = next(drawn, None) if info.demo else None
    return RestoreSpec(spec.generate.person, pictures, restorer, spec.fidelity_weight)


_PLANNERS: Mapping[type[Spec], Callable[[Any, Known], Iterator[StagePlan]]] = {
    PrepareSpec: lambda spec, known: iter([plan_prepare(spec, known)]),
    TrainSpec: lambda spec, known: iter([plan_train(spec, known)]),
    GenerateSpec: lambda spec, known: iter([plan_generate(spec, known)]),
    RestoreSpec: lambda spec, known: iter([plan_restore(spec, known)]),
    ExportSpec: lambda spec, known: iter([plan_export(spec, known)]),
    HeadshotsSpec: _plan_headshots,
}


# --- other networks -------------------------------------------------------------------------------
def _faces(known: Known) -> tuple[Turn, ...]:
    from headshot_ui.dataset.detector import find_weights

    weights = [path for path in find_weights(known.settings) if path is not None]
    return (Turn("face detector", sum(files_bytes(weights, "float32").values()), FINDING_FACES),)


def _describing(info: BaseInfo, known: Known) -> tuple[Turn, ...]:
    try:
        files = known.parts.find_captioner(known.settings, info).weights(known.settings)
    except ModelError:  # told when the photos are prepared
        return ()
    return (Turn("captioner", sum(files_bytes(files, "float32").values()), DESCRIBING),)


# --- how much there is to do ----------------------------------------------------------------------
def _picture_sizes(spec: GenerateSpec, info: BaseInfo, known: Known) -> list[tuple[int, int]]:
    """(width, height) of every picture. A preset that is not there is told when the request is checked."""
    from headshot_ui.generation.plan import picture_size
    from headshot_ui.generation.presets import load_presets

    presets = load_presets(known.settings)
    looks = spec.presets if spec.presets or spec.prompt.strip() else tuple(presets)
    aspects = [presets[look].width_over_height if look in presets else 1.0 for look in looks]
    aspects += [1.0] if spec.prompt.strip() else []
    return [picture_size(spec, info.size_px, aspect) for aspect in aspects for _ in range(spec.count)]


def _count(paths: Sequence[str]) -> int | None:
    """How many pictures there are in files, folders and archives; None where that cannot be told."""
    from headshot_ui.dataset.intake import collect

    try:
        return len(collect([str(Path(path).expanduser()) for path in paths]).sources)
    except HeadshotError:
        return None


def _stored_bytes(paths: Sequence[str]) -> int:
    total = 0
    for path in (Path(given).expanduser() for given in paths):
        with suppress(OSError):
            files = path.iterdir() if path.is_dir() else [path]
            total += sum(file.stat().st_size for file in files if file.is_file())
    return total


def _largest_pixels(paths: Sequence[str]) -> int:
    """Pixels of the largest of the first few pictures; those in archives are not looked at."""
    from PIL import Image

    largest = 0
    for path in (Path(given).expanduser() for given in paths):
        files = sorted(path.iterdir())[:HEADERS_READ] if path.is_dir() else [path]
        for file in files[:HEADERS_READ]:
            with suppress(OSError, ValueError, Image.DecompressionBombError), Image.open(file) as image:
                largest = max(largest, image.width * image.height)
    return largest or 10**6
