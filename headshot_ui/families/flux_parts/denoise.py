"""From noise to latents with FLUX.1, one step at a time.

FLUX.1 learned to say in which direction, ε - z, a picture z and noise ε lie from x = (1 - σ) z + σ ε (rectified flow,
Liu et al. 2022, arXiv 2209.03003; Esser et al. 2024, arXiv 2403.03206). Drawing follows it from σ = 1 to 0. It sees
latents in pieces of 2 by 2 cells (``pack``), whose places it is told as numbers (``image_ids``). It has no negative
prompt: dev was taught what a guidance scale does and takes it as a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.flux_parts.first_block import FewerPasses
from headshot_ui.families.flux_parts.fitted import beforehand_of, is_travelling
from headshot_ui.families.flux_parts.modulation import Condition
from headshot_ui.families.protocol import DenoiseRequest, DenoiseStep, StepFunction, Told
from headshot_ui.families.shared_parts.drawing import first_noise, not_a_number, to_model

_PIECE = 2  # cells per side


# --- pieces ---------------------------------------------------------------------------------------------
def pack(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) to (B, h/2 · w/2, 4 C): pieces of 2 by 2 cells, row by row. h and w are even."""
    batch, channels, height, width = latents.shape
    pieces = latents.view(batch, channels, height // _PIECE, _PIECE, width // _PIECE, _PIECE)
    return pieces.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * _PIECE**2)


