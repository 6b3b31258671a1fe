"""A batch of pictures with base, refiner and face restoration under a cap, staged and picture by picture.

The reference is the published recipe for base and refiner with ``enable_model_cpu_offload``, and the restorer moved
to the card for each face, written out in ``Usual``. Few steps are drawn, so that moving weights is what counts.
"""

from __future__ import annotations

import gc
import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from headshot_ui import families, pinned
from headshot_ui.bench.rows import Row
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.timing import side_by_side, synchronise
from headshot_ui.families.protocol import DenoiseRequest, RefineRequest
from headshot_ui.families.shared_parts.load import quiet
from headshot_ui.generation.plan import batch_size
from headshot_ui.generation.work import stacked
from headshot_ui.memory import card_bytes, give_back, limit_vram, spare_vram_bytes
from headshot_ui.residency import ModelKey, Residency
from headshot_ui.restoration import codeformer, demo
from headshot_ui.restoration.device import NetRestorer

if TYPE_CHECKING:
    from PIL import Image

    from headshot_ui.bench.works.swap import Models

CAP = 12 * 2**30
PICTURES, STEPS, SWITCH, GUIDANCE = 16, 5, 0.8, 5.0


@dataclass(frozen=True)
class Restoration:
    """A restorer's network, alike for both ways: each has its own copy of it."""

    info: Any
    repaired: Any
    title: str

    @classmethod
    def choose(cls, full: bool) -> Restoration | None:
        """CodeFormer, which cannot be made small, or the demo's own; None without CodeFormer's package."""
        if not full:
            return cls(demo.INFO, demo.repaired, "demo restorer")
        if importlib.util.find_spec("spandrel_extra_arches") is None:
            return None
        return cls(codeformer.INFO, codeformer.repaired, "CodeFormer")

    def net(self) -> torch.nn.Module:
        torch.manual_seed(0)
        if self.info.demo:
            from headshot_ui.restoration.demo_net import DemoRestorerNet

            return DemoRestorerNet().eval().requires_grad_(False)
        from spandrel_extra_arches.architectures.CodeFormer import CodeFormer

        net: torch.nn.Module = CodeFormer()
        return net.eval().requires_grad_(False)

    def face(self, image: Image.Image) -> torch.Tensor:
        """(1, 3, S, S) in [-1, 1]: all of the picture stands for the face, which random weights do not draw."""
        side = self.info.size_px
        pixels = torch.frombuffer(bytearray(image.convert("RGB").resize((side, side)).tobytes()), dtype=torch.uint8)
        return pixels.view(1, side, side, 3).permute(0, 3, 1, 2).float() / 127.5 - 1


def pictures_row(setting: BenchSetting, models: Models, times: float) -> Row:
    """16 pictures both ways, warmed by one picture each."""
    settings = models.settings
    if settings.vram_limit_bytes is None:
        settings = replace(settings, vram_limit_bytes=CAP)
    restoration = Restoration.choose(setting.full)
    prompts = [f"headshot number {number + 1}" for number in range(PICTURES if setting.full else 2)]
    with _capped(setting, settings), quiet():
        usual, ours = Usual(models, restoration), Ours(replace(models, settings=settings), restoration)
        began = time.perf_counter()
        ours.draw(prompts[:1])
        synchronise(settings.device)
        first_s = time.perf_counter() - began
        pinned.settle()
        ours.draw(prompts[:1])
        usual.draw(prompts[:1])
        setting.say(f"  {len(prompts)} pictures each way, which takes a minute or two")
        usual_t, ours_t = side_by_side(
            lambda: usual.draw(prompts), lambda: ours.draw(prompts), settings.device, repeats=1, warmups=0
        )
        ours.residency.evict()
    cap = f"{(settings.vram_limit_bytes or 0) / 2**30:g} GB"
    also = "no restorer (CodeFormer's package is not installed)" if restoration is None else restoration.title
    offload = "enable_model_cpu_offload" if settings.device == "cuda" else "no offload, which needs a card"
    return Row(
        f"{len(prompts)} pictures of {STEPS} steps, base + refiner + {also}, cap {cap}",
        usual_t.seconds, ours_t.seconds, None, usual_t.peak_bytes, ours_t.peak_bytes,
        f"at least {times:g} × as fast", None if restoration is None else usual_t.seconds >= times * ours_t.seconds,
        f"The usual way is diffusers' two pipelines picture by picture with {offload}; our very first picture, with "
        f"loading, took {first_s:.1f} s.",
    )  # fmt: skip


@contextmanager
def _capped(setting: BenchSetting, settings: Any) -> Iterator[None]:
    """For both ways: the cap is one of the process."""
    limit_vram(settings)
    try:
        yield
    finally:
        gc.collect()
        give_back()
        if settings.device == "cuda" and setting.settings.vram_limit_bytes is None:
            torch.cuda.set_per_process_memory_fraction(1.0, 0)


