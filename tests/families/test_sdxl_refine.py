"""Base and refiner together draw what diffusers' two pipelines draw, and nothing depends on the batch."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline, StableDiffusionXLPipeline

from headshot_ui import families
from headshot_ui.errors import ModelError, SpecError
from headshot_ui.families.protocol import (
    BaseInfo,
    DenoiseRequest,
    DenoiseStep,
    LoadedBase,
    LoadedRefiner,
    RefineRequest,
    RefinerInfo,
)
from headshot_ui.families.sdxl_parts import denoise
from headshot_ui.families.shared_parts.drawing import first_noise
from headshot_ui.settings import Settings
from tests.families.rounding import ROUNDING, apart

PROMPTS = (
    "portrait of tok person, wearing a navy suit, in front of a bright office",
    "portrait of tok person, close-up, a gentle smile",
)
SEEDS = (7, 11)
STEPS = 6
SIZE = {"height": 64, "width": 64}


def base_request(loaded: LoadedBase, prompts: tuple[str, ...], seeds: tuple[int, ...], guidance: float, stop: float):
    negative = loaded.encode_prompts([""] * len(prompts))
    return DenoiseRequest(loaded.encode_prompts(prompts), negative, seeds, STEPS, guidance, **SIZE, stop_at=stop)


def refine_request(
    loaded: LoadedBase,
    latents: torch.Tensor,
    prompts: tuple[str, ...] = PROMPTS,
    seeds: tuple[int, ...] = SEEDS,
    guidance: float = 4.0,
    **way: object,
) -> RefineRequest:
    negative = loaded.encode_prompts([""] * len(prompts))
    fields = {**SIZE, "start_at": None, "strength": None, "steps": STEPS, "negative_embeds": negative, **way}
    return RefineRequest(latents, loaded.encode_prompts(prompts), seeds=seeds, guidance_scale=guidance, **fields)


def last(steps) -> torch.Tensor:
    return list(steps)[-1].latents


@cache
def base_of(base_id: str, settings: Settings) -> LoadedBase:
    return families.load_base(families.find_base(base_id, settings), settings)


@cache
def refiner_of(base: BaseInfo, settings: Settings) -> LoadedRefiner:
    return families.load_refiner(families.find_refiner(None, base, settings), settings)


@cache
def pipelines(base: BaseInfo, info: RefinerInfo) -> tuple[StableDiffusionXLPipeline, StableDiffusionXLImg2ImgPipeline]:
    """diffusers' own, the second as its documentation puts a refiner together."""
    first = StableDiffusionXLPipeline.from_pretrained(base.folder, dtype=torch.float32, use_safetensors=True)
    second = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        info.folder, dtype=torch.float32, use_safetensors=True, vae=first.vae,
        text_encoder=None, tokenizer=None, text_encoder_2=first.text_encoder_2, tokenizer_2=first.tokenizer_2,
    )  # fmt: skip
    for pipe in (first, second):
        pipe.set_progress_bar_config(disable=True)
    return first, second


@pytest.mark.parametrize("base_id", ["tiny-sdxl", "epsilon-sdxl"])  # 5 ids, zeros and v; 6 ids, read and epsilon
@pytest.mark.parametrize(
    ("guidance", "way"),
    [
        (1.0, {"start_at": 0.8}),
        (4.0, {"start_at": 0.55}),
        (4.0, {"strength": 0.3}),
        (1.0, {"strength": 0.99}),
        (4.0, {"strength": 1.0}),
    ],
)
def test_pictures_equal_the_two_pipelines(base_id: str, guidance: float, way: dict, settings: Settings) -> None:
    loaded = base_of(base_id, settings)
    refiner = refiner_of(loaded.info, settings)
    base, info = loaded.info, refiner.info
    switch = way.get("start_at")
    first, second = pipelines(base, info)
    generators = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    common = {"num_inference_steps": STEPS, "guidance_scale": guidance, "generator": generators}
    drawn = first(list(PROMPTS), **common, **SIZE, denoising_end=switch, output_type="latent").images
    expected = second(
        list(PROMPTS), image=drawn, **common, output_type="latent",
        **({"denoising_start": switch} if switch else way),
    ).images  # fmt: skip

    latents = last(loaded.denoise(base_request(loaded, PROMPTS, SEEDS, guidance, switch or 1.0)))
    assert apart(latents, drawn) < ROUNDING
    zeros = families.refiner_facts(info, base).zeros_for_empty_prompt
    negative = loaded.encode_prompts(["" if zeros else " "] * 2)
    ours = last(refiner.refine(refine_request(loaded, latents, guidance=guidance, **way, negative_embeds=negative)))
    assert apart(ours, expected) < ROUNDING
    assert (ours - drawn).abs().max() > 1e-2  # the refiner does something


@pytest.mark.parametrize("base_id", ["tiny-sdxl", "epsilon-sdxl"])
@pytest.mark.parametrize("switch", [0.25, 0.5, 0.8])
def test_a_switch_to_the_same_weights_is_no_switch(base_id: str, switch: float, settings: Settings) -> None:
    loaded = base_of(base_id, settings)
    whole = list(loaded.denoise(base_request(loaded, PROMPTS, SEEDS, 4.0, 1.0)))
    first = list(loaded.denoise(base_request(loaded, PROMPTS, SEEDS, 4.0, switch)))
    wanted = refine_request(loaded, first[-1].latents.cpu(), start_at=switch)
    second = list(denoise.refine(loaded.modules.unet, loaded.modules.scheduler_config, wanted))
    assert [step.total for step in (first[0], second[0])] == [len(first), len(second)]
    assert len(first) + len(second) == STEPS
    assert families.split_steps(loaded.info, STEPS, switch) == (len(first), len(second))
    assert torch.equal(second[-1].latents, whole[-1].latents)


