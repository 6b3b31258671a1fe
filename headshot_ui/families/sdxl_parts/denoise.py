"""From noise to latents, one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from headshot_ui.errors import ModelError, SpecError
from headshot_ui.families.protocol import DenoiseRequest, DenoiseStep, PromptEmbeds, RefineRequest
from headshot_ui.families.sdxl_parts.refiner_files import SCORED_IDS, SIZED_IDS, ids_count

#: What Stability's refiner was made to be asked for and away from; it takes them in place of the target size.
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5


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


def second_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> torch.Tensor:
    """As ``first_noise``, but what the same generators draw next.

    The first noise is what the picture was made from; the same again would only strengthen what is there.
    """
    noise = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        torch.randn(shape, generator=generator)
        noise.append(torch.randn(shape, generator=generator))
    return torch.stack(noise)


def not_a_number(dtype: torch.dtype) -> str:
    """What to tell when a model's numbers overflowed: the picture would be black."""
    if dtype == torch.float16:
        other = "compute in bfloat16 or float32 (HEADSHOT_UI_DTYPE=float32), or choose another base model or LoRA"
    else:
        other = "choose another base model or LoRA, or less strength of the LoRA"
    name = str(dtype).removeprefix("torch.")
    return f"The picture became “not a number” while computing in {name}, and would be black: {other}."


# --- the schedule -------------------------------------------------------------------------------------
def split_steps(scheduler_config: Mapping[str, Any], steps: int, switch: float) -> tuple[int, int]:
    """How many of ``steps`` come before and after the share ``switch`` of the training timesteps, as in diffusers.

    ``denoising_end`` keeps the timesteps at or above the cut-off, ``denoising_start`` those below it.
    """
    scheduler = _scheduler(scheduler_config, steps, torch.device("cpu"))
    before = _steps_before(scheduler, switch)
    return before, len(scheduler.timesteps) - before


def _scheduler(config: Mapping[str, Any], steps: int, device: torch.device) -> Any:
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler.from_config(dict(config))
    scheduler.set_timesteps(steps, device=device)
    return scheduler


def _steps_before(scheduler: Any, share: float) -> int:
    trained = scheduler.config.num_train_timesteps
    cutoff = int(round(trained - share * trained))
    return int((scheduler.timesteps >= cutoff).sum())


