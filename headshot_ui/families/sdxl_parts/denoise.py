"""From noise to latents, one step at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from headshot_ui.families.protocol import DenoiseRequest, DenoiseStep, PromptEmbeds


def time_ids(
    original_sizes: Sequence[tuple[int, int]], crops: Sequence[tuple[int, int]], target: tuple[int, int]
) -> torch.Tensor:
    """SDXL's six size conditions (B, 6) float32: original height and width, crop top and left, target size."""
    rows = [(*size, *crop, *target) for size, crop in zip(original_sizes, crops, strict=True)]
    return torch.tensor(rows, dtype=torch.float32)


def predict(
    unet: Any, noisy: torch.Tensor, timesteps: torch.Tensor, embeds: PromptEmbeds, ids: torch.Tensor
) -> torch.Tensor:
    """One pass of the UNet; all inputs have B rows. Output float32 like ``noisy``."""
    conditions = {"text_embeds": embeds["pooled_prompt_embeds"], "time_ids": ids}
    with precision(unet):
        output: torch.Tensor = unet(
            noisy.to(unet.dtype),
            timesteps,
            encoder_hidden_states=embeds["prompt_embeds"],
            added_cond_kwargs=conditions,
            return_dict=False,
        )[0]
    return output.float()


def precision(unet: Any) -> AbstractContextManager[Any]:
    """Autocast for half-precision models, whose LoRA stays in float32; nothing for float32 models."""
    if unet.dtype == torch.float32:
        return nullcontext()
    return torch.autocast(unet.device.type, dtype=unet.dtype)


def to_model(embeds: PromptEmbeds, unet: Any) -> dict[str, torch.Tensor]:
    """Embeddings on the device and in the dtype of the UNet."""
    return {name: tensor.to(unet.device, unet.dtype) for name, tensor in embeds.items()}


def first_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> torch.Tensor:
    """(B, C, h, w) float32 on the CPU; each picture from a generator of its own, so a batch changes nothing."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def denoise(
    unet: Any, scheduler_config: Mapping[str, Any], request: DenoiseRequest, cell_px: int
) -> Iterator[DenoiseStep]:
    """Euler from pure noise to clean latents with classifier-free guidance, both halves in one pass.

    Latents stay float32 whatever the UNet's dtype: with zero terminal SNR they begin at a sigma of 4096.
    """
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler.from_config(dict(scheduler_config))
    scheduler.set_timesteps(request.steps, device=unet.device)
    count, guided = len(request.seeds), request.guidance_scale > 1
    shape = (unet.config.in_channels, request.height // cell_px, request.width // cell_px)
    latents = first_noise(request.seeds, shape).to(unet.device) * scheduler.init_noise_sigma
    embeds = to_model(request.embeds, unet)
    if guided:
        negative = to_model(request.negative_embeds, unet)
        embeds = {name: torch.cat([negative[name], tensor]) for name, tensor in embeds.items()}
    size = (request.height, request.width)
    rows = 2 * count if guided else count
    ids = time_ids([size] * rows, [(0, 0)] * rows, size).to(unet.device, unet.dtype)
    for index, timestep in enumerate(scheduler.timesteps):
        latents = _step(unet, scheduler, latents, timestep, embeds, ids, request.guidance_scale if guided else None)
        yield DenoiseStep(index + 1, request.steps, latents)


@torch.no_grad()  # here and not around the loop: a generator must not change the caller's mode between steps
def _step(
    unet: Any,
    scheduler: Any,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    embeds: PromptEmbeds,
    ids: torch.Tensor,
    guidance_scale: float | None,
) -> torch.Tensor:
    doubled = latents if guidance_scale is None else torch.cat([latents, latents])
    prediction = predict(unet, scheduler.scale_model_input(doubled, timestep), timestep, embeds, ids)
    if guidance_scale is not None:
        negative, positive = prediction.chunk(2)
        prediction = negative + guidance_scale * (positive - negative)
    after: torch.Tensor = scheduler.step(prediction, timestep, latents, return_dict=False)[0]
    return after
