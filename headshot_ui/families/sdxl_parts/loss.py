"""The training loss of the published diffusers SDXL DreamBooth-LoRA recipe, without its known mistakes.

DDPM noising, target epsilon or velocity, mean squared error in float32, optional min-SNR weights
(Hang et al. 2023, arXiv 2303.09556; for v-prediction the recipe adds 1 to the weight) and optional
prior preservation (Ruiz et al. 2022, arXiv 2208.12242), which is not SNR-weighted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.protocol import TrainBatch
from headshot_ui.families.sdxl_parts.denoise import one_pass, time_ids

EMBEDS = ("prompt_embeds", "pooled_prompt_embeds")


def noise_schedule(scheduler_config: Mapping[str, Any]) -> Any:
    """The DDPM schedule (T steps, alphas_cumprod) that a base was trained on. Raises ModelError."""
    from diffusers import DDPMScheduler

    schedule = DDPMScheduler.from_config(dict(scheduler_config))
    if schedule.config.prediction_type not in ("epsilon", "v_prediction"):
        raise ModelError(
            f"Training a base model of the kind “{schedule.config.prediction_type}” is not possible: choose another."
        )
    return schedule


def loss_inputs(
    schedule: Any,
    batch: TrainBatch,
    generator: torch.Generator,
    min_snr_gamma: float | None,
    prior_count: int = 0,
    prior_weight: float = 1.0,
    cell_px: int = 8,
) -> dict[str, torch.Tensor]:
    """What ``loss`` takes of one micro-batch, on the CPU. Draws noise, then timesteps, from the CPU ``generator``.

    "noisy" and "target" (B, C, h, w), "timesteps" (B,) int64, "weights" (B,) that add errors up to the loss,
    "time_ids" (B, 6) and the embeddings.
    """
    latents = batch.latents.float()
    count = len(latents)
    noise = torch.randn(latents.shape, generator=generator)
    timesteps = torch.randint(0, schedule.config.num_train_timesteps, (count,), generator=generator)
    is_velocity = schedule.config.prediction_type == "v_prediction"
    target_size = (latents.shape[-2] * cell_px, latents.shape[-1] * cell_px)
    own = count - prior_count
    weights = snr_weights(schedule, timesteps[:own], min_snr_gamma) / own
    return {
        "noisy": schedule.add_noise(latents, noise, timesteps),
        "target": schedule.get_velocity(latents, noise, timesteps) if is_velocity else noise,
        "timesteps": timesteps,
        "weights": torch.cat([weights, torch.full((prior_count,), prior_weight / max(prior_count, 1))]),
        "time_ids": time_ids(batch.original_sizes, batch.crops, target_size),
        **batch.embeds,
    }


def loss(unet: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Scalar float32 loss of what ``loss_inputs`` drew, which is on the device of the UNet."""
    dtype = unet.dtype  # asked once: each time takes 5 ms
    noisy, prompts, pooled, ids = (inputs[name].to(dtype) for name in ("noisy", *EMBEDS, "time_ids"))
    prediction = one_pass(unet, noisy, inputs["timesteps"], prompts, pooled, ids)
    errors = (prediction - inputs["target"]).square().mean(dim=(1, 2, 3))  # (B,)
    return (errors * inputs["weights"]).sum()


def snr_weights(schedule: Any, timesteps: torch.Tensor, gamma: float | None) -> torch.Tensor:
    """(B,) float32 weights min(SNR, gamma) / SNR, plus 1 for v-prediction; all 1 without gamma.

    Written so that the last timestep of a zero-terminal-SNR schedule (SNR 0) gets the limit 1, not 0/0.
    """
    if gamma is None:
        return torch.ones(len(timesteps))
    kept = schedule.alphas_cumprod[timesteps]
    snr = kept / (1 - kept)
    weights = torch.where(snr > gamma, gamma / snr.clamp(min=gamma), 1.0)
    return weights + 1 if schedule.config.prediction_type == "v_prediction" else weights
