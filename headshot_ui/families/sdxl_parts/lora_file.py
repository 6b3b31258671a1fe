"""LoRA files: reading diffusers' and kohya's layouts, writing diffusers'."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.store import write_bytes_atomic

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoraFile:
    """A LoRA in diffusers' layout, all of it for the UNet."""

    path: Path
    state: Mapping[str, torch.Tensor]  # "unet.<module>.lora_A.weight" (rank, in), "….lora_B.weight" (out, rank)
    alphas: Mapping[str, float] | None  # None: alpha equals rank
    adapter_metadata: dict[str, Any] | None  # peft's own settings, where the file carries them
    header: Mapping[str, str]


def read_lora_file(path: Path, unet_config: Any, family: str) -> LoraFile:
    """Read a LoRA. Raises ModelError when it is missing, damaged, for another family or for no layer at all."""
    from diffusers.utils import convert_unet_state_dict_to_peft

    tensors, header = read_tensors(path)
    made_for = header.get("family", family)
    if made_for != family:
        raise ModelError(f"{path} was trained for the family “{made_for}”, not for “{family}”: choose another LoRA.")
    state, alphas = _to_diffusers(path, tensors, unet_config)
    ours = {name: tensor for name, tensor in state.items() if name.startswith("unet.")}
    if len(ours) < len(state):
        _log.warning("%s also changes the text encoders; only its part for the UNet is used", path)
    if ours and not any(".lora_A." in name for name in ours):
        ours = convert_unet_state_dict_to_peft(ours)
    if not any(".lora_A." in name for name in ours):
        raise ModelError(f"{path} has nothing for this kind of base model: choose a LoRA trained for “{family}”.")
    return LoraFile(path, ours, alphas, _adapter_metadata(path, header), header)


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Tensors and header of a safetensors file. Raises ModelError when it is missing or damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except FileNotFoundError as error:
        raise ModelError(f"The LoRA {path} is not there: train one, or choose another.") from error
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"The LoRA {path} is damaged: train it again, or choose another.") from error


def _to_diffusers(
    path: Path, tensors: dict[str, torch.Tensor], unet_config: Any
) -> tuple[dict[str, torch.Tensor], dict[str, float] | None]:
    from diffusers.loaders import StableDiffusionXLLoraLoaderMixin

    try:
        state, alphas = StableDiffusionXLLoraLoaderMixin.lora_state_dict(dict(tensors), unet_config=unet_config)
    except Exception as error:  # the converters raise whatever an unexpected key leads to
        raise ModelError(f"{path} is a kind of LoRA that cannot be read: choose another.") from error
    return state, alphas


def _adapter_metadata(path: Path, header: Mapping[str, str]) -> dict[str, Any] | None:
    text = header.get("lora_adapter_metadata")
    if not text:
        return None
    try:
        settings: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ModelError(f"The LoRA {path} is damaged: train it again, or choose another.") from error
    return settings


def save_lora(path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a LoRA whole or not at all, for diffusers and everybody who reads its layout.

    Readers take alpha for equal to rank unless told in ways that not all of them know, so
    ``metadata["alpha"]`` (default: the rank) over rank is multiplied into B. Raises StoreError.
    """
    from safetensors.torch import save

    rank = next(tensor.shape[0] for name, tensor in state.items() if name.endswith(".lora_A.weight"))
    scale = float(metadata.get("alpha", rank)) / rank
    tensors = {
        name: (tensor.float() * scale if ".lora_B." in name else tensor.float()).cpu().contiguous()
        for name, tensor in state.items()
    }
    header = {**metadata, "format": "pt", "alpha_in_file": str(rank)}
    write_bytes_atomic(path, save(tensors, metadata=header))
