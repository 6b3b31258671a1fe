"""Words, pictures and denoising are those of diffusers' own pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline

from headshot_ui import families
from headshot_ui.families.protocol import DenoiseRequest, DenoiseStep, LoadedBase, StepFunction
from headshot_ui.settings import Settings
from tests.families.rounding import ROUNDING, apart

PROMPTS = (
    "portrait of tok person, wearing a navy suit, in front of a bright office",
    "portrait of tok person, close-up, a gentle smile",
)


@pytest.fixture(scope="module")
def pipeline(models_dir: Path) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(models_dir / "tiny", dtype=torch.float32, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def request(loaded: LoadedBase, prompts: tuple[str, ...], seeds: tuple[int, ...], **changes: object) -> DenoiseRequest:
    fields = {
        "embeds": loaded.encode_prompts(prompts),
        "negative_embeds": loaded.encode_prompts([""] * len(prompts)),
        "seeds": seeds,
        "steps": 3,
        "guidance_scale": 3.0,
        "height": 64,
        "width": 64,
    }
    return DenoiseRequest(**{**fields, **changes})


def last(loaded: LoadedBase, wanted: DenoiseRequest) -> torch.Tensor:
    return list(loaded.denoise(wanted))[-1].latents


def test_prompts_are_encoded_as_the_pipeline_does(tiny: LoadedBase, pipeline: StableDiffusionXLPipeline) -> None:
    theirs, _, pooled, _ = pipeline.encode_prompt(list(PROMPTS), device="cpu", do_classifier_free_guidance=False)
    ours = tiny.encode_prompts(PROMPTS)
    assert torch.equal(ours["prompt_embeds"], theirs)
    assert torch.equal(ours["pooled_prompt_embeds"], pooled)


def test_the_empty_prompt_is_zeros(tiny: LoadedBase) -> None:
    embeds = tiny.encode_prompts(["", PROMPTS[0]])
    for tensor in embeds.values():
        assert not tensor[0].any()
        assert tensor[1].any()


def test_words_outside_a_small_vocabulary_are_named_and_left_out(tiny: LoadedBase) -> None:
    assert tiny.unknown_words(PROMPTS[0]) == ()
    assert tiny.unknown_words("Portrait of a Zebra, wearing a pink hat, pink; close-up") == ("zebra", "pink", "hat")
    known = tiny.encode_prompts(["portrait of a , wearing"])
    assert torch.equal(tiny.encode_prompts(["portrait of a zebra, wearing"])["prompt_embeds"], known["prompt_embeds"])


@pytest.mark.parametrize("base", ["tiny-sdxl", "epsilon-sdxl"])
@pytest.mark.parametrize("guidance_scale", [1.0, 4.0])
def test_pictures_equal_the_pipelines(base: str, guidance_scale: float, settings: Settings) -> None:
    info = families.find_base(base, settings)
    loaded = families.load_base(info, settings)
    pipe = StableDiffusionXLPipeline.from_pretrained(info.folder, dtype=torch.float32, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    seeds = (7, 11)
    theirs = pipe(
        list(PROMPTS),
        num_inference_steps=3,
        guidance_scale=guidance_scale,
        height=64,
        width=64,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
        output_type="latent",
    ).images
    ours = last(loaded, request(loaded, PROMPTS, seeds, guidance_scale=guidance_scale))
    assert apart(ours, theirs) < ROUNDING
    pictures = [np.asarray(picture) for picture in loaded.decode_latents(ours)]
    expected = pipe.image_processor.postprocess(
        pipe.vae.decode(theirs / pipe.vae.config.scaling_factor).sample.detach(), output_type="pil"
    )
    assert max(np.abs(a.astype(int) - np.asarray(b)).max() for a, b in zip(pictures, expected, strict=True)) <= 1


def test_a_seed_gives_the_same_picture_in_any_batch(tiny: LoadedBase) -> None:
    alone = last(tiny, request(tiny, PROMPTS[:1], (5,)))
    among = last(tiny, request(tiny, (PROMPTS[1], PROMPTS[0], PROMPTS[1]), (9, 5, 1)))
    # Not bit-equal: processors choose their kernels by the size of the batch. A neighbour's noise would differ by 1.
    assert apart(alone[0], among[1]) < ROUNDING
    assert not torch.allclose(alone[0], last(tiny, request(tiny, PROMPTS[:1], (6,)))[0], atol=1e-2)


def test_steps_come_one_by_one_and_stopping_harms_nothing(tiny: LoadedBase) -> None:
    wanted = request(tiny, PROMPTS[:1], (3,))
    steps: list[DenoiseStep] = list(tiny.denoise(wanted))
    assert [(step.step, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]
    running = tiny.denoise(wanted)
    next(running)
    assert torch.is_grad_enabled()  # the caller's mode between steps is the caller's
    running.close()
    assert torch.equal(last(tiny, wanted), steps[-1].latents)


def test_a_step_is_nothing_but_tensors_and_can_be_recorded(tiny: LoadedBase) -> None:
    wanted = request(tiny, PROMPTS, (3, 4))
    calls: list[tuple[torch.Tensor, ...]] = []

    def recorder(step: StepFunction, module: torch.nn.Module) -> StepFunction:
        assert module is tiny.modules.unet
        calls.clear()

        def carry_out(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
            calls.append(inputs)
            return step(*(tensor.clone() for tensor in inputs))  # as from the buffers of a graph

        return carry_out

    recorded = last(tiny, replace(wanted, recorder=recorder))
    assert torch.equal(recorded, last(tiny, wanted))
    shapes = {tuple((tensor.shape, tensor.dtype) for tensor in inputs) for inputs in calls}
    assert len(calls) == 3 and len(shapes) == 1, "a graph takes the same shapes each time"


def test_a_model_in_half_precision_draws_with_a_lora_in_training(tiny: LoadedBase, settings: Settings) -> None:
    half = Settings.from_environment(models_dir=settings.models_dir, device="cpu", dtype="bfloat16")
    loaded = families.load_base(tiny.info, half)
    wanted = request(loaded, PROMPTS[:1], (3,))
    bare = last(loaded, wanted)
    loaded.add_trainable_lora(2, 2.0, 0)  # float32 beside bfloat16
    assert torch.allclose(last(loaded, wanted), bare, atol=1e-2), "its B is zero"


def test_without_autocast_half_precision_is_as_near(tiny: LoadedBase, settings: Settings) -> None:
    half = Settings.from_environment(models_dir=settings.models_dir, device="cpu", dtype="bfloat16")
    loaded = families.load_base(tiny.info, half)
    exact = last(tiny, request(tiny, PROMPTS, (7, 11), steps=6))
    ours = last(loaded, request(loaded, PROMPTS, (7, 11), steps=6))
    assert ours.dtype == torch.float32
    difference = (ours - exact).square().mean().sqrt() / (exact.max() - exact.min())
    assert 20 * torch.log10(1 / difference) >= 40  # dB


@pytest.mark.parametrize(("share", "guided"), [(1.0, 5), (0.6, 3), (0.0, 0)])
def test_guidance_can_end_before_the_picture_does(share: float, guided: int, tiny: LoadedBase) -> None:
    rows: list[int] = []
    hook = tiny.modules.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    try:
        cut = last(tiny, request(tiny, PROMPTS, (3, 4), steps=5, guided_share=share))
    finally:
        hook.remove()
    assert rows == [4] * guided + [2] * (5 - guided)
    ends = {1.0: 3.0, 0.0: 1.0}
    if share in ends:
        assert torch.equal(cut, last(tiny, request(tiny, PROMPTS, (3, 4), steps=5, guidance_scale=ends[share])))


def test_other_sizes_can_be_drawn(tiny: LoadedBase) -> None:
    latents = last(tiny, request(tiny, PROMPTS[:1], (3,), height=128, width=64))
    assert latents.shape == (1, 4, 16, 8)
    assert tiny.decode_latents(latents)[0].size == (64, 128)


def test_encoding_is_the_scaled_mean_and_reproducible(tiny: LoadedBase) -> None:
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean = tiny.encode_images(images)
    vae = tiny.modules.vae
    with torch.no_grad():
        assert torch.allclose(mean, vae.encode(images).latent_dist.mean * vae.config.scaling_factor, atol=1e-6)
    drawn = tiny.encode_images(images, torch.Generator().manual_seed(1))
    assert torch.equal(drawn, tiny.encode_images(images, torch.Generator().manual_seed(1)))
    assert not torch.equal(drawn, mean)


def test_previews_are_like_the_pictures_and_bear_any_latents(tiny: LoadedBase) -> None:
    smooth = torch.nn.functional.interpolate(
        torch.randn(1, 4, 2, 2, generator=torch.Generator().manual_seed(4)), size=(8, 8), mode="bilinear"
    )
    picture = np.asarray(tiny.decode_latents(smooth)[0].resize((8, 8)), dtype=float)
    preview = tiny.preview(smooth)[0]
    assert preview.size == (64, 64)
    rough = np.asarray(preview.resize((8, 8)), dtype=float)
    spread = np.abs(picture - picture.mean(axis=(0, 1))).mean()
    assert np.abs(rough - picture).mean() < spread  # nearer than one flat colour would be
    assert tiny.preview(smooth * 4096)[0].size == (64, 64)