@pytest.mark.parametrize("base_id", ["tiny-sdxl", "epsilon-sdxl"])
def test_half_way_the_base_says_what_it_expects_behind_the_noise(base_id: str, settings: Settings) -> None:
    loaded = base_of(base_id, settings)
    whole = list(loaded.denoise(base_request(loaded, PROMPTS, SEEDS, 4.0, 1.0)))
    first = list(loaded.denoise(base_request(loaded, PROMPTS, SEEDS, 4.0, 0.55)))
    assert [step.clean is None for step in (*whole, *first)] == [True] * (STEPS + len(first) - 1) + [False]
    schedule = denoise._schedule(loaded.modules.scheduler_config, STEPS)
    noise_left = schedule.sigmas[len(first)] / schedule.sigmas[len(first) - 1]
    # Euler goes straight towards what it expects: the share of noise that is left lies between there and the start.
    assert torch.allclose(
        first[-1].latents, noise_left * first[-2].latents + (1 - noise_left) * first[-1].clean, atol=1e-4
    )


def test_a_timestep_at_the_cutoff_is_the_base_s(settings: Settings) -> None:
    base = families.find_base("epsilon-sdxl", settings)  # its six timesteps: 831, 665, 499, 333, 167, 1
    assert families.split_steps(base, 6, 0.5) == (2, 4)
    assert families.split_steps(base, 6, 0.501) == (3, 3)
    assert families.split_steps(base, 6, 0.502) == (3, 3)
    assert families.split_steps(base, 6, 0.95) == (5, 1)


def test_the_empty_text_can_be_read_instead_of_zeros(tiny: LoadedBase) -> None:
    read = tiny.encode_prompts([" "])
    for tokenizer, encoder, part in zip(
        tiny.modules.tokenizers, tiny.modules.text_encoders, read["prompt_embeds"].split([16, 24], -1), strict=True
    ):
        ids = tokenizer([""], padding="max_length", max_length=77, return_tensors="pt").input_ids
        assert torch.equal(encoder(ids, output_hidden_states=True).hidden_states[-2], part)


@pytest.mark.parametrize("way", [{"start_at": 0.6}, {"strength": 0.5}])
def test_a_seed_gives_the_same_picture_in_any_batch(way: dict, tiny: LoadedBase, refiner: LoadedRefiner) -> None:
    latents = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    prompts, seeds = (PROMPTS[1], PROMPTS[0], PROMPTS[1]), (9, 5, 1)
    among = last(refiner.refine(refine_request(tiny, latents, prompts, seeds, **way)))
    alone = last(refiner.refine(refine_request(tiny, latents[1:2], prompts[1:2], seeds[1:2], **way)))
    assert apart(alone[0], among[1]) < ROUNDING
    other = last(refiner.refine(refine_request(tiny, latents[1:2], prompts[1:2], (6,), **way)))
    assert torch.equal(other, alone) == ("start_at" in way)  # only img2img adds noise


def test_the_noise_added_is_not_the_noise_the_picture_was_made_from() -> None:
    first, second = first_noise(SEEDS, (4, 8, 8)), denoise.second_noise(SEEDS, (4, 8, 8))
    assert first.shape == second.shape
    assert abs(float((first * second).mean())) < 0.2
    assert torch.equal(second[1:], denoise.second_noise(SEEDS[1:], (4, 8, 8)))


def test_steps_come_one_by_one_and_stopping_harms_nothing(tiny: LoadedBase, refiner: LoadedRefiner) -> None:
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = refine_request(tiny, latents, PROMPTS[:1], (3,), strength=0.5)
    steps: list[DenoiseStep] = list(refiner.refine(wanted))
    assert [(step.step, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    running = refiner.refine(wanted)
    next(running)
    assert torch.is_grad_enabled()
    running.close()
    refiner.keep(frozenset())
    refiner.keep(frozenset({"denoiser"}))
    assert torch.equal(last(refiner.refine(wanted)), steps[-1].latents)


@pytest.mark.parametrize(
    ("way", "field"), [({"strength": 0.05}, "refiner_strength"), ({"start_at": 0.95, "steps": 2}, "refiner_switch")]
)
def test_no_step_at_all_is_refused(way: dict, field: str, tiny: LoadedBase, refiner: LoadedRefiner) -> None:
    with pytest.raises(SpecError) as caught:
        next(refiner.refine(refine_request(tiny, torch.zeros(2, 4, 8, 8), **way)))
    assert caught.value.field == field


def test_embeddings_of_another_width_are_refused(tiny: LoadedBase, refiner: LoadedRefiner) -> None:
    wanted = refine_request(tiny, torch.zeros(2, 4, 8, 8), strength=0.5)
    for name, width in (("prompt_embeds", 16), ("pooled_prompt_embeds", 20)):
        narrow = {**wanted.embeds, name: wanted.embeds[name][..., :width]}
        with pytest.raises(ModelError, match="another base model"):
            next(refiner.refine(replace(wanted, embeds=narrow)))


def test_a_half_precision_refiner_keeps_latents_in_float32(settings: Settings, tiny: LoadedBase) -> None:
    half = Settings.from_environment(models_dir=settings.models_dir, device="cpu", dtype="bfloat16")
    exact = refiner_of(tiny.info, settings)
    refiner = families.load_refiner(exact.info, half)
    wanted = refine_request(tiny, torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), strength=0.4)
    ours, theirs = last(refiner.refine(wanted)), last(exact.refine(wanted))
    assert ours.dtype == torch.float32
    assert (ours - theirs).abs().mean() < 0.05 * theirs.abs().mean()