# --- the two stretches --------------------------------------------------------------------------------
def denoise(
    unet: Any, scheduler_config: Mapping[str, Any], request: DenoiseRequest, cell_px: int
) -> Iterator[DenoiseStep]:
    """Euler from pure noise to clean latents, or to those at ``stop_at`` (diffusers' ``denoising_end``).

    Latents stay float32 whatever the UNet's dtype: with zero terminal SNR they begin at a sigma of 4096.
    """
    scheduler = _scheduler(scheduler_config, request.steps, unet.device)
    last = _steps_before(scheduler, request.stop_at) if request.stop_at < 1 else len(scheduler.timesteps)
    shape = (unet.config.in_channels, request.height // cell_px, request.width // cell_px)
    latents = first_noise(request.seeds, shape).to(unet.device) * scheduler.init_noise_sigma
    size = (request.height, request.width)
    ids = time_ids([size], [(0, 0)], size)
    yield from _steps(unet, scheduler, 0, last, latents, request, _conditions(unet, request, ids, ids))


def refine(unet: Any, scheduler_config: Mapping[str, Any], request: RefineRequest) -> Iterator[DenoiseStep]:
    """The last steps by a refiner, as diffusers' img2img pipeline for SDXL draws them.

    With ``start_at`` (its ``denoising_start``) the latents are taken as noisy as the base left them; with ``strength``
    new noise is added first. Raises SpecError when no step would be left, ModelError when the embeddings do not fit.
    """
    scheduler = _scheduler(scheduler_config, request.steps, unet.device)
    total = len(scheduler.timesteps)
    if request.start_at is not None:
        first, field = _steps_before(scheduler, request.start_at), "refiner_switch"
    elif request.strength is not None:
        first, field = total - min(int(request.steps * request.strength), total), "refiner_strength"
    else:
        raise ValueError("a RefineRequest needs start_at or strength")
    if first == total:
        raise SpecError(field, f"With {request.steps} steps none is left for the refiner: use more steps.")
    scheduler.set_begin_index(first)
    latents = request.latents.to(unet.device, torch.float32)
    if request.start_at is None:
        noise = second_noise(request.seeds, (latents.shape[1], latents.shape[2], latents.shape[3]))
        latents = latents + noise.to(unet.device) * scheduler.sigmas[first]
    ids = _refiner_ids(unet, request)
    yield from _steps(unet, scheduler, first, total, latents, request, _conditions(unet, request, *ids, _last_part))


def _refiner_ids(unet: Any, request: RefineRequest) -> tuple[torch.Tensor, torch.Tensor]:
    """(1, 5 or 6) float32, for the prompt and for the negative one: as many as this refiner takes."""
    size = (request.height, request.width)
    count = ids_count(unet.config, request.embeds["pooled_prompt_embeds"].shape[-1])
    too_wide = unet.config.cross_attention_dim > request.embeds["prompt_embeds"].shape[-1]
    if too_wide or count not in (SCORED_IDS, SIZED_IDS):
        raise ModelError("This refiner was made for another base model: choose another, or none.")
    if count == SIZED_IDS:
        ids = time_ids([size], [(0, 0)], size)
        return ids, ids
    wanted, unwanted = (
        torch.tensor([[*size, 0, 0, score]], dtype=torch.float32)
        for score in (AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE)
    )
    return wanted, unwanted


def _last_part(unet: Any, embeds: PromptEmbeds) -> PromptEmbeds:
    """A refiner reads with the second text encoder only, whose part comes last."""
    width = unet.config.cross_attention_dim
    return {**embeds, "prompt_embeds": embeds["prompt_embeds"][..., -width:]}


def _whole(_: Any, embeds: PromptEmbeds) -> PromptEmbeds:
    return embeds


def _conditions(
    unet: Any,
    request: DenoiseRequest | RefineRequest,
    ids: torch.Tensor,
    negative_ids: torch.Tensor,
    part: Callable[[Any, PromptEmbeds], PromptEmbeds] = _whole,
) -> tuple[PromptEmbeds, torch.Tensor]:
    """Embeddings and size conditions of both halves: first those of the negative prompts, if guidance needs them."""
    count = len(request.seeds)
    embeds = to_model(part(unet, request.embeds), unet)
    ids = ids.expand(count, -1)
    if request.guidance_scale > 1:
        negative = to_model(part(unet, request.negative_embeds), unet)
        embeds = {name: torch.cat([negative[name], tensor]) for name, tensor in embeds.items()}
        ids = torch.cat([negative_ids.expand(count, -1), ids])
    return embeds, ids.to(unet.device, unet.dtype)


def _steps(
    unet: Any,
    scheduler: Any,
    first: int,
    last: int,
    latents: torch.Tensor,
    request: DenoiseRequest | RefineRequest,
    conditions: tuple[PromptEmbeds, torch.Tensor],
) -> Iterator[DenoiseStep]:
    """The scheduler's steps from ``first`` up to ``last`` (not itself)."""
    guidance_scale = request.guidance_scale if request.guidance_scale > 1 else None
    for number, timestep in enumerate(scheduler.timesteps[first:last], start=1):
        latents, expected = _step(unet, scheduler, latents, timestep, *conditions, guidance_scale)
        # Only at the end: what is no number stays none, and looking makes the processor wait for the card.
        if first + number == last and not torch.isfinite(latents).all():
            raise ModelError(not_a_number(unet.dtype))
        half_way = first + number == last < len(scheduler.timesteps)
        yield DenoiseStep(number, last - first, latents, expected if half_way else None)


@torch.no_grad()  # here and not around the loop: a generator must not change the caller's mode between steps
def _step(
    unet: Any,
    scheduler: Any,
    latents: torch.Tensor,
    timestep: torch.Tensor,
    embeds: PromptEmbeds,
    ids: torch.Tensor,
    guidance_scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Guidance with both halves in one pass, then one Euler step: the latents after it, and the clean ones expected."""
    doubled = latents if guidance_scale is None else torch.cat([latents, latents])
    prediction = predict(unet, scheduler.scale_model_input(doubled, timestep), timestep, embeds, ids)
    if guidance_scale is not None:
        negative, positive = prediction.chunk(2)
        prediction = negative + guidance_scale * (positive - negative)
    after = scheduler.step(prediction, timestep, latents)
    return after.prev_sample, after.pred_original_sample
