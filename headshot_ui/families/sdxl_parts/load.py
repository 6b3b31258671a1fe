"""From a folder in diffusers layout, or a single checkpoint beside one, to modules in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import AGAIN
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.families.sdxl_parts.files import CLIP_TOKENS, read_json_file, variant_of
from headshot_ui.families.sdxl_parts.kinds import read_schedule
from headshot_ui.families.sdxl_parts.preflight import check_base
from headshot_ui.families.sdxl_parts.single_file import read_part

CLIP_WORDS = 49408
#: What SDXL's encoders were trained to see after the end of a text: the end mark again, and "!".
_PADS = {"tokenizer": CLIP_WORDS - 1, "tokenizer_2": 0}
_PREDICTIONS = ("epsilon", "v_prediction", "sample")  # what the Euler sampler can undo


@dataclass
class SdxlModules:
    """The components of a StableDiffusionXLPipeline, frozen and in evaluation mode, on the CPU."""

    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL
    text_encoders: tuple[Any, Any]  # CLIPTextModel, CLIPTextModelWithProjection
    tokenizers: tuple[Any, Any]
    scheduler_config: dict[str, Any]
    zeros_for_empty_prompt: bool


def load_modules(info: BaseInfo, device: str, dtype: torch.dtype) -> SdxlModules:
    """Read all components from local files, UNet and text encoders in ``dtype``.

    The VAE is float32 where its config asks for it (SDXL's own overflows in float16).
    Raises ModelError naming the file that is missing or damaged.
    """
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    check_base(info)
    folder, checkpoint = info.folder, info.checkpoint
    upcast = read_json_file(folder / "vae" / "config.json").get("force_upcast", True)
    vae_dtype = torch.float32 if upcast or device == "cpu" else dtype
    with quiet():
        text_encoders = (
            read_model(CLIPTextModel, folder, "text_encoder", dtype, checkpoint),
            read_model(CLIPTextModelWithProjection, folder, "text_encoder_2", dtype, checkpoint),
        )
        modules = SdxlModules(
            unet=read_model(UNet2DConditionModel, folder, "unet", dtype, checkpoint),
            vae=read_model(AutoencoderKL, folder, "vae", vae_dtype, checkpoint),
            text_encoders=text_encoders,
            tokenizers=tuple(
                read_tokenizer(folder / name, encoder.config.vocab_size)
                for name, encoder in zip(("tokenizer", "tokenizer_2"), text_encoders, strict=True)
            ),
            scheduler_config=read_schedule(info),
            zeros_for_empty_prompt=bool(
                read_json_file(folder / "model_index.json").get("force_zeros_for_empty_prompt", True)
            ),
        )
    check_scheduler(modules.scheduler_config, folder)
    if device == "cpu":  # measured on the demo base: decoding takes a quarter less time; the UNet gains nothing
        modules.vae.to(memory_format=torch.channels_last)
    return modules


def read_model(kind: Any, folder: Path, part: str, dtype: torch.dtype, checkpoint: Path | None = None) -> Any:
    """One part, frozen and in evaluation mode. Raises ModelError when it cannot be read or lacks a tensor.

    Its config is in ``folder``, and so are its weights unless there is a ``checkpoint`` with all of them.
    """
    if checkpoint is not None:
        return read_part(kind, checkpoint, folder, part, dtype).requires_grad_(False).eval()
    try:
        model, info = kind.from_pretrained(
            folder / part,
            dtype=dtype,
            variant=variant_of(folder, part),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except Exception as error:  # whatever the loaders raise, the cause is a file of this part
        raise ModelError(f"{folder / part} cannot be loaded: {AGAIN}.") from error
    missing = [key for key in info["missing_keys"] if not key.endswith("position_ids")]
    if missing:  # the loaders fill the gap with random numbers
        raise ModelError(f"The weights in {folder / part} are incomplete (“{sorted(missing)[0]}” is missing): {AGAIN}.")
    return model.requires_grad_(False).eval()


def read_tokenizer(folder: Path, vocab_size: int) -> Any:
    """A CLIP tokenizer. Raises ModelError unless it has the ``vocab_size`` words of its text encoder."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder} cannot be loaded: {AGAIN}.") from error
    if len(tokenizer) != vocab_size:
        raise ModelError(
            f"The tokenizer in {folder} has {len(tokenizer)} words, but its text encoder knows {vocab_size}: {AGAIN}."
        )
    length, pad = tokenizer.model_max_length, tokenizer.pad_token_id
    if length != CLIP_TOKENS:
        raise ModelError(f"The tokenizer in {folder} cuts texts at {length} tokens instead of {CLIP_TOKENS}: {AGAIN}.")
    if vocab_size == CLIP_WORDS and pad != _PADS.get(folder.name, pad):
        raise ModelError(
            f"The tokenizer in {folder} fills short texts up with “{tokenizer.pad_token}”, but SDXL was trained with "
            f"“{tokenizer.convert_ids_to_tokens(_PADS[folder.name])}”: {AGAIN}."
        )
    return tokenizer


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


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of the libraries meanwhile; our own checks speak instead."""
    import diffusers.utils.logging as diffusers_log
    import transformers.utils.logging as transformers_log

    before = [(log, log.get_verbosity(), log.is_progress_bar_enabled()) for log in (diffusers_log, transformers_log)]
    try:
        for log, _, _ in before:
            log.set_verbosity_error()
            log.disable_progress_bar()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, verbosity, bars in before:
            log.set_verbosity(verbosity)
            if bars:
                log.enable_progress_bar()
