"""Requests: frozen, valid once built, JSON both ways. Saved beside whatever they made.

``None`` in a field means "as the recipe says, else the base model's own default" and is filled in by ``resolve``
of the stage that runs it, so that the saved spec is always complete.
"""

from __future__ import annotations

import dataclasses
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Self

from headshot_ui.errors import SpecError

REFINE_WAYS = ("off", "ensemble", "img2img")
EXACT, FAST = "exact", "fast"
SPEEDS = (EXACT, FAST)
UPSCALES = (1, 2, 4)
EXPORT_LAYOUTS = ("linkedin", "cv", "badge", "full")
EXPORT_FILE_TYPES = ("jpeg", "png", "webp")
OPTIMIZERS = ("adamw", "adamw8bit")
TIMESTEP_DENSITIES = ("logit_normal", "uniform", "sigmoid")
PHRASE, AUTOMATIC = "phrase", "automatic"
CAPTIONS = (PHRASE, AUTOMATIC)
NONE, PARTIAL, FULL = "none", "partial", "full"
CHECKPOINTING = (NONE, PARTIAL, FULL)  # each needs less memory and more time than the one before
SIZE_STEP = 64  # pixels

#: What counts in a TrainSpec where neither the person nor the recipe says anything, and no base model has a say.
TRAIN_USUAL: Mapping[str, Any] = types.MappingProxyType(
    {"gradient_accumulation": 1, "caption_dropout": 0.05, "optimizer": "adamw"}
)

_PERSON = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")


def check_person(name: str) -> None:
    """Raise SpecError unless ``name`` can be a folder on every system: 1-40 of a-z, 0-9, - and _."""
    if not _PERSON.fullmatch(name):
        raise SpecError("person", f"“{name}” cannot be used as a name: use 1 to 40 small letters, digits, - or _.")


def _between(field: str, value: float | None, low: float, high: float, what: str) -> None:
    if value is not None and not (low <= value <= high):
        raise SpecError(field, f"{what} is {value}; it must be from {low:g} to {high:g}.")


def _sides(spec: Spec, *fields: str, what: str = "") -> None:
    """Raise SpecError unless these fields, in pixels, are multiples of 64 from 64 to 2048, or None."""
    for field in fields:
        value, name = getattr(spec, field), what or field
        _between(field, value, SIZE_STEP, 2048, f"The {name}")
        if value is not None and value % SIZE_STEP:
            raise SpecError(field, f"The {name} is {value}; it must be a multiple of {SIZE_STEP}.")


def _check_resolutions(resolutions: tuple[int, ...], size_px: int | None) -> None:
    """Raise SpecError unless each can be a size of photos, comes once, and the largest is ``size_px`` if given."""
    for side in resolutions:
        _between("resolutions", side, SIZE_STEP, 2048, "A resolution")
        if side % SIZE_STEP:
            raise SpecError("resolutions", f"A resolution is {side}; it must be a multiple of {SIZE_STEP}.")
    if not resolutions or len(set(resolutions)) != len(resolutions):
        raise SpecError("resolutions", "The resolutions must be at least one, and each of them once.")
    if size_px not in (None, max(resolutions)):
        raise SpecError(
            "resolutions",
            f"The size of the photos is {size_px}, but the largest resolution is {max(resolutions)}: give one of both.",
        )


@dataclass(frozen=True)
class Spec:
    """Shared JSON round trip of all requests."""

    def to_json(self) -> dict[str, Any]:
        """Plain dict with only JSON types; tuples become lists."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Rebuild from ``to_json``. Raises SpecError for an unknown field or a wrong value."""
        hints = _hints(cls)  # type: ignore[arg-type]  # mypy takes a class for something without a hash
        for name in data:
            if name not in hints:
                raise SpecError(name, f"“{name}” is not a setting of {cls.__name__}; remove it.")
        try:
            return cls(**{name: _as_declared(hints[name], value) for name, value in data.items()})
        except TypeError as error:
            raise SpecError("", f"{cls.__name__} cannot be read: {error}.") from error


