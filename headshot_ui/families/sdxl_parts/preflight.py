"""Does everything of a base model belong together? Told from configs, tokenizers and headers, before it is loaded.

Loaders mind too little: with a tokenizer of two words, a refiner's UNet or an inpainting one they draw nonsense, or
fail in the middle of a job with a sentence about shapes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import AGAIN
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.families.sdxl_parts.files import check_files
from headshot_ui.families.sdxl_parts.kinds import BASE, NEEDS_SDXL, check_checkpoint
from headshot_ui.families.sdxl_parts.refiner_files import SIZED_IDS, ids_count
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.families.shared_parts.words import check_words

TEXT_TO_IMAGE = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline")  # both are saved from the same parts
#: How the classes of other pipelines begin or end, and what they are; the first that fits counts.
_OTHER_PIPELINES = (
    ("Inpaint", "an inpainting model, which draws only with a mask"),
    ("ControlNet", "a model with a ControlNet"),
    ("StableDiffusionXL", "an SDXL model for another task"),
    ("StableDiffusion3", "Stable Diffusion 3, another family"),
    ("StableDiffusion", "Stable Diffusion 1 or 2, another family"),
    ("Flux", "FLUX, another family"),
)


def check_base(info: BaseInfo) -> None:
    """Raise ModelError for the first thing that is missing, damaged or of another model."""
    check_pipeline(info.folder)
    check_files(info.folder, weights=info.checkpoint is None)
    check_unet(info.folder)
    for suffix in ("", "_2"):
        check_words(info.folder, suffix)
    if info.checkpoint is not None:
        check_checkpoint(info.checkpoint, BASE)


def check_pipeline(folder: Path) -> None:
    """Raise ModelError unless ``model_index.json`` names a pipeline that draws pictures from texts with SDXL."""
    name = str(read_json_file(folder / "model_index.json").get("_class_name", ""))
    if name in TEXT_TO_IMAGE:
        return
    told = next((told for mark, told in _OTHER_PIPELINES if mark in name), "a model of another family")
    raise ModelError(f"{folder} is {told} ({name or 'no class is named'}): {NEEDS_SDXL} for text to image.")


def check_unet(folder: Path) -> None:
    """Raise ModelError unless the UNet takes what the other parts give: their texts, latents and size conditions."""
    place = folder / "unet"
    unet, vae, first, second = (
        read_json_file(folder / part / "config.json") for part in ("unet", "vae", "text_encoder", "text_encoder_2")
    )
    if unet.get("_class_name") != "UNet2DConditionModel" or unet.get("addition_embed_type") != "text_time":
        raise ModelError(f"{place} is another kind of network, not the UNet of SDXL: {AGAIN}.")
    if unet.get("in_channels") == 2 * vae.get("latent_channels", 4) + 1:
        raise ModelError(f"{place} is the UNet of an inpainting model, which draws only with a mask: {NEEDS_SDXL}.")
    if unet.get("in_channels") != vae.get("latent_channels", 4):
        raise ModelError(f"{place} takes {unet.get('in_channels')} channels, for another task: {NEEDS_SDXL}.")
    if vae.get("latents_mean") or vae.get("latents_std"):
        raise ModelError(f"{folder} is a model whose latents mean something else (Playground v2.5): {NEEDS_SDXL}.")
    width, widths = unet.get("cross_attention_dim"), [encoder.get("hidden_size", 0) for encoder in (first, second)]
    if width != sum(widths):
        if width == widths[1]:
            raise ModelError(f"{place} is the UNet of a refiner, not of a base model: {AGAIN}.")
        raise ModelError(f"The parts in {folder} belong to different models: {AGAIN}.")
    if _ids(unet, second) != SIZED_IDS:
        raise ModelError(f"{place} expects other size conditions than a base model of SDXL: {AGAIN}.")


def _ids(unet: dict[str, Any], encoder: dict[str, Any]) -> int:
    try:
        return ids_count(unet, encoder["projection_dim"])
    except (KeyError, TypeError):
        return -1
