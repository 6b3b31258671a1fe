"""Is this a whole SDXL refiner, and one for this base? Told from configs and headers, before anything is loaded.

Of a refiner only ``unet`` and ``scheduler`` are used; the VAE, the text encoder and the tokenizer that a full download
brings are those of the base and are not looked at.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import AGAIN
from headshot_ui.families.protocol import BaseInfo, RefinerFacts, RefinerInfo
from headshot_ui.families.sdxl_parts.kinds import REFINER, check_checkpoint, read_schedule
from headshot_ui.families.shared_parts.files import check_safetensors, read_json_file, weight_files

# Original size, crop and either an aesthetic score (as Stability's own refiner) or, like a base, the target size.
SCORED_IDS, SIZED_IDS = 5, 6
#: Entries of a scheduler's config that decide how noisy a picture is at a step, with diffusers' defaults.
_SCHEDULE = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "rescale_betas_zero_snr": False,
    "timestep_spacing": "linspace",
    "steps_offset": 0,
    "interpolation_type": "linear",
    "final_sigmas_type": "zero",
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
}


def check_refiner_files(info: RefinerInfo) -> dict[str, Any]:
    """The UNet's config. Raises ModelError for the first file that is missing, cut short or of another kind."""
    folder = info.folder
    config = read_json_file(folder / "unet" / "config.json")
    read_json_file(folder / "scheduler" / "scheduler_config.json")
    if info.checkpoint is not None:
        check_checkpoint(info.checkpoint, REFINER)
    for path in _weights(info):
        check_safetensors(path)
    where = folder / "unet"
    if config.get("_class_name") != "UNet2DConditionModel" or config.get("addition_embed_type") != "text_time":
        raise ModelError(f"{where} is another kind of model, not an SDXL refiner: {AGAIN}.")
    for name in ("cross_attention_dim", "projection_class_embeddings_input_dim", "addition_time_embed_dim"):
        if not isinstance(config.get(name), int):
            raise ModelError(f"“{name}” in {where / 'config.json'} is not usable: {AGAIN}.")
    return config


def refiner_facts(info: RefinerInfo, base: BaseInfo) -> RefinerFacts:
    """See ``protocol.Family.refiner_facts``."""
    config = check_refiner_files(info)
    base_unet = read_json_file(base.folder / "unet" / "config.json")
    encoder = read_json_file(base.folder / "text_encoder_2" / "config.json")
    where, width = info.folder / "unet", config["cross_attention_dim"]
    if width != encoder.get("hidden_size"):
        if width == base_unet.get("cross_attention_dim"):
            raise ModelError(f"{where} is the UNet of a base model, not of a refiner: {AGAIN}.")
        raise _not_for(info, base, f"it reads texts {width} numbers wide, not {encoder.get('hidden_size')}")
    pooled = encoder.get("projection_dim")
    if not isinstance(pooled, int) or ids_count(config, pooled) not in (SCORED_IDS, SIZED_IDS):
        raise _not_for(info, base, "it expects other size conditions")
    if config.get("in_channels") != base_unet.get("in_channels"):
        raise _not_for(info, base, "its latents have another number of channels")
    return RefinerFacts(_weights(info), _zeros(info.folder), _same_schedule(info, base))


def _weights(info: RefinerInfo) -> tuple[Path, ...]:
    return weight_files(info.folder, "unet") if info.checkpoint is None else (info.checkpoint,)


def ids_count(config: Any, pooled: int) -> int:
    """How many size conditions a UNet takes beside ``pooled`` numbers of text; -1 when that is no whole number."""
    rest, size = config["projection_class_embeddings_input_dim"] - pooled, config["addition_time_embed_dim"]
    return int(rest // size) if size > 0 and rest % size == 0 else -1


def _zeros(folder: Path) -> bool:
    """Stability's refiner says in its ``model_index.json`` that its empty prompt is read, not zeros."""
    path = folder / "model_index.json"
    return bool(read_json_file(path).get("force_zeros_for_empty_prompt", True)) if path.is_file() else True


def _same_schedule(info: RefinerInfo, base: BaseInfo) -> bool:
    mine, theirs = read_schedule(info), read_schedule(base)
    return all(mine.get(name, default) == theirs.get(name, default) for name, default in _SCHEDULE.items())


def _not_for(info: RefinerInfo, base: BaseInfo, why: str) -> ModelError:
    return ModelError(f"The refiner “{info.id}” does not fit “{base.title}” ({why}): choose another, or none.")
