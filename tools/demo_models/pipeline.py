"""Write and read the demo base as a diffusers SDXL pipeline folder."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tools.demo_models import nets, words

if TYPE_CHECKING:
    from diffusers import StableDiffusionXLPipeline
    from torch import nn

#: What the program reads about the base model (fields of BaseInfo and BaseDefaults).
ABOUT = {
    "id": "demo-sdxl",
    "family": "sdxl",
    "title": "Demo (draws cartoons)",
    "licence": "Apache-2.0",
    "note": "A tiny model that draws cartoon people, not photographs: it shows on any machine how everything works.",
    "size_px": 256,
    "demo": True,
    "defaults": {
        "sampling_steps": 16,
        "guidance_scale": 2.0,
        "train_steps": 260,
        "batch_size": 4,
        "rank": 16,
        "learning_rate": 2e-3,
        "min_snr_gamma": None,
        "checkpoint_every": 50,
        "sample_every": 130,
        "trigger": "tok",
        "refine": "ensemble",
        "refiner_switch": 0.8,
        "refiner_strength": 0.3,
    },
}


def save(
    folder: Path,
    unet: nn.Module,
    text_encoder: nn.Module,
    text_encoder_2: nn.Module,
    vocabulary: Iterable[str],
    figures: dict[str, float],
) -> None:
    """Write everything but the VAE, which train_vae puts there, in fp16. ``figures`` goes into training.json."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in (("unet", unet), ("text_encoder", text_encoder), ("text_encoder_2", text_encoder_2)):
        copy.deepcopy(module).to("cpu", torch.float16, memory_format=torch.contiguous_format).save_pretrained(
            folder / name
        )
    nets.make_scheduler().save_pretrained(folder / "scheduler")
    words.save_tokenizers(folder, vocabulary)
    index = {
        "_class_name": "StableDiffusionXLPipeline",
        "feature_extractor": [None, None],
        "force_zeros_for_empty_prompt": True,
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for name, content in (("model_index.json", index), ("base.json", ABOUT), ("training.json", figures)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load(folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> StableDiffusionXLPipeline:
    """The pipeline by diffusers' own loader, from this folder only."""
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(
        folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, add_watermarker=False
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)
