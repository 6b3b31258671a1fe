"""A person's headshots: several looks with a LoRA on, from words to PNG files, by diffusers' pipeline and by us.

What differs from ``generate``: every picture has words of its own, and the LoRA is put on and taken off in the time.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui import pinned
from headshot_ui.bench.rows import Row, seconds
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.timing import Timed, in_both_orders, measure
from headshot_ui.bench.work import Work
from headshot_ui.settings import NEVER

if TYPE_CHECKING:
    from headshot_ui.bench.sdxl import RandomSdxl
    from headshot_ui.generation.plan import PlannedPicture
    from headshot_ui.specs import GenerateSpec

LOOKS, EACH = ("navy-suit", "white-shirt", "beige-sweater-park", "teal-shirt-brick"), 2
TIMES, LEAST_PSNR = 1.7, 40.0
#: Of the LoRA, by size: without it other pictures come out, so that alike ones show that it was on.
STRENGTH = {"full": 0.03, "tiny": 0.3}
ONE_BY_ONE, TOGETHER, OURS = "one by one", "all at once", "ours"


@dataclass
class Batch:
    """The models, the LoRA, the request as the page sends it, and what was drawn last by each way."""

    models: RandomSdxl
    setting: BenchSetting
    lora: Path
    spec: GenerateSpec
    drawn: dict[str, list[Any]] = field(default_factory=dict)  # way → pictures in the order of their seeds

    @property
    def planned(self) -> Sequence[PlannedPicture]:
        """The pictures with their words, as ``generate`` plans them."""
        from headshot_ui.generation.plan import plan, resolve
        from headshot_ui.generation.presets import load_presets

        info, presets = self.models.base.info, load_presets(self.setting.settings)
        resolved = resolve(self.spec, info, presets)
        return plan(resolved, self.models.base, presets, info.defaults.trigger, "person")

    def timed(self, way: str) -> Timed:
        """Once. The card holds only what this way needs; a few steps before set its libraries up."""
        self.models.on_card(way != OURS)
        self.run(way, replace(self.spec, steps=3))
        pinned.settle()
        return measure(lambda: self.run(way, self.spec), self.setting.settings.device, repeats=1, warmups=0)

    def run(self, way: str, spec: GenerateSpec) -> None:
        """Words to files, by one of WAYS."""
        folder = self.setting.folder / "drawn"
        self.drawn[way] = _WAYS[way](self, spec, folder)
        shutil.rmtree(folder, ignore_errors=True)


def measure_batch(setting: BenchSetting) -> Iterator[Row]:
    """One row, beside the faster of the pipeline's two forms: one picture after the other, or all at once."""
    batch = _batch(setting)
    alone = batch.timed(ONE_BY_ONE)
    at_once = _if_it_fits(lambda: batch.timed(TOGETHER))
    together = "does not fit" if at_once is None else seconds(at_once.seconds)
    setting.say(f"  the pipeline one by one {seconds(alone.seconds)}, all at once: {together}")
    reference = ONE_BY_ONE if at_once is None or alone.seconds <= at_once.seconds else TOGETHER
    theirs, ours = in_both_orders(lambda: batch.timed(reference), lambda: batch.timed(OURS))
    yield _row(batch, reference, together, theirs, ours)
    batch.models.on_card(False)


def _batch(setting: BenchSetting) -> Batch:
    from headshot_ui.bench.denoising import make_lora
    from headshot_ui.bench.sdxl import STEPS, RandomSdxl
    from headshot_ui.specs import GenerateSpec

    setting.say("  making SDXL with random weights")
    settings = setting.settings
    pinned.allow(settings)
    models = RandomSdxl.make(setting.size, settings.device, settings.dtype, setting.folder / "configs")
    lora = make_lora(models, setting.folder / "lora.safetensors", STRENGTH[setting.size])
    looks, each, steps = (LOOKS, EACH, STEPS) if setting.full else (LOOKS[:2], 1, 3)
    spec = GenerateSpec("bench", models.base.info.id, presets=looks, count=each, steps=steps, refine="off",
                        lora=str(lora), width=models.side, height=models.side)  # fmt: skip
    return Batch(models, setting, lora, spec)


