"""One picture with a person's LoRA on, from noise to latents: where the processor, not the card, sets the pace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.bench.compiled import CompilingClock
from headshot_ui.bench.rows import Row
from headshot_ui.bench.sdxl import GUIDANCE, UNET_TFLOP, RandomSdxl, noise
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.timing import Timed, in_both_orders, measure
from headshot_ui.capture import graphs
from headshot_ui.families.protocol import DenoiseRequest

if TYPE_CHECKING:
    import torch

RANK, SEED, LEAST_RATIO = 32, 3, 1.7


def measure_denoising(models: RandomSdxl, setting: BenchSetting, prompt: str, steps: int) -> Row:
    """Both ways in both orders. Putting the LoRA on is not timed, recording the step is."""
    lora = make_lora(models, setting.folder / "lora.safetensors")
    embeds, negative = _encoded(models, prompt)
    found: list[torch.Tensor] = []
    clock = CompilingClock.of(setting)

    def ours() -> None:
        with graphs(models.device) as recorded:
            side = models.side
            request = DenoiseRequest(
                embeds, negative, [SEED], steps, GUIDANCE, side, side, recorder=recorded.record
            )  # fmt: skip
            *_, last = models.base.denoise(request)
            found[1:] = [last.latents.float().cpu()]

    pipe = models.pipeline()
    latents = noise([SEED], pipe, models.side).to(models.device)

    def theirs() -> None:
        drawn = pipe(
            prompt_embeds=embeds["prompt_embeds"], pooled_prompt_embeds=embeds["pooled_prompt_embeds"],
            negative_prompt_embeds=negative["prompt_embeds"],
            negative_pooled_prompt_embeds=negative["pooled_prompt_embeds"], latents=latents.clone(),
            num_inference_steps=steps, guidance_scale=GUIDANCE, height=models.side, width=models.side,
            output_type="latent",
        ).images  # fmt: skip
        found[:1] = [drawn.float().cpu()]

    def with_pipeline() -> Timed:
        models.on_card(True)
        pipe.load_lora_weights(str(lora.parent), weight_name=lora.name)
        try:
            return _timed(theirs, setting)
        finally:
            pipe.unload_lora_weights()
            models.on_card(False)

    def with_us() -> Timed:
        models.base.keep(frozenset({"denoiser"}))
        models.base.use_loras([(lora, 1.0)])
        try:
            with clock.blocks(models.base, learning=False):
                return _timed(ours, setting)
        finally:
            models.base.use_loras(())
            models.base.keep(frozenset())

    reference, mine = in_both_orders(with_pipeline, with_us)
    return _row(models, setting, steps, reference, mine, _apart(found), clock)


def _timed(run: Callable[[], object], setting: BenchSetting) -> Timed:
    return measure(run, setting.settings.device, repeats=max(1, setting.repeats // 3), warmups=1)


def make_lora(models: RandomSdxl, path: Path, strength: float = 0.01) -> Path:
    """A file as training writes it, on every attention and feed-forward layer; its B spreads by ``strength``."""
    import torch

    path.parent.mkdir(parents=True, exist_ok=True)
    loaded = models.base
    generator = torch.Generator().manual_seed(SEED)
    loaded.add_trainable_lora(RANK, float(RANK), SEED)
    state = {
        name: tensor if tensor.any() else strength * torch.randn(tensor.shape, generator=generator)
        for name, tensor in loaded.trainable_lora_state().items()
    }
    loaded.save_lora(path, state, {})
    loaded.use_loras(())
    loaded.keep(frozenset())
    return path


def _encoded(models: RandomSdxl, prompt: str) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    models.base.keep(frozenset({"text"}))
    both = [dict(models.base.encode_prompts([text])) for text in (prompt, "")]
    models.base.keep(frozenset())
    first, second = ({name: tensor.to(models.device) for name, tensor in embeds.items()} for embeds in both)
    return first, second


def _apart(found: list[torch.Tensor]) -> float:
    """How far the two ends are from each other, as a share of how far they spread."""
    theirs, ours = found
    return float((ours - theirs).square().mean().sqrt() / theirs.std())


def _row(
    models: RandomSdxl,
    setting: BenchSetting,
    steps: int,
    reference: Timed,
    mine: Timed,
    apart: float,
    clock: CompilingClock,
) -> Row:
    from headshot_ui.bench.machine import matmul_flops

    bound = None
    if setting.full:
        bound = 2 * steps * UNET_TFLOP * 1e12 / matmul_flops(setting.settings.device, setting.settings.dtype)
    return Row(
        f"SDXL, one picture of {models.side} px with a LoRA, {steps} steps, noise to latents{clock.words}",
        reference.seconds, mine.seconds, bound, reference.peak_bytes, mine.peak_bytes,
        f"at least {LEAST_RATIO:g} times as fast", reference.seconds / mine.seconds >= LEAST_RATIO,
        f"Rank {RANK} on 700 layers at full size; the latents differ by {apart:.2%} of their spread.",
        clock.found,
    )  # fmt: skip
