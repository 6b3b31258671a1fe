"""One part of SDXL out of a single checkpoint in its original layout, by diffusers' own conversion.

The file is mapped, not read: only the tensors of the part are touched, and those that are already in the wanted number
format are never copied. Others are changed a few at a time, after which their pages of the file are let go, so that a
checkpoint takes hardly more memory than what is made of it (``benchmarks/checkpoint_memory.py`` measures that).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.sdxl_parts.kinds import BASE_PARTS
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.families.shared_parts.mapped import as_named_here, empty_model, filled, mapped_tensors

_PREFIXES = dict(BASE_PARTS)
GET_AGAIN = "get the complete checkpoint of this model again"


def read_part(kind: Any, checkpoint: Path, folder: Path, part: str, dtype: torch.dtype) -> Any:
    """The part as a model of the class ``kind``, built by ``folder``/``part``/config.json, in ``dtype`` on the CPU.

    Raises ModelError naming the first tensor that is missing or of another shape.
    """
    config = read_json_file(folder / part / "config.json")
    model = empty_model(kind, config)
    try:
        state = _converted(mapped_tensors(checkpoint, _PREFIXES[part], dtype), model, config, part)
    except Exception as error:  # the conversions raise whatever an absent tensor leads to
        raise ModelError(f"The {part} in {checkpoint} cannot be read: {GET_AGAIN}.") from error
    _check_shapes(model, state, checkpoint, part)
    return filled(model, state, dtype)


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
    state = as_named_here(state, wanted)
    return {name: tensor for name, tensor in state.items() if name in wanted and tensor is not None}


def _check_shapes(model: Any, state: Mapping[str, torch.Tensor], checkpoint: Path, part: str) -> None:
    for name, empty in model.state_dict().items():
        if name not in state:
            raise ModelError(f"The {part} in {checkpoint} is incomplete (“{name}” is missing): {GET_AGAIN}.")
        if state[name].shape != empty.shape:
            shapes = f"{tuple(state[name].shape)} instead of {tuple(empty.shape)}"
            raise ModelError(f"The {part} in {checkpoint} is not that of SDXL (“{name}” has {shapes}): {GET_AGAIN}.")