class Usual:
    """The recipe of diffusers' documentation: base up to a share of the noise, refiner from there on."""

    def __init__(self, models: Models, restoration: Restoration | None) -> None:
        from diffusers import (
            AutoencoderKL,
            EulerDiscreteScheduler,
            StableDiffusionXLImg2ImgPipeline,
            StableDiffusionXLPipeline,
            UNet2DConditionModel,
        )
        from transformers import CLIPTextModelWithProjection, CLIPTokenizer

        how = {"dtype": models.usual_dtype, "use_safetensors": True, "local_files_only": True}
        base, refiner = models.base.folder, models.refiner.folder
        self.base = StableDiffusionXLPipeline.from_pretrained(base, **how)
        self.refiner = StableDiffusionXLImg2ImgPipeline(  # as from a complete download, which brings its own copies
            vae=AutoencoderKL.from_pretrained(base, subfolder="vae", **how),
            text_encoder=None,
            text_encoder_2=CLIPTextModelWithProjection.from_pretrained(
                base, subfolder="text_encoder_2", dtype=models.usual_dtype, local_files_only=True
            ),
            tokenizer=None,
            tokenizer_2=CLIPTokenizer.from_pretrained(base, subfolder="tokenizer_2", local_files_only=True),
            unet=UNet2DConditionModel.from_pretrained(refiner, subfolder="unet", **how),
            scheduler=EulerDiscreteScheduler.from_pretrained(refiner, subfolder="scheduler"),
            requires_aesthetics_score=True,
            force_zeros_for_empty_prompt=False,
        )
        self.device, self.px = models.settings.device, models.base.size_px
        for pipeline in (self.base, self.refiner):
            pipeline.set_progress_bar_config(disable=True)
            if self.device == "cuda":
                pipeline.enable_model_cpu_offload()
        self.restoration = restoration
        self.net = None if restoration is None else restoration.net()

    def draw(self, prompts: Sequence[str]) -> None:
        common = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE}
        for seed, prompt in enumerate(prompts):
            generator = torch.Generator().manual_seed(seed)
            size = {"height": self.px, "width": self.px}
            latents = self.base(
                prompt, denoising_end=SWITCH, output_type="latent", generator=generator, **size, **common
            ).images
            image = self.refiner(prompt, image=latents, denoising_start=SWITCH, generator=generator, **common).images[0]
            if self.restoration is None or self.net is None:
                continue
            face = self.restoration.face(image).to(self.device)
            with torch.inference_mode():
                self.net.to(self.device)
                self.restoration.repaired(self.net, face, 0.5).float().cpu()
                self.net.to("cpu")


class Ours:
    """Stage by stage through the program's own residency, as a request is drawn and restored."""

    def __init__(self, models: Models, restoration: Restoration | None) -> None:
        self.models, self.restoration = models, restoration
        self.residency = Residency(models.settings)

    def draw(self, prompts: Sequence[str]) -> None:
        use, settings = self.residency.use, self.models.settings
        with use(self._key("base"), lambda: families.load_base(self.models.base, settings)) as base:
            base.keep(frozenset({"text"}))
            embeds = {"": base.encode_prompts([""])}
            base.expect(frozenset({"denoiser"}), spare_vram_bytes(settings))
            embeds |= {text: base.encode_prompts([text]) for text in prompts}
            base.keep(frozenset({"denoiser"}))
            requests = [self._request(embeds, prompts, group) for group in self._groups(len(prompts))]
            come = lambda: self.residency.expect(self._key("refiner"), frozenset({"denoiser"}))  # noqa: E731
            drawn = [_last(base.denoise(request), come if request is requests[-1] else None) for request in requests]
            base.keep(frozenset())
            with use(self._key("refiner"), lambda: families.load_refiner(self.models.refiner, settings)) as refiner:
                finished = [
                    _last(refiner.refine(_refining(request, latents)))
                    for request, latents in zip(requests, drawn, strict=True)
                ]
                refiner.keep(frozenset())
            base.keep(frozenset({"vae"}))
            rows = [row for latents in finished for row in torch.split(torch.nan_to_num(latents), 1)]
            images = [base.decode_latents(row)[0] for row in rows]
            base.keep(frozenset())
        if self.restoration is not None:
            self._restore(self.restoration, images)

    def _restore(self, restoration: Restoration, images: Sequence[Image.Image]) -> None:
        key = ModelKey("restorer", "restorer", restoration.title, ())
        device = self.models.settings.device
        load = lambda: NetRestorer(restoration.info, restoration.net(), device, restoration.repaired)  # noqa: E731
        with self.residency.use(key, load) as restorer:
            restorer.keep(frozenset({"network"}))
            for image in images:
                restorer.restore(restoration.face(image), 0.5)
            restorer.keep(frozenset())

    def _key(self, kind: str) -> ModelKey:
        info = self.models.base if kind == "base" else self.models.refiner
        return ModelKey(kind, info.id, info.title, families.weight_places(info))

    def _groups(self, count: int) -> Iterator[range]:
        px, settings = self.models.base.size_px, self.models.settings
        most = batch_size(settings.device, px, px, card_bytes(settings))
        return (range(start, min(start + most, count)) for start in range(0, count, most))

    def _request(self, embeds: Any, prompts: Sequence[str], group: range) -> DenoiseRequest:
        px = self.models.base.size_px
        texts = [prompts[index] for index in group]
        return DenoiseRequest(
            stacked(embeds, texts), stacked(embeds, [""] * len(texts)), list(group), STEPS, GUIDANCE, px, px, SWITCH
        )


def _refining(request: DenoiseRequest, latents: torch.Tensor) -> RefineRequest:
    assert request.negative_embeds is not None
    return RefineRequest(
        torch.nan_to_num(latents), request.embeds, request.negative_embeds, request.seeds, request.steps,
        request.guidance_scale, request.height, request.width, start_at=SWITCH,
    )  # fmt: skip


def _last(steps: Iterator[Any], after_first: Callable[[], None] | None = None) -> torch.Tensor:
    """The latents after the last step, on the CPU."""
    done = next(steps)
    if after_first is not None:
        after_first()
    *_, done = (done, *steps)
    latents: torch.Tensor = done.latents.cpu()
    return latents
