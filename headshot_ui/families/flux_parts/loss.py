"""The training loss of the published diffusers FLUX DreamBooth-LoRA recipe, without its known mistakes.

Rectified flow: x = (1 - σ) z + σ ε, target ε - z, mean squared error in float32, optional prior preservation (Ruiz et
al. 2022, arXiv 2208.12242). Left out of that script: noise levels looked up in bfloat16, in which 506 of 1000 differ,
LoRA weights in bfloat16, and cached latents that are not those of their captions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from headshot_ui.families.flux_parts.denoise import image_ids, one_pass, pack, text_ids
from headshot_ui.families.flux_parts.fitted import beforehand_of
from headshot_ui.families.flux_parts.modulation import Condition
from headshot_ui.families.protocol import TrainBatch

EMBEDS = ("prompt_embeds", "pooled_prompt_embeds")
#: Among the inputs where the modulation is computed beforehand: (B, numbers of a row) in the transformer's format.
MODULATION = "modulation"


def noise_schedule(scheduler_config: Mapping[str, Any]) -> Any:
    """The noise levels that are trained at: ``timesteps`` (T,) from 1000 to 1 and ``sigmas`` (T,), float32.

    They are shifted only by a fixed ``shift`` of the config; dev's, which grows with the picture, is for drawing.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler.from_config(dict(scheduler_config))


def draw_timesteps(
    schedule: Any, count: int, density: str, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shares (timestep / T) and noise levels σ, each (count,) float32 in (0, 1], from the CPU ``generator``.

    "uniform" and "logit_normal" pick one of the T trained levels, by u ~ U(0, 1) or u = sigmoid(N(0, 1)), as
    ``compute_density_for_timestep_sampling`` in diffusers' ``training_utils`` does. "sigmoid" takes sigmoid(N(0, 1))
    itself for σ, as sd-scripts' ``timestep_sampling`` of that name does.
    """
    if density == "uniform":
        drawn = torch.rand(count, generator=generator)
    elif density in ("logit_normal", "sigmoid"):
        drawn = torch.randn(count, generator=generator).sigmoid()
    else:
        raise ValueError(f"no density of timesteps is called {density!r}")
    trained = schedule.config.num_train_timesteps
    if density == "sigmoid":
        return drawn, drawn
    index = (drawn * trained).long().clamp(max=trained - 1)
    return schedule.timesteps[index] / trained, schedule.sigmas[index]


def loss_inputs(
    schedule: Any,
    batch: TrainBatch,
    generator: torch.Generator,
    density: str,
    guidance: float,
    prior_count: int = 0,
    prior_weight: float = 1.0,
) -> dict[str, torch.Tensor]:
    """What ``loss`` takes of one micro-batch, on the CPU. Draws noise, then timesteps, from the CPU ``generator``.

    "noisy" and "target" (B, pieces, 4 C), "share" and "guidance" (B,), "weights" (B,) that add errors up to the loss,
    the ids of words and pieces, and the embeddings.
    """
    latents = batch.latents.float()
    count = len(latents)
    noise = torch.randn(latents.shape, generator=generator)
    share, sigmas = draw_timesteps(schedule, count, density, generator)
    level = sigmas.view(-1, 1, 1, 1)
    own = count - prior_count
    parts = torch.full((own,), 1 / own), torch.full((prior_count,), prior_weight / max(prior_count, 1))
    return {
        "noisy": pack((1 - level) * latents + level * noise),
        "target": pack(noise - latents),
        "share": share,
        "guidance": torch.full((count,), float(guidance)),
        "weights": torch.cat(parts),
        "words": text_ids(batch.embeds["prompt_embeds"].shape[1]),
        "places": image_ids(latents.shape[-2], latents.shape[-1]),
        **batch.embeds,
    }


def condition_of(inputs: Mapping[str, torch.Tensor], guided: bool) -> Condition:
    """What the modulation of such inputs depends on."""
    return Condition(inputs["share"], inputs["guidance"] if guided else None, inputs["pooled_prompt_embeds"])


def loss(transformer: Any, inputs: Mapping[str, torch.Tensor], dtype: torch.dtype, guided: bool) -> torch.Tensor:
    """Scalar float32 loss of what ``loss_inputs`` drew, which is on the device of the transformer.

    ``dtype`` is the transformer's, ``guided`` whether it takes a guidance scale.
    """
    beforehand = beforehand_of(transformer)
    if beforehand is not None:
        beforehand.use(inputs[MODULATION])
    noisy, prompts, pooled = (inputs[name].to(dtype) for name in ("noisy", *EMBEDS))
    guidance = inputs["guidance"] if guided else None
    ids = inputs["words"], inputs["places"]
    prediction = one_pass(transformer, noisy, inputs["share"], prompts, pooled, guidance, *ids)
    errors = (prediction - inputs["target"]).square().mean(dim=(1, 2))  # (B,)
    return (errors * inputs["weights"]).sum()
