"""What each stage of a request uses, told before it runs: models on the device, bytes, work and disk.

The runners note what a stage really took under the names given here, so that the next plan finds it again. Until
then memory is estimated: weights by the headers of their files, computing by the figures below. Those are for
Stable Diffusion XL in 16 bit and were measured with a full-size model at 1024 x 1024; for another model they go by
the square root of its parameters, which is about its width, and twice as much for 32 bit.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.errors import HeadshotError, SpecError
from headshot_ui.families import weight_places
from headshot_ui.memory import DECODING, ENCODING, FilePart, StoredTensor, card_bytes, files_bytes, read_header
from headshot_ui.specs import ExportSpec, GenerateSpec, HeadshotsSpec, PrepareSpec, RestoreSpec, Spec, TrainSpec
from headshot_ui.store import Store

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo, RefinerInfo
    from headshot_ui.parts import Parts
    from headshot_ui.restoration.protocol import Restorer
    from headshot_ui.settings import Settings

PICTURES_BEFORE = 4  # drawn without the LoRA to compare with; more would only cost time

SDXL_DENOISER_PARAMETERS, SDXL_VAE_PARAMETERS = 2.567e9, 83.7e6
#: Bytes for each pixel of each picture in a batch.
DRAWING, LEARNING, LEARNING_CHECKPOINTED = 1200, 7500, 900  # of the VAE: memory.DECODING and ENCODING
RESTORING = 4000  # for each pixel of an aligned face, whatever the network
FINDING_FACES = 100 * 2**20
LARGEST_WINDOW = 512  # pixels of a picture that an upscaler sees at once
ENLARGING = 12_000  # for each of those pixels
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
class StagePlan:
    """One stage before it runs."""

    name: str  # as it is metered
    model: str  # id under which its peaks are kept
    size: str  # what memory depends on besides the model
    units: float  # work, which seconds grow with; 0: not known
    turns: tuple[Turn, ...]
    disk_bytes: int = 0


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
    return StagePlan("prepare", info.id, "", photos or 0, _faces(known), crops + _stored_bytes(spec.photos))


def plan_train(spec: TrainSpec, known: Known) -> StagePlan:
    """Dataset → LoRA."""
    from headshot_ui.training.plan import plan_of

    info = known.parts.find_base(spec.base, known.settings)
    full = plan_of(_resolved_training(spec, info, known))
    base = _BaseParts.of(info, known)
    places = weight_places(info)
    lora, moments = lora_bytes(places, full.rank), moments_bytes(places, full.rank, full.optimizer)
    rate = LEARNING_CHECKPOINTED if full.gradient_checkpointing else LEARNING
    pixels = full.size_px**2
    turns = (
        Turn("text encoders", base.text, 0),
        Turn("VAE", base.vae, base.vae_working(ENCODING, pixels)),
        Turn("denoiser", base.denoiser,
             base.denoiser_working(rate, pixels * full.batch_size) + 2 * lora + moments),  # weights and gradients
    )  # fmt: skip
    checkpointed = " checkpointed" if full.gradient_checkpointing else ""
    size = f"{full.size_px}x{full.size_px} batch {full.batch_size}{checkpointed}"
    units = 0 if spec.run else full.steps * full.batch_size * full.gradient_accumulation
    return StagePlan("train", info.id, size, units, turns, lora * (CHECKPOINTS + 1) + moments * CHECKPOINTS)


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
    from headshot_ui.generation.plan import batch_size
    from headshot_ui.recipes import load_recipes, with_recipe

    info = known.parts.find_base(spec.base, known.settings)
    spec = with_recipe(spec, info, load_recipes(known.settings))
    sizes = _picture_sizes(spec, info, known)
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    room = card_bytes(known.settings) if known.device == "cuda" else None
    at_once = min(batch_size(known.device, width, height, room), len(sizes))
    base = _BaseParts.of(info, known)
    pixels = width * height
    drawing = Turn("denoiser", base.denoiser, base.denoiser_working(DRAWING, pixels * at_once))
    turns = [Turn("text encoders", base.text, 0), drawing]
    refiner = known.parts.likely_refiner(spec, info, known.settings)
    if refiner is not None:
        other = _BaseParts.of(refiner, known)
        turns.append(Turn("refiner", other.denoiser, other.denoiser_working(DRAWING, pixels * at_once)))
    turns += [Turn("VAE", base.vae, base.vae_working(DECODING, pixels)), *_faces(known)]
    size = f"{width}x{height} batch {at_once}{'' if refiner is None else ' refined'}"
    steps = spec.steps or info.defaults.sampling_steps
    disk = sum(3 * w * h for w, h in sizes) * PNG_SHARE
    return StagePlan(name, info.id, size, steps * len(sizes), tuple(turns), int(disk))


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


# --- parts ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _BaseParts:
    """Bytes of the weights of a base model or a refiner, by what they are for."""

    text: int
    vae: int
    denoiser: int
    item_bytes: int  # of one number in memory
    vae_item_bytes: int

    @classmethod
    def of(cls, info: BaseInfo | RefinerInfo, known: Known) -> _BaseParts:
        text = vae = denoiser = 0
        for part, size in files_bytes(weight_places(info), known.dtype).items():
            if part.startswith("text_encoder"):
                text += size
            elif part.startswith("vae"):
                vae += size
            else:
                denoiser += size
        item = 4 if known.dtype == "float32" else 2
        wide = item == 2 and _computes_in_float32(info.folder / "vae" / "config.json")
        return cls(text, 2 * vae if wide else vae, denoiser, item, 4 if wide else item)

    def denoiser_working(self, bytes_per_pixel: float, pixels: int) -> int:
        return _working(self.denoiser, SDXL_DENOISER_PARAMETERS, self.item_bytes, bytes_per_pixel * pixels)

    def vae_working(self, bytes_per_pixel: float, pixels: int) -> int:
        return _working(self.vae, SDXL_VAE_PARAMETERS, self.vae_item_bytes, bytes_per_pixel * pixels)


def _working(weights: int, sdxl_parameters: float, item_bytes: int, of_sdxl: float) -> int:
    width = math.sqrt(weights / item_bytes / sdxl_parameters)
    return int(of_sdxl * width * item_bytes / 2)


def _computes_in_float32(vae_config: Path) -> bool:
    """Whether a VAE asks for float32 beside a denoiser in 16 bit, as SDXL's own does."""
    try:
        return bool(json.loads(vae_config.read_text(encoding="utf-8")).get("force_upcast", True))
    except (OSError, ValueError, AttributeError):
        return False