@cache
def _hints(kind: type[Spec]) -> Mapping[str, Any]:
    """Declared types of the fields. Kept, because reading them takes longer than all the rest of ``from_json``."""
    return typing.get_type_hints(kind)


def _as_declared(declared: Any, value: Any) -> Any:
    """JSON has lists only; fields declared as tuples get tuples back."""
    union = typing.get_origin(declared) in (types.UnionType, typing.Union)
    options = typing.get_args(declared) if union else (declared,)
    if isinstance(value, list) and any(typing.get_origin(option) is tuple for option in options):
        return tuple(tuple(item) if isinstance(item, list) else item for item in value)
    return value


@dataclass(frozen=True)
class PrepareSpec(Spec):
    """Photos → checked, cropped, captioned dataset."""

    person: str
    photos: tuple[str, ...]  # files, folders or zip archives
    base: str  # decides crop size and caption vocabulary
    trigger: str | None = None
    class_word: str = "person"
    held_out: int | None = None  # photos kept back to measure likeness; None: 2 of ten or more, else 1, 0 below 5
    captions: str | None = None  # one of CAPTIONS; None: "phrase", unless the recipe says otherwise
    recipe: str | None = None  # id of the recipe that fills in what is None here; None: nothing is filled in

    def __post_init__(self) -> None:
        check_person(self.person)
        if not self.photos:
            raise SpecError("photos", "No photos were given: add about twelve photos of one person.")
        _between("held_out", self.held_out, 0, 50, "The number of held-out photos")
        if self.trigger is not None and not re.fullmatch(r"[A-Za-z0-9]{1,20}", self.trigger):
            raise SpecError("trigger", "The trigger word must be 1 to 20 letters or digits without spaces.")
        if self.captions is not None and self.captions not in CAPTIONS:
            raise SpecError("captions", f"There are no captions “{self.captions}”; choose {' or '.join(CAPTIONS)}.")


@dataclass(frozen=True)
class TrainSpec(Spec):
    """Dataset → LoRA."""

    person: str
    base: str
    run: str | None = None  # folder name of the run; None makes a new one
    steps: int | None = None  # optimizer steps
    rank: int | None = None
    alpha: float | None = None  # None: equal to rank
    learning_rate: float | None = None
    batch_size: int | None = None
    gradient_accumulation: int | None = None
    gradient_checkpointing: str | None = None  # one of CHECKPOINTING; None: the first for which the memory is enough
    min_snr_gamma: float | None = None
    caption_dropout: float | None = None
    prior_preservation: bool = False
    prior_weight: float = 1.0
    class_pictures: int = 50
    seed: int = 0
    checkpoint_every: int | None = None
    sample_every: int | None = None
    optimizer: str | None = None  # one of OPTIMIZERS
    size_px: int | None = None  # side of the square photos are learned at; None: the base model's own
    recipe: str | None = None  # id of the recipe that fills in what is None here; None: "default"
    resolutions: tuple[int, ...] | None = None  # several such sides: each photo at each; None: only at ``size_px``

    def __post_init__(self) -> None:
        check_person(self.person)
        _between("steps", self.steps, 1, 100_000, "The number of steps")
        _between("rank", self.rank, 1, 256, "The LoRA rank")
        _between("alpha", self.alpha, 0.01, 512, "The LoRA alpha")
        _between("learning_rate", self.learning_rate, 1e-7, 1.0, "The learning rate")
        _between("batch_size", self.batch_size, 1, 64, "The batch size")
        _between("gradient_accumulation", self.gradient_accumulation, 1, 128, "Gradient accumulation")
        _between("min_snr_gamma", self.min_snr_gamma, 0.1, 100, "Min-SNR gamma")
        _between("caption_dropout", self.caption_dropout, 0, 1, "Caption dropout")
        _between("prior_weight", self.prior_weight, 0, 100, "The weight of prior preservation")
        _between("class_pictures", self.class_pictures, 1, 1000, "The number of class pictures")
        _between("checkpoint_every", self.checkpoint_every, 1, 100_000, "Steps between checkpoints")
        _between("sample_every", self.sample_every, 1, 100_000, "Steps between samples")
        if self.optimizer is not None and self.optimizer not in OPTIMIZERS:
            raise SpecError("optimizer", f"There is no optimizer “{self.optimizer}”; choose {' or '.join(OPTIMIZERS)}.")
        if self.gradient_checkpointing is not None and self.gradient_checkpointing not in CHECKPOINTING:
            raise SpecError(
                "gradient_checkpointing",
                f"“{self.gradient_checkpointing}” is no gradient checkpointing; choose {' or '.join(CHECKPOINTING)}.",
            )
        _sides(self, "size_px", what="size of the photos")
        if self.resolutions is not None:
            _check_resolutions(self.resolutions, self.size_px)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """As of any request; gradient checkpointing was on or off before it had levels."""
        data = dict(data)
        if isinstance(data.get("gradient_checkpointing"), bool):
            data["gradient_checkpointing"] = FULL if data["gradient_checkpointing"] else NONE
        return super().from_json(data)


