"""The training loss is that of diffusers' published FLUX DreamBooth-LoRA recipe on the same noise and timesteps."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline
from diffusers.training_utils import compute_density_for_timestep_sampling, compute_loss_weighting_for_sd3

from headshot_ui import families
from headshot_ui.families.flux_parts.loss import draw_timesteps, noise_schedule
from headshot_ui.families.flux_parts.recomputing import recompute
from headshot_ui.families.protocol import LoadedBase, TrainBatch
from headshot_ui.settings import Settings
from tests.tiny_flux import schedule

TOKENS = 48


@pytest.fixture(scope="module", params=["tiny-flux", "tiny-schnell"])
def loaded(request: pytest.FixtureRequest, settings: Settings) -> Iterator[LoadedBase]:
    """With and without a guidance scale; with a LoRA that does something, as in the middle of training."""
    base = families.load_base(families.find_base(request.param, settings), settings)
    generator = torch.Generator().manual_seed(3)
    for parameter in base.add_trainable_lora(rank=2, alpha=3.0, seed=0):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.05
    yield base
    base.use_loras(())


def batch_of(count: int = 4) -> TrainBatch:
    generator = torch.Generator().manual_seed(1000)
    embeds = {
        "prompt_embeds": torch.randn(count, TOKENS, 24, generator=generator),
        "pooled_prompt_embeds": torch.randn(count, 16, generator=generator),
    }
    sizes, crops = [(64, 96)] * count, [(0, 0)] * count
    return TrainBatch(torch.randn(count, 16, 8, 12, generator=generator), embeds, sizes, crops)


def loss_of(loaded: LoadedBase, batch: TrainBatch, seed: int, prior_count: int = 0, weight: float = 1.0) -> float:
    inputs = loaded.loss_inputs(batch, torch.Generator().manual_seed(seed), None, prior_count, weight)
    return float(loaded.loss(inputs).detach())


def published_loss(
    loaded: LoadedBase,
    batch: TrainBatch,
    seed: int,
    scheme: str,
    guidance: float,
    prior_count: int = 0,
    prior: float = 1.0,
) -> float:
    """As ``train_dreambooth_lora_flux.py`` has it, in float32; the pictures of prior preservation come last."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(loaded._scheduler_config)  # type: ignore[attr-defined]
    copied, generator = copy.deepcopy(scheduler), torch.Generator().manual_seed(seed)
    model_input, count = batch.latents, len(batch.latents)
    ids = FluxPipeline._prepare_latent_image_ids(count, 4, 6, "cpu", torch.float32)
    noise = torch.randn(model_input.shape, generator=generator)
    u = compute_density_for_timestep_sampling(scheme, count, logit_mean=0.0, logit_std=1.0, generator=generator)
    timesteps = copied.timesteps[(u * copied.config.num_train_timesteps).long()]
    at = [(copied.timesteps == t).nonzero().item() for t in timesteps]
    sigmas = copied.sigmas[at].view(-1, 1, 1, 1)
    noisy = (1.0 - sigmas) * model_input + sigmas * noise
    packed = FluxPipeline._pack_latents(noisy, count, 16, 8, 12)
    transformer = loaded._shelf.modules("denoiser")[0]  # type: ignore[attr-defined]
    guided = torch.full((count,), guidance) if transformer.config.guidance_embeds else None
    with torch.no_grad():
        out = transformer(
            hidden_states=packed, timestep=timesteps / 1000, guidance=guided,
            pooled_projections=batch.embeds["pooled_prompt_embeds"],
            encoder_hidden_states=batch.embeds["prompt_embeds"], txt_ids=torch.zeros(TOKENS, 3), img_ids=ids,
            return_dict=False,
        )[0]  # fmt: skip
    predicted = FluxPipeline._unpack_latents(out, 64, 96, 8)
    weighting = compute_loss_weighting_for_sd3("none", sigmas=sigmas)
    errors = (weighting * (predicted - (noise - model_input)) ** 2).reshape(count, -1).mean(1)
    own = count - prior_count
    return float(errors[:own].mean() + (prior * errors[own:].mean() if prior_count else 0.0))


def choosing(loaded: LoadedBase, **defaults: Any) -> None:
    loaded.info = replace(loaded.info, defaults=replace(loaded.info.defaults, **defaults))