def unpack(pieces: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """What ``pack`` was given: (B, C, height, width), in cells."""
    batch, _, channels = pieces.shape
    cells = pieces.view(batch, height // _PIECE, width // _PIECE, channels // _PIECE**2, _PIECE, _PIECE)
    return cells.permute(0, 3, 1, 4, 2, 5).reshape(batch, -1, height, width)


def image_ids(height: int, width: int) -> torch.Tensor:
    """(h/2 · w/2, 3) float32: 0, row and column of every piece of latents of ``height`` by ``width`` cells."""
    rows, columns = torch.meshgrid(
        torch.arange(height // _PIECE), torch.arange(width // _PIECE), indexing="ij"
    )  # fmt: skip
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3).float()


def text_ids(tokens: int) -> torch.Tensor:
    """(tokens, 3) float32 zeros: words have no place."""
    return torch.zeros(tokens, 3)


def one_pass(
    transformer: Any,
    pieces: torch.Tensor,
    share: torch.Tensor,
    prompts: torch.Tensor,
    pooled: torch.Tensor,
    guidance: torch.Tensor | None,
    words: torch.Tensor,
    places: torch.Tensor,
) -> torch.Tensor:
    """One pass of the transformer: the direction (B, pieces, 4 C) in float32.

    ``share`` (B,) is the timestep in [0, 1]; ``guidance`` (B,), None for a model without. ``words`` and ``places`` are
    the ids of both kinds. It asks the transformer for nothing: telling its
    number format takes diffusers as long as a few dozen layers.
    """
    output: torch.Tensor = transformer(
        hidden_states=pieces,
        encoder_hidden_states=prompts,
        pooled_projections=pooled,
        timestep=share,
        guidance=guidance,
        txt_ids=words,
        img_ids=places,
        return_dict=False,
    )[0]
    return output.float()


# --- the schedule -------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Schedule:
    """Timesteps and noise levels of a drawing, computed by diffusers."""

    timesteps: torch.Tensor  # (n,) float32, from 1000 downwards
    sigmas: torch.Tensor  # (n + 1,) float32; the last one is what is left at the end, 0
    trained: int  # timesteps of the training

    def __len__(self) -> int:
        return len(self.timesteps)

    def before(self, share: float) -> int:
        """How many steps come before this share of the training timesteps."""
        cutoff = int(round(self.trained - share * self.trained))
        return int((self.timesteps >= cutoff).sum())

    def to(self, device: torch.device) -> Schedule:
        return replace(self, timesteps=self.timesteps.to(device), sigmas=self.sigmas.to(device))


def schedule_of(config: Mapping[str, Any], steps: int, pieces: int) -> Schedule:
    """On the CPU, for a picture of so many pieces, as FluxPipeline makes it.

    Larger pictures stay longer where the noise is strong: μ grows with the number of pieces, in a straight line
    through two sizes that the config names, and σ' = e^μ / (e^μ + 1/σ - 1). schnell's config says not to.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.pipelines.flux.pipeline_flux import calculate_shift

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(config))
    facts = scheduler.config
    ends = facts.base_image_seq_len, facts.max_image_seq_len, facts.base_shift, facts.max_shift
    levels = torch.linspace(1.0, 1 / steps, steps, dtype=torch.float64).tolist()
    scheduler.set_timesteps(sigmas=levels, mu=calculate_shift(pieces, *ends))
    return Schedule(scheduler.timesteps, scheduler.sigmas, facts.num_train_timesteps)


def split_steps(config: Mapping[str, Any], steps: int, switch: float, size_px: int, cell_px: int) -> tuple[int, int]:
    """How many of ``steps`` come before and after the share ``switch`` of the schedule of a square picture."""
    schedule = schedule_of(config, steps, (size_px // (cell_px * _PIECE)) ** 2)
    before = schedule.before(switch)
    return before, len(schedule) - before


# --- drawing ------------------------------------------------------------------------------------------
def denoise(
    transformer: Any,
    scheduler_config: Mapping[str, Any],
    request: DenoiseRequest,
    cell_px: int,
    told: Told | None = None,
) -> Iterator[DenoiseStep]:
    """Euler from pure noise to clean latents, or to those at ``stop_at``.

    Negative prompts and ``guided_share`` are without meaning here. Latents stay float32 whatever the transformer's
    dtype, as in diffusers' sampler. ``told`` hears of what is computed before the first step.
    """
    height, width = request.height // cell_px, request.width // cell_px
    config, device, dtype = transformer.config, transformer.device, transformer.dtype
    shape = (config.in_channels // _PIECE**2, height, width)
    latents = first_noise(request.seeds, shape).to(device)
    places = image_ids(height, width)
    schedule = schedule_of(scheduler_config, request.steps, len(places)).to(device)
    last = schedule.before(request.stop_at) if request.stop_at < 1 else len(schedule)
    embeds = to_model(request.embeds, transformer)
    prompts, pooled = embeds["prompt_embeds"], embeds["pooled_prompt_embeds"]
    guidance = torch.full((len(latents),), float(request.guidance_scale)).to(device)
    fixed = guidance, prompts, pooled, text_ids(prompts.shape[1]).to(device), places.to(device)
    guided, beforehand = bool(config.guidance_embeds), beforehand_of(transformer)
    one = FlowStep(transformer, dtype, guided, schedule.trained, None if beforehand is None else beforehand.use)
    rows = None if beforehand is None else beforehand.table(
        conditions_of(schedule, last, guidance if guided else None, pooled), told
    )  # fmt: skip
    step: StepFunction = one
    if request.reuse_below > 0 and not is_travelling(transformer):
        step = FewerPasses.of(one, request.reuse_below, request.recorder)
    elif request.recorder is not None:
        step = request.recorder(one, transformer)
    for index in range(last):
        where = schedule.timesteps[index], schedule.sigmas[index], schedule.sigmas[index + 1]
        row = () if rows is None else (rows[index].to(device),)
        latents, expected = step(latents, *where, *fixed, *row)
        # Only at the end: what is no number stays none, and looking makes the processor wait for the card.
        if index + 1 == last and not torch.isfinite(latents).all():
            raise ModelError(not_a_number(dtype))
        half_way = index + 1 == last < len(schedule)
        yield DenoiseStep(index + 1, last, latents, expected if half_way else None)


def conditions_of(
    schedule: Schedule, steps: int, guidance: torch.Tensor | None, pooled: torch.Tensor
) -> list[Condition]:
    """What the modulation of the first ``steps`` steps depends on, exactly as ``FlowStep`` makes it."""
    shares = [schedule.timesteps[index].expand(len(pooled)) / schedule.trained for index in range(steps)]
    return [Condition(share, guidance, pooled) for share in shares]


@dataclass(frozen=True)
class FlowStep:
    """One step of Euler's method, nothing but tensors. The arithmetic is that of diffusers' sampler."""

    transformer: Any
    dtype: torch.dtype  # of the transformer's inputs
    guided: bool
    trained: int  # timesteps of the training
    use: Callable[[torch.Tensor], None] | None = None  # takes the modulation that was computed beforehand

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
        words: torch.Tensor,
        places: torch.Tensor,
        modulation: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(B, C, h, w) float32 after the step, and the clean latents expected behind the noise before it.

        ``timestep``, ``sigma`` and ``next_sigma`` are single numbers, ``guidance`` and the conditions have B rows.
        ``modulation`` (B, numbers of a row) is given where there is a ``use`` for it.
        """
        if self.use is not None and modulation is not None:
            self.use(modulation)
        share = timestep.expand(len(latents)) / self.trained
        pieces = pack(latents).to(self.dtype)
        strength = guidance if self.guided else None
        direction = one_pass(self.transformer, pieces, share, prompts, pooled, strength, words, places)
        direction = unpack(direction, latents.shape[-2], latents.shape[-1])
        return latents + (next_sigma - sigma) * direction, latents - sigma * direction
