"""FLUX.1 draws what diffusers' own pipeline draws from the same noise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headshot_ui import families
from headshot_ui.families.flux_parts.denoise import image_ids, pack, schedule_of, unpack
from headshot_ui.families.protocol import DenoiseRequest, LoadedBase
from headshot_ui.settings import Settings
from tests.families.flux.conftest import pipeline_of
from tests.tiny_flux import schedule

PROMPTS = ["portrait of tok person , wearing a navy suit", "soft light , studio backdrop"]
SEEDS = (3, 4)
TOKENS = 48


@pytest.fixture(scope="module")
def pipeline(models_dir: Path) -> Any:
    return pipeline_of(models_dir / "dev")


def request_of(loaded: LoadedBase, **changes: Any) -> DenoiseRequest:
    embeds = loaded.encode_prompts(PROMPTS)
    return replace(DenoiseRequest(embeds, embeds, SEEDS, 4, 3.5, height=64, width=128), **changes)


def drawn(loaded: LoadedBase, **changes: Any) -> torch.Tensor:
    return list(loaded.denoise(request_of(loaded, **changes)))[-1].latents


@torch.no_grad()
def test_prompts_are_encoded_as_the_pipeline_does(tiny: LoadedBase, pipeline: Any) -> None:
    embeds = tiny.encode_prompts(PROMPTS)
    hidden, pooled, _ = pipeline.encode_prompt(PROMPTS, None, max_sequence_length=TOKENS)
    assert embeds["prompt_embeds"].shape == (2, TOKENS, 24) and embeds["pooled_prompt_embeds"].shape == (2, 16)
    assert torch.allclose(embeds["prompt_embeds"], hidden, atol=1e-5)
    assert torch.allclose(embeds["pooled_prompt_embeds"], pooled, atol=1e-5)
    assert not torch.allclose(hidden[0], hidden[1], atol=1e-2)


@pytest.mark.parametrize(("name", "guidance"), [("dev", 3.5), ("dev", 9.0), ("schnell", 0.0)])
@torch.no_grad()
def test_latents_are_those_of_the_pipeline(
    name: str, guidance: float, tiny: LoadedBase, schnell: LoadedBase, pipeline: Any, models_dir: Path
) -> None:
    loaded, theirs = (tiny, pipeline) if name == "dev" else (schnell, pipeline_of(models_dir / name))
    steps = list(loaded.denoise(request_of(loaded, guidance_scale=guidance)))
    noise = [torch.Generator().manual_seed(seed) for seed in SEEDS]
    packed = theirs(
        prompt=PROMPTS, height=64, width=128, num_inference_steps=4, guidance_scale=guidance, generator=noise,
        max_sequence_length=TOKENS, output_type="latent",
    ).images  # fmt: skip
    expected = theirs._unpack_latents(packed, 64, 128, 8)
    assert [(step.step, step.total) for step in steps] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert steps[-1].latents.shape == (2, 16, 8, 16)
    assert (steps[-1].latents - expected).abs().max() < 1e-5
    assert expected.std() > 0.1


def test_words_and_guidance_change_the_picture(tiny: LoadedBase, schnell: LoadedBase) -> None:
    """So that the comparison above is of something."""
    usual = drawn(tiny)
    assert (usual[0] - usual[1]).abs().max() > 0.1
    assert (drawn(tiny, guidance_scale=9.0) - usual).abs().max() > 1e-4
    assert (drawn(tiny, embeds=tiny.encode_prompts(PROMPTS[::-1])) - usual).abs().max() > 1e-4
    assert torch.equal(drawn(schnell, guidance_scale=9.0), drawn(schnell)), "schnell takes none"


@torch.no_grad()
def test_pictures_are_decoded_and_encoded_as_the_pipeline_does(tiny: LoadedBase, pipeline: Any) -> None:
    latents = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    vae = pipeline.vae
    decoded = vae.decode(latents / vae.config.scaling_factor + vae.config.shift_factor).sample
    theirs = pipeline.image_processor.postprocess(decoded, output_type="np")[0] * 255
    assert np.abs(np.asarray(tiny.decode_latents(latents)[0]) - theirs).max() < 0.51
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    mean = vae.encode(images).latent_dist.mode()
    expected = (mean - vae.config.shift_factor) * vae.config.scaling_factor
    assert (tiny.encode_images(images) - expected).abs().max() < 1e-5


def test_a_batch_changes_no_picture(tiny: LoadedBase) -> None:
    together = drawn(tiny)
    for index, seed in enumerate(SEEDS):
        embeds = tiny.encode_prompts([PROMPTS[index]])
        alone = drawn(tiny, embeds=embeds, negative_embeds=embeds, seeds=(seed,))
        assert (alone[0] - together[index]).abs().max() < 1e-5


def test_steps_are_recorded_as_one(tiny: LoadedBase) -> None:
    """What a recorder is given is nothing but tensors, of the same shapes each time, and equal steps are equal keys."""
    seen: list[tuple[Any, tuple[torch.Size, ...]]] = []

    def recorder(step: Any, module: torch.nn.Module) -> Any:
        def carried_out(*inputs: torch.Tensor) -> Any:
            seen.append((step, tuple(tensor.shape for tensor in inputs)))
            return step(*(tensor.clone() for tensor in inputs))

        assert any(
            parameter is next(tiny._shelf.modules("denoiser")[0].parameters()) for parameter in module.parameters()
        )  # type: ignore[attr-defined]
        return carried_out

    assert torch.equal(drawn(tiny, recorder=recorder), drawn(tiny))
    list(tiny.denoise(request_of(tiny, recorder=recorder)))
    assert len(seen) == 8 and len({hash(step) for step, _ in seen}) == 1 and len({shapes for _, shapes in seen}) == 1
    assert seen[0][0] == seen[-1][0]


def test_it_stops_half_way_and_tells_what_it_expects(tiny: LoadedBase, settings: Settings) -> None:
    half = list(tiny.denoise(request_of(tiny, stop_at=0.5)))
    info = families.find_base("tiny-flux", settings)
    before, after = families.split_steps(info, 4, 0.5)
    whole = list(tiny.denoise(request_of(tiny)))
    assert before + after == 4 and 0 < len(half) < 4
    assert torch.equal(half[-1].latents, whole[len(half) - 1].latents)
    assert half[-1].clean is not None and whole[-1].clean is None
    # σ → 0 from here in one step is what is expected behind the noise.
    level = schedule_of(schedule(False).config, 4, 4 * 8).sigmas
    at = len(half) - 1
    direction = (half[-1].latents - whole[at - 1].latents) / (level[at + 1] - level[at])
    assert (half[-1].clean - (whole[at - 1].latents - level[at] * direction)).abs().max() < 1e-4


def test_pieces_go_back_to_where_they_were(pipeline: Any) -> None:
    latents = torch.randn(2, 16, 6, 10)
    assert torch.equal(pack(latents), pipeline._pack_latents(latents, 2, 16, 6, 10))
    assert torch.equal(unpack(pack(latents), 6, 10), latents)
    assert torch.equal(image_ids(6, 10), pipeline._prepare_latent_image_ids(2, 3, 5, "cpu", torch.float32))


def test_previews_are_pictures_of_the_finished_size(tiny: LoadedBase) -> None:
    assert [picture.size for picture in tiny.preview(torch.randn(2, 16, 8, 16) * 100)] == [(128, 64)] * 2
