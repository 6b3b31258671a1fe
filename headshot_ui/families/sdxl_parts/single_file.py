"""One part of SDXL out of a single checkpoint in its original layout, by diffusers' own conversion.

The file is mapped, not read: only the tensors of the part are touched, and those that are already in the wanted number
format are never copied, so that a 7 GB checkpoint needs no 7 GB beside what is made of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.sdxl_parts.files import read_json_file
from headshot_ui.families.sdxl_parts.kinds import BASE_PARTS

_PREFIXES = dict(BASE_PARTS)
GET_AGAIN = "get the complete checkpoint of this model again"


def read_part(kind: Any, checkpoint: Path, folder: Path, part: str, dtype: torch.dtype) -> Any:
    """The part as a model of the class ``kind``, built by ``folder``/``part``/config.json, in ``dtype`` on the CPU.

    Raises ModelError naming the first tensor that is missing or of another shape.
    """
    config = read_json_file(folder / part / "config.json")
    model = _empty(kind, config)
    try:
        state = _converted(_tensors(checkpoint, _PREFIXES[part]), model, config, part)
    except Exception as error:  # the conversions raise whatever an absent tensor leads to
        raise ModelError(f"The {part} in {checkpoint} cannot be read: {GET_AGAIN}.") from error
    _check_shapes(model, state, checkpoint, part)
    with torch.no_grad():
        # Each is changed by itself and the stored one let go, so that never two copies of the whole part are there.
        model.load_state_dict({name: state.pop(name).to(dtype) for name in list(state)}, strict=False, assign=True)
    return model


def _empty(kind: Any, config: dict[str, Any]) -> Any:
    """The model without memory for its weights; buffers, which are in no file, are real."""
    from accelerate import init_empty_weights
    from transformers import CLIPTextConfig, PreTrainedModel

    with init_empty_weights():
        return kind(CLIPTextConfig(**config)) if issubclass(kind, PreTrainedModel) else kind.from_config(config)


def _tensors(checkpoint: Path, prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with ``prefix``, mapped from the file."""
    from safetensors import safe_open

    with safe_open(checkpoint, framework="pt", device="cpu") as file:
        return {name: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118


def _converted(tensors: dict[str, torch.Tensor], model: Any, config: dict[str, Any], part: str) -> dict[str, Any]:
    """The tensors under the names that they have in ``model``."""
    from diffusers.loaders import single_file_utils as diffusers_names

    if part == "unet":
        state = diffusers_names.convert_ldm_unet_checkpoint(tensors, config)
    elif part == "vae":
        state = diffusers_names.convert_ldm_vae_checkpoint(tensors, config)
    elif part == "text_encoder":
        state = diffusers_names.convert_ldm_clip_checkpoint(tensors)
    else:
        state = diffusers_names.convert_open_clip_checkpoint(model, tensors, prefix=f"{_PREFIXES[part]}model.")
    wanted = model.state_dict()
    # transformers 5 says "encoder.…" where checkpoints say "text_model.encoder.…", but for encoders with a projection.
    if part == "text_encoder" and not any(name.startswith("text_model.") for name in wanted):
        state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if name in wanted and tensor is not None}


def _check_shapes(model: Any, state: Mapping[str, torch.Tensor], checkpoint: Path, part: str) -> None:
    for name, empty in model.state_dict().items():
        if name not in state:
            raise ModelError(f"The {part} in {checkpoint} is incomplete (“{name}” is missing): {GET_AGAIN}.")
        if state[name].shape != empty.shape:
            shapes = f"{tuple(state[name].shape)} instead of {tuple(empty.shape)}"
            raise ModelError(f"The {part} in {checkpoint} is not that of SDXL (“{name}” has {shapes}): {GET_AGAIN}.")
