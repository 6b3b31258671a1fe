"""Drawing: eight pictures of 1024 px from words to PNG files, as diffusers' pipeline draws them and as we do."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui import pinned
from headshot_ui.bench.compiled import CompilingClock
from headshot_ui.bench.rows import Row, seconds
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.timing import Timed, in_both_orders, measure, together
from headshot_ui.bench.work import Work

if TYPE_CHECKING:
    from headshot_ui.bench.sdxl import RandomSdxl

PICTURES, LEAST_PSNR = 8, 40.0
EXACT, FAST = 1.7, 3.0  # times as fast as the reference
PROMPT = "portrait photograph of a person, wearing a navy suit, in front of a bright office"


@dataclass
class Drawing:
    """The models, the request, and what was drawn last by each way."""

    models: RandomSdxl
    setting: BenchSetting
    pictures: int
    steps: int
    drawn: dict[str, list[Any]] = field(default_factory=dict)  # way → pictures in the order of their seeds
    stages: dict[str, dict[str, float]] = field(default_factory=dict)  # way → stage → seconds, of the last time
    clocks: dict[str, CompilingClock] = field(default_factory=dict)  # by way; see ``clock``

    def clock(self, way: str) -> CompilingClock:
        """Of one of the ways; only ours compile."""
        return self.clocks.setdefault(way, CompilingClock.of(self.setting))

    @property
    def seeds(self) -> range:
        return range(self.pictures)

    def run(self, way: str, steps: int | None = None) -> None:
        """Words to files, one of WAYS."""
        folder = self.setting.folder / "drawn"
        self.drawn[way] = _WAYS[way](self, self.steps if steps is None else steps, folder)
        shutil.rmtree(folder, ignore_errors=True)

    def timed(self, way: str) -> Timed:
        """Once. The card holds only what this way needs; a few steps before set its libraries up."""
        self.models.on_card(way not in OURS)
        self.run(way, steps=3)
        self.clock(way).add_stage(self.stages.get(way, {}))
        pinned.settle()
        return measure(lambda: self.run(way), self.setting.settings.device, repeats=1, warmups=0)


def measure_generate(setting: BenchSetting) -> Iterator[Row]:
    """Exact and fast beside the faster of the pipeline's two forms.

    A run takes seconds, not milliseconds, so a third of the repeats are made (two of seven): both orders, A B B A.
    """
    from headshot_ui.bench.denoising import measure_denoising

    drawing = _drawing(setting)
    drawing.clock("exact")  # before anything is drawn: it says where what is compiled is kept
    one_by_one = _pictures_of(drawing, "one by one", max(1, drawing.pictures // 4))
    at_once = drawing.timed("together")
    reference = "one by one" if one_by_one < at_once.seconds else "together"
    setting.say(f"  the pipeline one by one {seconds(one_by_one)}, all at once {seconds(at_once.seconds)}")
    rounds = (max(2, setting.repeats // 3) + 1) // 2
    theirs, ours = in_both_orders(lambda: drawing.timed(reference), lambda: drawing.timed("exact"), rounds)
    yield _exact_row(drawing, reference, theirs, ours, setting)
    fast = together([drawing.timed("fast") for _ in range(max(1, setting.repeats // 6))])
    yield _fast_row(drawing, theirs, fast, setting)
    drawing.models.on_card(False)
    yield measure_denoising(drawing.models, setting, PROMPT, drawing.steps)


def _drawing(setting: BenchSetting) -> Drawing:
    from headshot_ui.bench.sdxl import STEPS, RandomSdxl

    setting.say("  making SDXL with random weights")
    settings = setting.settings
    pinned.allow(settings)
    models = RandomSdxl.make(setting.size, settings.device, settings.dtype, setting.folder / "configs")
    return Drawing(models, setting, *((PICTURES, STEPS) if setting.full else (2, 3)))


def _pictures_of(drawing: Drawing, way: str, count: int) -> float:
    """Seconds for all pictures, told from ``count`` of them: each takes the same."""
    few = replace(drawing, pictures=count)
    return few.timed(way).seconds * drawing.pictures / count


# --- the two ways ---------------------------------------------------------------------------------------
def _one_by_one(drawing: Drawing, steps: int, folder: Path) -> list[Any]:
    return [picture for seed in drawing.seeds for picture in _by_pipeline(drawing, [seed], steps, folder / f"{seed}")]


def _all_at_once(drawing: Drawing, steps: int, folder: Path) -> list[Any]:
    return _by_pipeline(drawing, drawing.seeds, steps, folder)


def _by_pipeline(drawing: Drawing, seeds: Sequence[int], steps: int, folder: Path) -> list[Any]:
    """The published way, with the pipeline's defaults for everything that is not said."""
    from headshot_ui.bench.sdxl import GUIDANCE, noise, save_all

    pipe, side = drawing.models.pipeline(), drawing.models.side
    latents = noise(seeds, pipe, side).to(drawing.models.device)
    images = pipe(
        [PROMPT] * len(seeds), num_inference_steps=steps, guidance_scale=GUIDANCE, height=side, width=side,
        latents=latents,
    ).images  # fmt: skip
    save_all(images, folder)
    return list(images)


def _exact(drawing: Drawing, steps: int, folder: Path) -> list[Any]:
    return _by_us(drawing, "exact", steps, folder)


def _fast(drawing: Drawing, steps: int, folder: Path) -> list[Any]:
    return _by_us(drawing, "fast", steps, folder)


