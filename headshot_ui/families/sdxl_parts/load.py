"""From a folder in diffusers layout, or a checkpoint, to modules in memory; ``source`` says which parts, and when."""

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
    """The components of a StableDiffusionXLPipeline, frozen and in evaluation mode. One not in memory is None or ()."""

    unet: Any  # UNet2DConditionModel
    vae: Any  # AutoencoderKL
    text_encoders: tuple[Any, ...]  # CLIPTextModel, CLIPTextModelWithProjection
    tokenizers: tuple[Any, Any]
    scheduler_config: dict[str, Any]
    zeros_for_empty_prompt: bool


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