def lora_bytes(places: Sequence[Path | FilePart], rank: int) -> int:
    """Bytes in float32 of a LoRA of that rank on every attention and feed-forward matrix of the denoiser there."""
    return 4 * rank * sum(sum(shape) for shape in _lora_shapes(places))


def moments_bytes(places: Sequence[Path | FilePart], rank: int, optimizer: str) -> int:
    """Bytes of the two moments of every number of such a LoRA."""
    from headshot_ui.training.optimizers import moment_bytes

    return sum(moment_bytes(rank * side, optimizer) for shape in _lora_shapes(places) for side in shape)


def _lora_shapes(places: Sequence[Path | FilePart]) -> list[tuple[int, ...]]:
    """(rows, columns) of the matrices that get a LoRA; both layouts call them alike."""
    return [
        tuple(tensor.shape)
        for place in places
        for tensor in _denoiser_of(place)
        if len(tensor.shape) == 2 and (".attn" in tensor.name and ".to_" in tensor.name or ".ff.net." in tensor.name)
    ]


def _denoiser_of(place: Path | FilePart) -> Iterator[StoredTensor]:
    """The tensors of the denoiser of a folder in diffusers layout, or of a part that is one."""
    if isinstance(place, FilePart):
        if not place.name.startswith(("text_encoder", "vae")):
            yield from place.tensors()
        return
    for path in sorted(place.glob("*/*.safetensors")):
        if not path.parent.name.startswith(("text_encoder", "vae")) and not _is_double(path):
            yield from read_header(path)


def _is_double(path: Path) -> bool:
    """Whether the same weights lie beside it under the plain name."""
    return ".fp16." in path.name and path.with_name(path.name.replace(".fp16.", ".")).is_file()


def _faces(known: Known) -> tuple[Turn, ...]:
    from headshot_ui.dataset.detector import find_weights

    weights = [path for path in find_weights(known.settings) if path is not None]
    return (Turn("face detector", sum(files_bytes(weights, "float32").values()), FINDING_FACES),)


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
