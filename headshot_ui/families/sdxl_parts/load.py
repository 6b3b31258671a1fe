"""From a folder in diffusers layout, or a checkpoint, to modules in memory; ``source`` says which parts, and when."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import AGAIN
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.families.sdxl_parts.kinds import read_schedule
from headshot_ui.families.sdxl_parts.preflight import check_base
from headshot_ui.families.sdxl_parts.single_file import read_part
from headshot_ui.families.shared_parts import load
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.families.shared_parts.load import quiet
from headshot_ui.families.shared_parts.words import read_tokenizer

_PREDICTIONS = ("epsilon", "v_prediction", "sample")  # what the Euler sampler can undo


@dataclass(frozen=True)
class SdxlModules:
    """The components of a StableDiffusionXLPipeline, frozen and in evaluation mode. One not in memory is None or ()."""

    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL
    text_encoders: tuple[Any, ...]  # CLIPTextModel, CLIPTextModelWithProjection
    tokenizers: tuple[Any, Any]
    scheduler_config: dict[str, Any]
    zeros_for_empty_prompt: bool


def by_part(modules: SdxlModules) -> dict[str, tuple[Any, ...]]:
    """What is in memory of "text", "vae" and "denoiser"; () for what is not."""
    one = {"vae": modules.vae, "denoiser": modules.unet}
    return {
        "text": modules.text_encoders,
        **{part: () if module is None else (module,) for part, module in one.items()},
    }


def with_parts(facts: SdxlModules, parts: Mapping[str, tuple[Any, ...]]) -> SdxlModules:
    """The tokenizers and schedule of ``facts`` with these modules, as ``by_part`` gives them, and no others."""
    unet, vae = (next(iter(parts.get(part, ())), None) for part in ("denoiser", "vae"))
    return replace(facts, unet=unet, vae=vae, text_encoders=parts.get("text", ()))


def load_facts(info: BaseInfo) -> SdxlModules:
    """Tokenizers and schedule, without any weights; all files are looked at and must belong together.

    Raises ModelError naming the file that is missing or damaged.
    """
    check_base(info)
    folder = info.folder
    encoders = [read_json_file(folder / name / "config.json") for name in ("text_encoder", "text_encoder_2")]
    scheduler_config = read_schedule(info)
    check_scheduler(scheduler_config, folder)
    index = read_json_file(folder / "model_index.json")
    with quiet():
        first, second = (
            read_tokenizer(folder / name, encoder.get("vocab_size", 0))
            for name, encoder in zip(("tokenizer", "tokenizer_2"), encoders, strict=True)
        )
    zeros = bool(index.get("force_zeros_for_empty_prompt", True))
    return SdxlModules(None, None, (), (first, second), scheduler_config, zeros)


def read_model(kind: Any, folder: Path, part: str, dtype: torch.dtype, checkpoint: Path | None = None) -> Any:
    """One part, frozen and in evaluation mode. Raises ModelError when it cannot be read or lacks a tensor.

    Its config is in ``folder``, and so are its weights unless there is a ``checkpoint`` with all of them.
    """
    if checkpoint is not None:
        return read_part(kind, checkpoint, folder, part, dtype).requires_grad_(False).eval()
    return load.read_model(kind, folder, part, dtype)


def check_scheduler(config: dict[str, Any], folder: Path) -> None:
    """Raise ModelError for a schedule that makes no sense.

    Built here once, because a bad one would otherwise be noticed only when drawing or training begins.
    """
    from diffusers import DDPMScheduler, EulerDiscreteScheduler

    try:
        with quiet():
            known = config.get("prediction_type", "epsilon") in _PREDICTIONS
            EulerDiscreteScheduler.from_config(config).set_timesteps(2)
            DDPMScheduler.from_config(config)
    except Exception as error:  # the constructors raise whatever a strange entry leads to
        raise ModelError(f"{folder / 'scheduler' / 'scheduler_config.json'} cannot be used: {AGAIN}.") from error
    if not known:
        raise ModelError(f"{folder / 'scheduler' / 'scheduler_config.json'} cannot be used: {AGAIN}.")
