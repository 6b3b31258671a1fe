"""Write and read the demo FLUX as a folder that diffusers' FluxPipeline loads."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tools.demo_models import flux_nets, flux_words, words

if TYPE_CHECKING:
    from diffusers import FluxPipeline
    from torch import nn

FOLDER = "flux"
#: What the program reads about the base model (fields of BaseInfo and BaseDefaults).
ABOUT = {
    "id": "demo-flux",
    "family": "flux",
    "title": "Demo of FLUX.1 (draws cartoons)",
    "licence": "Apache-2.0",
    "note": "A tiny model built like FLUX.1 that draws cartoon people, less surely than the other demo.",
    "size_px": 256,
    "demo": True,
    "defaults": {
        "sampling_steps": 16,
        "guidance_scale": 3.0,
        "train_steps": 260,
        "batch_size": 8,
        "rank": 16,
        "learning_rate": 2e-3,
        "checkpoint_every": 50,
        "sample_every": 130,
        "trigger": "tok",
    },
}


def save(
    folder: Path,
    transformer: nn.Module,
    clip: nn.Module,
    t5: nn.Module,
    vocabulary: Iterable[str],
    figures: dict[str, float],
) -> None:
    """Write everything but the VAE, which train_flux_vae puts there, in fp16. ``figures`` goes into training.json."""
    known = list(vocabulary)
    folder.mkdir(parents=True, exist_ok=True)
    for name, module in (("transformer", transformer), ("text_encoder", clip), ("text_encoder_2", t5)):
        copy.deepcopy(module).to("cpu", torch.float16).save_pretrained(folder / name)
    flux_nets.make_scheduler().save_pretrained(folder / "scheduler")
    words.tokenizers(known)[0].save_pretrained(folder / "tokenizer")
    flux_words.tokenizer(known).save_pretrained(folder / "tokenizer_2")
    index = {
        "_class_name": "FluxPipeline",
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5Tokenizer"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for name, content in (("model_index.json", index), ("base.json", ABOUT), ("training.json", figures)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load(folder: Path, device: torch.device, dtype: torch.dtype = torch.float32) -> FluxPipeline:
    """The pipeline by diffusers' own loader, from this folder only."""
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


def draw(
    pipe: FluxPipeline, prompts: list[str], seeds: list[int], steps: int, guidance: float, size_px: int = 256
) -> torch.Tensor:
    """Pictures (B, 3, size, size) in [0, 1] on the CPU; the same seed gives the same picture in any batch."""
    made = pipe(
        prompt=prompts,
        height=size_px,
        width=size_px,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        max_sequence_length=flux_words.LENGTH,
        output_type="pt",
    ).images
    return made.float().cpu()


def folder_bytes(folder: Path) -> int:
    """All files under a folder together. Raises ValueError where they are more than may be shipped."""
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if size > flux_nets.MOST_BYTES:
        raise ValueError(f"{folder} has {size / 1e6:.2f} MB, more than {flux_nets.MOST_BYTES / 1e6:.1f}.")
    return size