def _by_us(drawing: Drawing, speed: str, steps: int, folder: Path) -> list[Any]:
    """A request as the page sends it, without a refiner and with nobody's photos to compare with."""
    from PIL import Image

    from headshot_ui.generation.runner import generate
    from headshot_ui.specs import GenerateSpec
    from headshot_ui.store import Store

    clock = StageClock()
    spec = GenerateSpec("bench", "bench-sdxl", prompt=PROMPT, count=drawing.pictures, steps=steps, refine="off",
                        speed=speed)  # fmt: skip
    store = Store(replace(drawing.setting.settings, outputs_dir=folder))
    loaded = drawing.models.base
    result = generate(spec, store, loaded, clock)
    loaded.keep(frozenset())  # as the next job, with another model, has it
    drawing.stages[speed] = clock.stop()
    images = []
    for picture in sorted(result.pictures, key=lambda picture: picture.seed):
        with Image.open(picture.path) as image:
            images.append(image.convert("RGB"))
    return images


_WAYS: dict[str, Callable[[Drawing, int, Path], list[Any]]] = {
    "one by one": _one_by_one, "together": _all_at_once, "exact": _exact, "fast": _fast
}  # fmt: skip
OURS = frozenset({"exact", "fast"})


class StageClock:
    """A reporter that notes how long each stage took."""

    def __init__(self) -> None:
        self._stage, self._since = "", time.perf_counter()
        self._taken: dict[str, float] = {}

    def __call__(self, stage: str, step: int, total: int, *_: object, **__: object) -> None:
        if stage != self._stage:
            self._next(stage)

    def _next(self, stage: str) -> None:
        now = time.perf_counter()
        if self._stage:
            self._taken[self._stage] = self._taken.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = stage, now

    def stop(self) -> dict[str, float]:
        self._next("")
        return self._taken


# --- rows -----------------------------------------------------------------------------------------------
def _exact_row(drawing: Drawing, reference: str, theirs: Timed, ours: Timed, setting: BenchSetting) -> Row:
    from headshot_ui.bench.sdxl import psnr

    alike = psnr(drawing.drawn[reference], drawing.drawn["exact"])
    ratio = theirs.seconds / ours.seconds
    note = (
        f"The pipeline draws {'all at once' if reference == 'together' else 'one by one, which is faster here'}; the "
        f"least alike of the pictures has {alike:.1f} dB. {_exactness(drawing, reference)}"
        f"{told_stages(drawing.stages['exact'])}"
    )
    clock = drawing.clock("exact")
    return Row(
        f"{_what(drawing)}, exact{clock.words}", theirs.seconds, ours.seconds, _bound(drawing, drawing.steps),
        theirs.peak_bytes, ours.peak_bytes,
        f"at least {EXACT:g} times as fast, the same pictures (PSNR at least {LEAST_PSNR:g} dB)",
        ratio >= EXACT and alike >= LEAST_PSNR, note, clock.found,
    )  # fmt: skip


def _fast_row(drawing: Drawing, theirs: Timed, fast: Timed, setting: BenchSetting) -> Row:
    from headshot_ui.bench.sdxl import psnr
    from headshot_ui.generation.speeds import guided_share

    alike = psnr(drawing.drawn["exact"], drawing.drawn["fast"])
    guided = round(guided_share("fast") * drawing.steps)
    return Row(
        f"{_what(drawing)}, fast{drawing.clock('fast').words}", theirs.seconds, fast.seconds, _bound(drawing, guided),
        theirs.peak_bytes, fast.peak_bytes, f"at least {FAST:g} times as fast", theirs.seconds / fast.seconds >= FAST,
        f"Guided for {guided} of {drawing.steps} steps; PSNR to exact {alike:.1f} dB. "
        f"{told_stages(drawing.stages['fast'])}",
        drawing.clock("fast").found,
    )  # fmt: skip


def _what(drawing: Drawing) -> str:
    return f"SDXL, {drawing.pictures} pictures of {drawing.models.side} px, {drawing.steps} steps, words to files"


def told_stages(stages: Mapping[str, float]) -> str:
    """Stage → seconds as a sentence."""
    return "Ours: " + ", ".join(f"{stage} {seconds(taken)}" for stage, taken in stages.items()) + "."


def _bound(drawing: Drawing, guided_steps: int) -> float | None:
    """Arithmetic alone, at the rate of a large matrix product; at full size only, for which it was counted."""
    from headshot_ui.bench.machine import matmul_flops
    from headshot_ui.bench.sdxl import bound_tflop

    settings = drawing.setting.settings
    if not drawing.setting.full:
        return None
    flops = matmul_flops(settings.device, settings.dtype)
    return bound_tflop(drawing.pictures, drawing.steps, guided_steps) * 1e12 / flops


def _exactness(drawing: Drawing, reference: str) -> str:
    """How far the first picture of each way is from the same in float32: which of them is the more exact."""
    from headshot_ui.bench.sdxl import in_float32, psnr

    settings = drawing.setting.settings
    if settings.dtype == "float32":
        return ""
    drawing.models.on_card(False)
    with in_float32(drawing.models):
        true = _by_pipeline(drawing, [0], drawing.steps, drawing.setting.folder / "true")
    theirs, ours = (psnr(true, drawing.drawn[way][:1]) for way in (reference, "exact"))
    return f"To the pipeline in float32, the pipeline has {theirs:.1f} dB and ours {ours:.1f} dB. "


WORK = Work("generate", "Drawing", needs_gpu=True, measure=measure_generate)
