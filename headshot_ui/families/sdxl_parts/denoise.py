"""From noise to latents, one step at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from headshot_ui.errors import ModelError, SpecError
from headshot_ui.families.protocol import (
    DenoiseRequest,
    DenoiseStep,
    PromptEmbeds,
    Recorder,
    RefineRequest,
    StepFunction,
)
from headshot_ui.families.sdxl_parts.refiner_files import SCORED_IDS, SIZED_IDS, ids_count
from headshot_ui.families.shared_parts.drawing import first_noise, not_a_number, to_model

#: What Stability's refiner was made to be asked for and away from; it takes them in place of the target size.
AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5


def time_ids(
    original_sizes: Sequence[tuple[int, int]], crops: Sequence[tuple[int, int]], target: tuple[int, int]
) -> torch.Tensor:
    """SDXL's six size conditions (B, 6) float32: original height and width, crop top and left, target size."""
    rows = [(*size, *crop, *target) for size, crop in zip(original_sizes, crops, strict=True)]
    return torch.tensor(rows, dtype=torch.float32)


def one_pass(
    unet: Any,
    noisy: torch.Tensor,
    timesteps: torch.Tensor,
    prompts: torch.Tensor,
    pooled: torch.Tensor,
    ids: torch.Tensor,
) -> torch.Tensor:
    """One pass of the UNet; all inputs have B rows, or one number for all. Output float32.

    It asks the UNet for nothing: telling its number format takes diffusers as long as a few dozen layers.
    """
    output: torch.Tensor = unet(
        noisy,
        timesteps,
        encoder_hidden_states=prompts,
        added_cond_kwargs={"text_embeds": pooled, "time_ids": ids},
        return_dict=False,
    )[0]
    return output.float()


def second_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> torch.Tensor:
    """As ``drawing.first_noise``, but what the same generators draw next.

    The first noise is what the picture was made from; the same again would only strengthen what is there.
    """
    noise = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        torch.randn(shape, generator=generator)
        noise.append(torch.randn(shape, generator=generator))
    return torch.stack(noise)


# --- the schedule -------------------------------------------------------------------------------------
def split_steps(scheduler_config: Mapping[str, Any], steps: int, switch: float) -> tuple[int, int]:
    """How many of ``steps`` come before and after the share ``switch`` of the training timesteps, as in diffusers.

    ``denoising_end`` keeps the timesteps at or above the cut-off, ``denoising_start`` those below it.
    """
    schedule = _schedule(scheduler_config, steps)
    before = schedule.before(switch)
    return before, len(schedule) - before


@dataclass(frozen=True)
class _Schedule:
    """Timesteps and noise levels of a drawing. diffusers computes them; walking along them is done here.

    Its own sampler looks up in each step at which one it is. Here all numbers lie on the device, where a recorded
    step reads them.
    """

    timesteps: torch.Tensor  # (n,) float32
    sigmas: torch.Tensor  # (n + 1,) float32; the last one is what is left at the end, usually 0
    first_noise: float  # what noise of spread 1 is multiplied with
    predicts: str  # "epsilon", "v_prediction" or "sample"
    trained: int  # timesteps of the training

    def __len__(self) -> int:
        return len(self.timesteps)

    def before(self, share: float) -> int:
        """How many steps come before this share of the training timesteps."""
        cutoff = int(round(self.trained - share * self.trained))
        return int((self.timesteps >= cutoff).sum())

    def to(self, device: torch.device) -> _Schedule:
        return replace(self, timesteps=self.timesteps.to(device), sigmas=self.sigmas.to(device))


def _schedule(config: Mapping[str, Any], steps: int) -> _Schedule:
    """On the CPU."""
    from diffusers import EulerDiscreteScheduler

    scheduler = EulerDiscreteScheduler.from_config(dict(config))
    scheduler.set_timesteps(steps)
    first_noise, facts = float(scheduler.init_noise_sigma), scheduler.config
    return _Schedule(
        scheduler.timesteps, scheduler.sigmas, first_noise, facts.prediction_type, facts.num_train_timesteps
    )


