"""From a request to the exact list of pictures to draw, before any of them is drawn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from headshot_ui.errors import SpecError
from headshot_ui.families import abilities
from headshot_ui.families.protocol import BaseInfo, Vocabulary
from headshot_ui.generation.presets import Preset
from headshot_ui.generation.prompts import render, render_free, render_negative
from headshot_ui.generation.refiner_choice import OFF, Refining
from headshot_ui.generation.speeds import guided_share
from headshot_ui.specs import GenerateSpec

#: No real word: models that know it understand any text.
_NO_WORD = "zqxwvkj"
_SIZE_STEP = 64  # pixels; the limits below are those of GenerateSpec
_SMALLEST, _LARGEST = 64, 2048

#: Pixels drawn in one batch; the denoiser's memory grows with them. Four of 1024x1024 suit a 24 GB card and eight one
#: of 48 GB; more at once are no faster. Apple's shared memory gets one of those. On a CPU pictures are drawn one by
#: one: four at once were measured 5 % faster, but rounding depends on the size of the batch, and so a picture can be
#: made again bit for bit.
PIXELS_PER_BATCH = {"cpu": 0, "mps": 1024**2, "cuda": 4 * 1024**2}
LARGEST_BATCH = 16


@dataclass(frozen=True)
class PlannedPicture:
    """One picture with everything that decides how it looks, apart from base, LoRA, steps and guidance."""

    index: int  # 0-based place in the whole request
    preset: str  # id; "" for a free prompt
    title: str  # for people
    prompt: str
    negative_prompt: str
    seed: int
    width: int
    height: int


def resolve(
    spec: GenerateSpec, info: BaseInfo, presets: Mapping[str, Preset], refining: Refining | None = None
) -> GenerateSpec:
    """The request with the base's defaults filled in, every preset named and the refiner too, if there is one.

    ``negative_prompt``, ``width`` and ``height`` stay None where each preset decides.
    Raises SpecError for another base, an unknown preset, and a negative prompt that the base does not read.
    """
    if spec.base != info.id:
        raise SpecError("base", f"The request is for the base “{spec.base}”, but “{info.id}” is loaded; choose it.")
    check_negative(info, spec.negative_prompt)
    for preset_id in spec.presets:
        if preset_id not in presets:
            raise SpecError("presets", f"There is no preset “{preset_id}”; choose from {', '.join(presets)}.")
    return replace(
        spec,
        presets=spec.presets if spec.presets or spec.prompt.strip() else tuple(presets),
        steps=info.defaults.sampling_steps if spec.steps is None else spec.steps,
        guidance_scale=info.defaults.guidance_scale if spec.guidance_scale is None else spec.guidance_scale,
        refine=OFF if refining is None else refining.way,
        refiner=None if refining is None else refining.info.id,
        refiner_switch=info.defaults.refiner_switch if spec.refiner_switch is None else spec.refiner_switch,
        refiner_strength=info.defaults.refiner_strength if spec.refiner_strength is None else spec.refiner_strength,
        guided_share=_guided_share(spec) if abilities(info).reads_negative_prompt else 1.0,
    )


def _guided_share(spec: GenerateSpec) -> float:
    return guided_share(spec.speed) if spec.guided_share is None else spec.guided_share


def plan(
    spec: GenerateSpec, base: Vocabulary, presets: Mapping[str, Preset], trigger: str, class_word: str
) -> tuple[PlannedPicture, ...]:
    """The pictures of a resolved request: each preset ``count`` times, then the free prompt ``count`` times.

    Raises SpecError naming every word the base model does not know, and for a placeholder in the prompt.
    """
    closed = bool(base.unknown_words(_NO_WORD))
    family, native = base.info.family, base.info.size_px
    reads_negative = abilities(base.info).reads_negative_prompt
    looks: list[tuple[str, str, str, str, float]] = []
    for preset in (presets[preset_id] for preset_id in spec.presets):
        prompt = render(preset, trigger, class_word, closed, family)
        negative = render_negative(preset, closed, family) if reads_negative else ""
        looks.append((preset.id, preset.title, prompt, negative, preset.width_over_height))
    if spec.prompt.strip():
        looks.append(("", "Own prompt", render_free(spec.prompt, trigger, class_word), "", 1.0))
    pictures: list[PlannedPicture] = []
    for preset_id, title, prompt, negative, aspect in looks:
        width, height = picture_size(spec, native, aspect)
        if spec.negative_prompt is not None:
            negative = spec.negative_prompt
        for _ in range(spec.count):
            index = len(pictures)
            seed = (spec.seed + index) % 2**63
            pictures.append(PlannedPicture(index, preset_id, title, prompt, negative, seed, width, height))
    check_words(base, "prompt", [picture.prompt for picture in pictures])
    check_words(base, "negative_prompt", [picture.negative_prompt for picture in pictures])
    return tuple(pictures)


def picture_size(spec: GenerateSpec, native_px: int, width_over_height: float) -> tuple[int, int]:
    """(width, height) in pixels, multiples of 64: as asked, else the native area in the preset's aspect."""
    if spec.width is not None and spec.height is not None:
        return spec.width, spec.height
    if spec.width is not None:
        return spec.width, _to_step(spec.width / width_over_height)
    if spec.height is not None:
        return _to_step(spec.height * width_over_height), spec.height
    root = math.sqrt(width_over_height)
    return _to_step(native_px * root), _to_step(native_px / root)