@dataclass(frozen=True)
class GenerateSpec(Spec):
    """Preset or prompt × seeds → pictures. Written whole into every PNG it makes."""

    person: str
    base: str
    presets: tuple[str, ...] = ()  # ids; with an empty prompt and no presets: every headshot preset
    prompt: str = ""  # free text; "{subject}" is replaced by trigger and class word
    negative_prompt: str | None = None
    count: int = 4  # pictures per preset (or of the prompt)
    seed: int = 0  # picture i of the whole request uses seed + i
    steps: int | None = None
    guidance_scale: float | None = None
    lora: str | None = None  # run folder name, path of a .safetensors file, "latest" or None for the bare base
    lora_scale: float = 1.0
    width: int | None = None
    height: int | None = None
    keep_best: int | None = None  # None keeps all
    refine: str | None = None  # one of REFINE_WAYS
    refiner: str | None = None  # id of a refiner; None: the first one made for this base
    refiner_switch: float | None = None  # "ensemble": share of the noise schedule after which the refiner takes over
    refiner_strength: float | None = None  # "img2img": share of the steps the refiner draws again
    recipe: str | None = None  # id of the recipe that fills in what is None here; None: "default"
    speed: str = EXACT  # one of SPEEDS: "fast" leaves out what changes a picture little
    guided_share: float | None = None  # of the steps, those steered by the guidance scale; None: as the speed says

    def __post_init__(self) -> None:
        check_person(self.person)
        _between("count", self.count, 1, 512, "The number of pictures")
        _between("seed", self.seed, 0, 2**63 - 1, "The seed")
        _between("steps", self.steps, 1, 500, "The number of sampling steps")
        _between("guidance_scale", self.guidance_scale, 1, 30, "The guidance scale")
        _between("lora_scale", self.lora_scale, -2, 3, "The LoRA strength")
        _between("keep_best", self.keep_best, 1, 512, "The number of pictures to keep")
        _sides(self, "width", "height")
        if self.refine is not None and self.refine not in REFINE_WAYS:
            raise SpecError("refine", f"“{self.refine}” is no way of refining; choose from {', '.join(REFINE_WAYS)}.")
        _between("refiner_switch", self.refiner_switch, 0.05, 0.95, "The moment the refiner takes over")
        _between("refiner_strength", self.refiner_strength, 0.01, 1, "The strength of refining")
        if self.speed not in SPEEDS:
            raise SpecError("speed", f"“{self.speed}” is no speed of drawing; choose {' or '.join(SPEEDS)}.")
        _between("guided_share", self.guided_share, 0, 1, "The share of guided steps")


