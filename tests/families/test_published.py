"""The configs that ship lead to SDXL's own networks and tokens, counted without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from headshot_ui.families.shared_parts.words import check_tokenizer, read_tokenizer

PUBLISHED = Path(__file__).parents[2] / "headshot_ui" / "families" / "sdxl_parts" / "published"
BASE, REFINER = PUBLISHED / "base", PUBLISHED / "refiner"


def config(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / name).read_text(encoding="utf-8"))


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(("folder", "count"), [(BASE, 2_567_463_684), (REFINER, 2_259_526_660)])
def test_the_unets_have_their_published_size(folder: Path, count: int) -> None:
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config(folder, "unet/config.json"))
        vae = AutoencoderKL.from_config(config(folder, "vae/config.json"))
    assert (parameters(unet), parameters(vae)) == (count, 83_653_863)
    assert (vae.config.scaling_factor, vae.config.force_upcast) == (0.13025, True)
    sizes = 5 if folder is REFINER else 6
    assert unet.config.projection_class_embeddings_input_dim == 1280 + sizes * unet.config.addition_time_embed_dim


@pytest.mark.parametrize(
    ("suffix", "kind", "count"),
    [("", CLIPTextModel, 123_060_480), ("_2", CLIPTextModelWithProjection, 694_659_840)],
)
def test_the_text_encoders_have_their_published_size(suffix: str, kind: Any, count: int) -> None:
    with torch.device("meta"):
        encoder = kind(CLIPTextConfig.from_json_file(BASE / f"text_encoder{suffix}" / "config.json"))
    assert parameters(encoder) == count
    assert encoder.config.vocab_size == len(read_tokenizer(BASE / f"tokenizer{suffix}", 49408))


@pytest.mark.parametrize(("folder", "pad"), [("tokenizer", 49407), ("tokenizer_2", 0)])
def test_texts_become_clips_numbers(folder: str, pad: int) -> None:
    check_tokenizer(BASE / folder)
    tokenizer = CLIPTokenizer.from_pretrained(BASE / folder, local_files_only=True)
    assert (len(tokenizer), tokenizer.model_max_length, tokenizer.pad_token_id) == (49408, 77, pad)
    ids = tokenizer("a photo of a cat", padding="max_length", max_length=77).input_ids
    assert ids == [49406, 320, 1125, 539, 320, 2368, 49407] + [pad] * 70
    assert tokenizer("A Photo  of\na CAT").input_ids == ids[:7]


@pytest.mark.parametrize("folder", [BASE, REFINER])
def test_the_schedule_is_stabilitys(folder: Path) -> None:
    entries = config(folder, "scheduler/scheduler_config.json")
    euler = EulerDiscreteScheduler.from_config(entries)
    euler.set_timesteps(20)
    assert euler.timesteps[:2].tolist() + euler.timesteps[-1:].tolist() == [951.0, 901.0, 1.0]  # leading, offset 1
    assert float(DDPMScheduler.from_config(entries).alphas_cumprod[-1]) == pytest.approx(0.0046600, abs=1e-6)


def test_the_models_say_what_they_were_trained_with() -> None:
    base, refiner = config(BASE, "model_index.json"), config(REFINER, "model_index.json")
    assert (base["force_zeros_for_empty_prompt"], base.get("requires_aesthetics_score", False)) == (True, False)
    assert (refiner["force_zeros_for_empty_prompt"], refiner["requires_aesthetics_score"]) == (False, True)


def test_the_vocabulary_is_stored_once() -> None:
    """Equal files are one object in git; a change to one of them must be made to both."""
    for name in ("vocab.json", "merges.txt"):
        assert (BASE / "tokenizer" / name).read_bytes() == (BASE / "tokenizer_2" / name).read_bytes()