# --- the two stretches --------------------------------------------------------------------------------
def denoise(
    unet: Any, scheduler_config: Mapping[str, Any], request: DenoiseRequest, cell_px: int
) -> Iterator[DenoiseStep]:
    """Euler from pure noise to clean latents, or to those at ``stop_at`` (diffusers' ``denoising_end``).

    Latents stay float32 whatever the UNet's dtype: with zero terminal SNR they begin at a sigma of 4096.
    """
    schedule = _schedule(scheduler_config, request.steps)
    last = schedule.before(request.stop_at) if request.stop_at < 1 else len(schedule)
    shape = (unet.config.in_channels, request.height // cell_px, request.width // cell_px)
    latents = first_noise(request.seeds, shape).to(unet.device) * schedule.first_noise
    size = (request.height, request.width)
    ids = time_ids([size], [(0, 0)], size)
    yield from _steps(unet, schedule, 0, last, latents, request, _conditions(unet, request, ids, ids))


def refine(unet: Any, scheduler_config: Mapping[str, Any], request: RefineRequest) -> Iterator[DenoiseStep]:
    """The last steps by a refiner, as diffusers' img2img pipeline for SDXL draws them.

    With ``start_at`` (its ``denoising_start``) the latents are taken as noisy as the base left them; with ``strength``
    new noise is added first. Raises SpecError when no step would be left, ModelError when the embeddings do not fit.
    """
    schedule = _schedule(scheduler_config, request.steps)
    total = len(schedule)
    if request.start_at is not None:
        first, field = schedule.before(request.start_at), "refiner_switch"
    elif request.strength is not None:
        first, field = total - min(int(request.steps * request.strength), total), "refiner_strength"
    else:
        raise ValueError("a RefineRequest needs start_at or strength")
    if first == total:
        raise SpecError(field, f"With {request.steps} steps none is left for the refiner: use more steps.")
    latents = request.latents.to(unet.device, torch.float32)
    if request.start_at is None:
        noise = second_noise(request.seeds, (latents.shape[1], latents.shape[2], latents.shape[3]))
        latents = latents + noise.to(unet.device) * schedule.sigmas[first].to(unet.device)
    ids = _refiner_ids(unet, request)
    yield from _steps(unet, schedule, first, total, latents, request, _conditions(unet, request, *ids, _last_part))


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
        assert request.negative_embeds is not None
        negative = part(unet, request.negative_embeds)
        embeds = {name: torch.cat([negative[name].to(tensor), tensor]) for name, tensor in embeds.items()}
        ids = torch.cat([negative_ids.expand(count, -1), ids])
    return embeds, ids.to(embeds["prompt_embeds"])


def _steps(
    unet: Any,
    schedule: _Schedule,
    first: int,
    last: int,
    latents: torch.Tensor,
    request: DenoiseRequest | RefineRequest,
    conditions: tuple[PromptEmbeds, torch.Tensor],
) -> Iterator[DenoiseStep]:
    """The schedule's steps from ``first`` up to ``last`` (not itself)."""
    guided = round(request.guided_share * len(schedule)) if request.guidance_scale > 1 else 0
    schedule = schedule.to(latents.device)
    embeds, ids = conditions
    step = _recorded(_EulerStep(unet, ids.dtype, schedule.predicts), request.recorder)
    guidance = torch.tensor(request.guidance_scale, dtype=torch.float32).to(latents.device)
    both = embeds["prompt_embeds"], embeds["pooled_prompt_embeds"], ids
    positive = tuple(tensor[-len(latents) :] for tensor in both)
    for index in range(first, last):
        where = schedule.timesteps[index], schedule.sigmas[index], schedule.sigmas[index + 1], guidance
        latents, expected = step(latents, *where, *(both if index < guided else positive))
        # Only at the end: what is no number stays none, and looking makes the processor wait for the card.
        if index + 1 == last and not torch.isfinite(latents).all():
            raise ModelError(not_a_number(unet.dtype))
        half_way = index + 1 == last < len(schedule)
        yield DenoiseStep(index + 1 - first, last - first, latents, expected if half_way else None)


def _recorded(step: _EulerStep, recorder: Recorder | None) -> StepFunction:
    """The step as it is to be called."""
    return step if recorder is None else recorder(step, step.unet)


@dataclass(frozen=True)
class _EulerStep:
    """One step of Euler's method along the noise levels (Karras et al. 2022, arXiv 2206.00364), nothing but tensors.

    The arithmetic is that of diffusers' sampler, in its order, so that pictures are the same to the last bit.
    """

    unet: Any
    dtype: torch.dtype  # of the UNet's inputs
    predicts: str

    @torch.no_grad()  # here and not around the loop: a generator must not change the caller's mode between steps
    def __call__(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        sigma: torch.Tensor,
        next_sigma: torch.Tensor,
        guidance: torch.Tensor,
        prompts: torch.Tensor,
        pooled: torch.Tensor,
        ids: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, C, h, w) float32 after the step, and the clean latents expected behind the noise before it.

        ``timestep``, ``sigma``, ``next_sigma`` and ``guidance`` are single numbers, the conditions have B rows, or
        2 B with those of the negative prompts first: then both halves go through the UNet in one pass.
        """
        guided = len(prompts) > len(latents)
        noisy = torch.cat([latents, latents]) if guided else latents
        scaled = (noisy / ((sigma**2 + 1) ** 0.5)).to(self.dtype)
        output = one_pass(self.unet, scaled, timestep, prompts, pooled, ids)
        if guided:
            negative, positive = output.chunk(2)
            output = negative + guidance * (positive - negative)
        expected = self._expected(output, latents, sigma)
        return latents + (latents - expected) / sigma * (next_sigma - sigma), expected

    def _expected(self, output: torch.Tensor, latents: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        if self.predicts == "epsilon":
            return latents - sigma * output
        if self.predicts == "v_prediction":
            return output * (-sigma / (sigma**2 + 1) ** 0.5) + (latents / (sigma**2 + 1))
        return output
