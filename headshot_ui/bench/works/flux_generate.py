"""Drawing with FLUX.1: a picture of 1024 px in 28 steps, from words to a PNG file, as diffusers' pipeline and we do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headshot_ui import pinned
from headshot_ui.bench.compiled import CompilingClock
from headshot_ui.bench.flux import DECODING_TFLOP, GUIDANCE, MODEL, PASS_TFLOP, STEPS, RandomFlux, bound
from headshot_ui.bench.rows import Row
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.timing import Timed, in_both_orders, measure, together
from headshot_ui.bench.work import Work
from headshot_ui.bench.works.generate import LEAST_PSNR, PROMPT, StageClock, told_stages

EXACT, FAST = 1.3, 2.2  # times as fast as the reference
SEED = 3


@dataclass
class Drawing:
    """The models, and what was drawn last by each way."""

    models: RandomFlux
    steps: int
    drawn: dict[str, Any] = field(default_factory=dict)  # way → picture
    stages: dict[str, dict[str, float]] = field(default_factory=dict)  # way → stage → seconds, of the last time
    clocks: dict[str, CompilingClock] = field(default_factory=dict)  # by way; see ``clock``

    def clock(self, way: str) -> CompilingClock:
        """Of one of the ways; only ours compile."""
        return self.clocks.setdefault(way, CompilingClock.of(self.models.setting))

    @property
    def side(self) -> int:
        return self.models.info.size_px

    def timed(self, way: str) -> Timed:
        """From a model that was just read; a few steps before set its libraries up and put it on the card.

        What these begin to lock in memory is waited for: no step is recorded meanwhile.
        """
        setting = self.models.setting
        with _WAYS[way](self) as draw:
            draw(min(3, self.steps))
            self.clock(way).add_stage(self.stages.get(way, {}))
            pinned.settle()
            return measure(lambda: draw(self.steps), setting.settings.device, repeats=1, warmups=0)


def measure_generate(setting: BenchSetting) -> Iterator[Row]:
    """Exact and fast beside the pipeline, in both orders, A B B A."""
    drawing = Drawing(RandomFlux.make(setting), STEPS if setting.full else 3)
    drawing.clock("exact")  # before anything is drawn: it says where what is compiled is kept
    rounds = (max(2, setting.repeats // 3) + 1) // 2
    theirs, exact = in_both_orders(lambda: drawing.timed("pipeline"), lambda: drawing.timed("exact"), rounds)
    yield _row(drawing, "exact", theirs, exact, EXACT)
    yield _row(drawing, "fast", theirs, together([drawing.timed("fast")]), FAST)


# --- the two ways ---------------------------------------------------------------------------------------
@contextmanager
def _pipeline(drawing: Drawing) -> Iterator[Callable[[int], None]]:
    """The published way, with the pipeline's defaults for everything that is not said."""
    import torch

    from headshot_ui.bench.sdxl import save_all
    from headshot_ui.families.shared_parts.drawing import first_noise

    side = drawing.side
    with drawing.models.pipeline() as pipe:
        cells = side // pipe.vae_scale_factor
        noise = first_noise([SEED], (pipe.transformer.config.in_channels // 4, cells, cells))
        latents = pipe._pack_latents(noise, *noise.shape).to(pipe.transformer.device, pipe.transformer.dtype)

        @torch.no_grad()
        def draw(steps: int) -> None:
            images = pipe(
                PROMPT, num_inference_steps=steps, guidance_scale=GUIDANCE, height=side, width=side,
                latents=latents.clone(),
            ).images  # fmt: skip
            save_all(images, _folder(drawing) / "pipeline")
            drawing.drawn["pipeline"] = images[0]

        yield draw


@contextmanager
def _ours(drawing: Drawing, speed: str) -> Iterator[Callable[[int], None]]:
    """A request as the page sends it, with nobody's photos to compare with."""
    from PIL import Image

    from headshot_ui.generation.runner import generate
    from headshot_ui.specs import GenerateSpec
    from headshot_ui.store import Store

    models = drawing.models
    with models.ours() as loaded:
        store = Store(replace(models.settings, outputs_dir=_folder(drawing) / speed))

        def draw(steps: int) -> None:
            shutil.rmtree(store.prompts_dir("bench"), ignore_errors=True)  # the pipeline reads its words each time too
            clock = StageClock()
            spec = GenerateSpec("bench", models.info.id, prompt=PROMPT, count=1, seed=SEED, steps=steps, refine="off",
                                speed=speed, guidance_scale=GUIDANCE)  # fmt: skip
            (picture,) = generate(spec, store, loaded, clock).pictures
            drawing.stages[speed] = clock.stop()
            with Image.open(picture.path) as image:
                drawing.drawn[speed] = image.convert("RGB")

        yield draw


_WAYS: dict[str, Callable[[Drawing], Any]] = {
    "pipeline": _pipeline,
    "exact": lambda drawing: _ours(drawing, "exact"),
    "fast": lambda drawing: _ours(drawing, "fast"),
}


def _folder(drawing: Drawing) -> Path:
    return drawing.models.setting.folder / "drawn"


# --- rows -----------------------------------------------------------------------------------------------
def _row(drawing: Drawing, way: str, theirs: Timed, mine: Timed, times: float) -> Row:
    from headshot_ui.bench.sdxl import psnr

    ratio, alike = theirs.seconds / mine.seconds, psnr([drawing.drawn["pipeline"]], [drawing.drawn[way]])
    exact = way == "exact"
    same = f", the same picture (PSNR at least {LEAST_PSNR:g} dB)" if exact else ""
    clock = drawing.clock(way)
    return Row(
        f"FLUX.1, one picture of {drawing.side} px, {drawing.steps} steps, words to file, {way}{clock.words}",
        theirs.seconds, mine.seconds, bound(drawing.steps * PASS_TFLOP + DECODING_TFLOP, drawing.models.setting),
        theirs.peak_bytes, mine.peak_bytes, f"at least {times:g} times as fast{same}",
        ratio >= times and (alike >= LEAST_PSNR or not exact),
        f"PSNR to the pipeline's picture {alike:.1f} dB. {told_stages(drawing.stages[way])}",
        clock.found,
    )  # fmt: skip


WORK = Work("generate", "Drawing", needs_gpu=True, measure=measure_generate, model=MODEL)