def _if_it_fits(run: Callable[[], Timed]) -> Timed | None:
    import torch

    from headshot_ui.memory import give_back

    try:
        return run()
    except torch.OutOfMemoryError:
        pass  # only outside of this block is what it held let go of
    give_back()
    return None


# --- the ways -------------------------------------------------------------------------------------------
def _one_by_one(batch: Batch, spec: GenerateSpec, folder: Path) -> list[Any]:
    return _by_pipeline(batch, spec, folder, [[picture] for picture in batch.planned])


def _together(batch: Batch, spec: GenerateSpec, folder: Path) -> list[Any]:
    return _by_pipeline(batch, spec, folder, [list(batch.planned)])


def _by_pipeline(
    batch: Batch, spec: GenerateSpec, folder: Path, groups: Sequence[Sequence[PlannedPicture]]
) -> list[Any]:
    """The published way, with the pipeline's defaults for everything that is not said."""
    from headshot_ui.bench.sdxl import GUIDANCE, noise, save_all

    pipe, side = batch.models.pipeline(), batch.models.side
    pipe.load_lora_weights(str(batch.lora.parent), weight_name=batch.lora.name)
    images: list[Any] = []
    try:
        for group in groups:
            latents = noise([picture.seed for picture in group], pipe, side).to(batch.models.device)
            images += pipe(
                [picture.prompt for picture in group], negative_prompt=[picture.negative_prompt for picture in group],
                num_inference_steps=spec.steps, guidance_scale=GUIDANCE, height=side, width=side, latents=latents,
            ).images  # fmt: skip
    finally:
        pipe.unload_lora_weights()
    save_all(images, folder)
    return images


def _ours(batch: Batch, spec: GenerateSpec, folder: Path) -> list[Any]:
    """A request as the page sends it, without a refiner and with nobody's photos to compare with."""
    from PIL import Image

    from headshot_ui.generation.runner import generate
    from headshot_ui.store import Store

    loaded = batch.models.base
    # Ordinary blocks whatever is asked: this row says nothing of compiled ones.
    store = Store(replace(batch.setting.settings, outputs_dir=folder, compile=NEVER))
    result = generate(spec, store, loaded, lambda *_, **__: None)
    loaded.use_loras(())
    loaded.keep(frozenset())  # as the next job, with another model, has it
    images = []
    for picture in sorted(result.pictures, key=lambda picture: picture.seed):
        with Image.open(picture.path) as image:
            images.append(image.convert("RGB"))
    return images


_WAYS: dict[str, Callable[[Batch, GenerateSpec, Path], list[Any]]] = {
    ONE_BY_ONE: _one_by_one, TOGETHER: _together, OURS: _ours
}  # fmt: skip


def _row(batch: Batch, reference: str, together: str, theirs: Timed, ours: Timed) -> Row:
    from headshot_ui.bench.machine import matmul_flops
    from headshot_ui.bench.sdxl import bound_tflop, psnr

    settings, steps = batch.setting.settings, batch.spec.steps or 0
    count, looks = len(batch.planned), len(batch.spec.presets)
    alike = psnr(batch.drawn[reference], batch.drawn[OURS])
    bound = None
    if batch.setting.full:
        bound = bound_tflop(count, steps, steps) * 1e12 / matmul_flops(settings.device, settings.dtype)
    return Row(
        f"SDXL, {count} pictures of {looks} looks with a LoRA, {batch.models.side} px, {steps} steps, words to files",
        theirs.seconds, ours.seconds, bound, theirs.peak_bytes, ours.peak_bytes,
        f"at least {TIMES:g} times as fast, the same pictures (PSNR at least {LEAST_PSNR:g} dB)",
        theirs.seconds >= TIMES * ours.seconds and alike >= LEAST_PSNR,
        f"The pipeline draws {reference}, its faster way here (all at once: {together}); the least alike of the "
        f"pictures has {alike:.1f} dB.",
    )  # fmt: skip


WORK = Work("batch", "A person's headshots", needs_gpu=True, measure=measure_batch)