def batches(
    pictures: Sequence[PlannedPicture], device: str, vram_limit_bytes: int | None = None
) -> list[list[PlannedPicture]]:
    """Pictures of one size together, in their order, as many at once as the device's memory suits."""
    by_size: dict[tuple[int, int], list[PlannedPicture]] = {}
    for picture in pictures:
        by_size.setdefault((picture.width, picture.height), []).append(picture)
    result = []
    for (width, height), group in by_size.items():
        most = batch_size(device, width, height, vram_limit_bytes)
        result += [group[start : start + most] for start in range(0, len(group), most)]
    return result


def batch_size(device: str, width: int, height: int, vram_limit_bytes: int | None = None) -> int:
    """Pictures of ``width`` x ``height`` pixels to denoise at once; 1 to ``LARGEST_BATCH``.

    A GPU's share goes by its memory, or the limit that is set, up to 48 GB.
    """
    pixels = PIXELS_PER_BATCH.get(device, 0)
    if device == "cuda" and vram_limit_bytes is not None:
        # A card sold as 48 GB has a little less, and that little must not cost it a picture.
        pixels = int(pixels * min(2.0, 1.05 * vram_limit_bytes / (24 * 2**30)))
    return min(max(pixels // (width * height), 1), LARGEST_BATCH)


def _to_step(pixels: float) -> int:
    return min(max(round(pixels / _SIZE_STEP) * _SIZE_STEP, _SMALLEST), _LARGEST)


def check_negative(info: BaseInfo, text: str | None) -> None:
    """Raise SpecError for a negative prompt that the base model does not read: it would be without effect."""
    if text and text.strip() and not abilities(info).reads_negative_prompt:
        raise SpecError(
            "negative_prompt",
            f"“{info.title}” reads no words for what should not be in the picture: leave them out, and describe what "
            "should be there.",
        )


def check_words(base: Vocabulary, field: str, texts: Sequence[str]) -> None:
    """Raise SpecError for ``field`` naming every word of ``texts`` that the base does not know."""
    unknown = dict.fromkeys(word for text in dict.fromkeys(texts) for word in base.unknown_words(text))
    if unknown:
        words = ", ".join(f"“{word}”" for word in unknown)
        several = "these words" if len(unknown) > 1 else "this word"
        raise SpecError(field, f"The model “{base.info.title}” does not know {several}: {words}; use other words.")