@pytest.mark.parametrize(("scheme", "density"), [("none", "uniform"), ("logit_normal", "logit_normal")])
@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_the_loss_is_the_published_one(loaded: LoadedBase, scheme: str, density: str, guidance: float) -> None:
    choosing(loaded, timestep_density=density, training_guidance=guidance)
    batch = batch_of()
    ours, theirs = loss_of(loaded, batch, 7), published_loss(loaded, batch, 7, scheme, guidance)
    assert abs(ours - theirs) < 1e-5 < abs(theirs - published_loss(loaded, batch, 8, scheme, guidance))
    ours = loss_of(loaded, batch, 7, 2, 0.3)
    assert abs(ours - published_loss(loaded, batch, 7, scheme, guidance, 2, 0.3)) < 1e-5


def test_guidance_counts_only_where_it_is_taken(loaded: LoadedBase) -> None:
    losses = set()
    for guidance in (1.0, 9.0):
        choosing(loaded, timestep_density="uniform", training_guidance=guidance)
        losses.add(loss_of(loaded, batch_of(), 7))
    assert len(losses) == (2 if loaded.info.id == "tiny-flux" else 1)


def test_gradients_do_not_depend_on_checkpointing(loaded: LoadedBase) -> None:
    """Of none, some or all blocks; and the more of them, the less is kept."""
    choosing(loaded, timestep_density="logit_normal", training_guidance=1.0)
    transformer = loaded._shelf.modules("denoiser")[0]  # type: ignore[attr-defined]
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    weights = {parameter.data_ptr() for parameter in transformer.parameters()}
    inputs = loaded.loss_inputs(batch_of(), torch.Generator().manual_seed(5), None)
    found, kept = [], []
    for share in (0.0, 0.4, 0.7, 1.0):  # 0, 1, 2 and 3 blocks
        recompute(transformer, share)
        saved: dict[int, int] = {}

        def keep(tensor: torch.Tensor, saved: dict[int, int] = saved) -> torch.Tensor:
            if tensor.data_ptr() not in weights:
                saved[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = loaded.loss(inputs)
        kept.append(sum(saved.values()))
        found.append(torch.autograd.grad(loss, parameters))
    loaded.checkpoint_gradients("none")
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))
    assert kept == sorted(kept, reverse=True) and len(set(kept)) == 4 and kept[-1] < 0.5 * kept[0]
    assert sum(bool(gradient.abs().max() > 0) for gradient in found[0]) == len(parameters) == 2 * (12 + 2 * 5)


@pytest.mark.parametrize("level", ["partial", "full", "none"])
def test_checkpointing_is_switched(loaded: LoadedBase, level: str) -> None:
    loaded.checkpoint_gradients(level)
    switched = loaded._shelf.modules("denoiser")[0].gradient_checkpointing  # type: ignore[attr-defined]
    assert switched is (level != "none")


def test_a_weighting_for_other_kinds_of_models_is_no_setting_here(loaded: LoadedBase) -> None:
    with pytest.raises(ValueError, match="min_snr_gamma"):
        loaded.loss_inputs(batch_of(), torch.Generator(), 5.0)


def test_timesteps_are_drawn_as_their_name_says() -> None:
    table = noise_schedule(schedule(False).config)
    count = 20_000
    drawn = {}
    for density in ("uniform", "logit_normal", "sigmoid"):
        share, sigmas = draw_timesteps(table, count, density, torch.Generator().manual_seed(0))
        assert share.dtype == sigmas.dtype == torch.float32 and share.shape == sigmas.shape == (count,)
        assert (share - sigmas).abs().max() < 1e-6, "dev's shift, which grows with the picture, is for drawing"
        assert float(sigmas.min()) > 0 and float(sigmas.max()) <= 1
        drawn[density] = sigmas
    quarter = {density: float((sigmas < 0.25).float().mean()) for density, sigmas in drawn.items()}
    # P(sigmoid(N) < 1/4) = Φ(ln(1/3)) = 0.136
    assert abs(quarter["uniform"] - 0.25) < 0.01
    assert abs(quarter["logit_normal"] - 0.136) < 0.01 and abs(quarter["sigmoid"] - 0.136) < 0.01
    assert len(drawn["logit_normal"].unique()) <= 1000 < len(drawn["sigmoid"].unique())
    with pytest.raises(ValueError, match="strange"):
        draw_timesteps(table, 1, "strange", torch.Generator())


def test_a_fixed_shift_counts_in_training_too() -> None:
    config = FlowMatchEulerDiscreteScheduler(shift=3.0).config
    share, sigmas = draw_timesteps(noise_schedule(config), 4, "uniform", torch.Generator().manual_seed(0))
    plain, _ = draw_timesteps(noise_schedule(schedule(False).config), 4, "uniform", torch.Generator().manual_seed(0))
    assert torch.allclose(sigmas, 3 * plain / (1 + 2 * plain), atol=1e-6) and torch.allclose(share, sigmas, atol=1e-6)