@dataclass(frozen=True)
class RestoreSpec(Spec):
    """Pictures → the same pictures with repaired faces, and larger if asked for."""

    person: str  # whose folder the results go to
    pictures: tuple[str, ...]  # files, folders or zip archives; any picture, not only our own
    restorer: str | None = None  # id; None: the best one that is installed
    fidelity_weight: float = 0.5  # 0 repairs most, 1 keeps most of what is there
    faces: tuple[int, ...] = ()  # which faces of each picture, largest first from 1; () restores all
    upscale: int = 1  # 1, 2 or 4: enlarges the whole picture
    parse_face: bool = False  # blend in along the outline of the face instead of a soft square

    def __post_init__(self) -> None:
        check_person(self.person)
        if not self.pictures:
            raise SpecError("pictures", "No picture was given: choose at least one to restore.")
        _between("fidelity_weight", self.fidelity_weight, 0, 1, "The fidelity weight")
        if self.upscale not in UPSCALES:
            raise SpecError("upscale", f"The enlargement is {self.upscale}; it must be 1, 2 or 4.")
        if any(face < 1 for face in self.faces):
            raise SpecError("faces", "Faces are numbered from 1, the largest first.")


@dataclass(frozen=True)
class ExportSpec(Spec):
    """Finished pictures → crops for a purpose, as files of the wanted kind, and a zip of them."""

    person: str
    pictures: tuple[str, ...] = ()  # files; () means every starred picture of the person
    layouts: tuple[str, ...] = EXPORT_LAYOUTS
    file_type: str = "jpeg"  # one of EXPORT_FILE_TYPES
    quality: int = 92  # of JPEG and WebP, 1 to 100
    disclose: bool = True  # say in the file that the picture is AI-generated

    def __post_init__(self) -> None:
        check_person(self.person)
        if not self.layouts:
            raise SpecError("layouts", "No layout was chosen: choose at least one.")
        for layout in self.layouts:
            if layout not in EXPORT_LAYOUTS:
                raise SpecError("layouts", f"There is no layout “{layout}”; choose from {', '.join(EXPORT_LAYOUTS)}.")
        if self.file_type not in EXPORT_FILE_TYPES:
            kinds = ", ".join(EXPORT_FILE_TYPES)
            raise SpecError("file_type", f"“{self.file_type}” is no kind of file that can be written; choose {kinds}.")
        _between("quality", self.quality, 1, 100, "The quality")


@dataclass(frozen=True)
class DownloadSpec(Spec):
    """Entries of the catalogue of models → their files, whole and checked, under the models folder."""

    entries: tuple[str, ...]  # ids
    check_only: bool = False  # read what is there and say what is damaged; fetch nothing

    def __post_init__(self) -> None:
        if not self.entries:
            raise SpecError("entries", "No model was named: “models list” shows what there is.")
        if len(set(self.entries)) != len(self.entries):
            raise SpecError("entries", "A model was named twice: name each once.")


@dataclass(frozen=True)
class HeadshotsSpec(Spec):
    """All of it: photos in, ranked headshots out, the best of them restored and exported if asked for."""

    prepare: PrepareSpec
    train: TrainSpec
    generate: GenerateSpec
    restore_best: int = 0  # so many of the best pictures are restored
    export_best: int = 0  # so many of the best (restored, where they were) are exported in every layout
    fidelity_weight: float = 0.5

    def __post_init__(self) -> None:
        if not (self.prepare.person == self.train.person == self.generate.person):
            raise SpecError("person", "Preparing, training and generating must be for the same person.")
        _between("restore_best", self.restore_best, 0, 512, "The number of pictures to restore")
        _between("export_best", self.export_best, 0, 512, "The number of pictures to export")
        _between("fidelity_weight", self.fidelity_weight, 0, 1, "The fidelity weight")

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        parts: dict[str, type[Spec]] = {"prepare": PrepareSpec, "train": TrainSpec, "generate": GenerateSpec}
        read: dict[str, Any] = {
            name: parts[name].from_json(value) if name in parts else value for name, value in data.items()
        }
        return cls(**read)
