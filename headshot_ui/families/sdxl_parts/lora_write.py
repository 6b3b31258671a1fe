"""Writing LoRA files of SDXL: kohya's layout for ComfyUI, A1111 and Forge; diffusers' for diffusers.

diffusers' own converter gives kohya's names up when text encoders were trained and makes alpha equal to the rank; that
is why this is our own. What is the same for every family is in ``lora_parts.writing``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.lora_parts.layers import DIFFUSERS, KOHYA_LAYOUT, LoraLayer
from headshot_ui.families.lora_parts.writing import (
    diffusers_tensors,
    file_bytes,
    header_of,
    kohya_layer,
    unknown_layout,
)
from headshot_ui.families.sdxl_parts.lora_names import Topology, kohya_stem

_SGM = "https://github.com/Stability-AI/generative-models"


def lora_bytes(
    layout: str,
    layers: Mapping[str, LoraLayer],
    topology: Topology,
    facts: Mapping[str, str],
    title: str,
    dtype: str | None = None,
) -> bytes:
    """A whole LoRA file in ``layout``; the same LoRA gives the same bytes.

    ``facts`` are header entries (those of ``writing.FACTS`` are taken over), ``title`` is what other programs list it
    as; ``dtype`` (one of ``writing.DTYPES``) None keeps every tensor as it is. Raises ModelError for an unknown layout,
    for a layer that kohya's layout has no name for, and for a number that float16 cannot hold.
    """
    if layout == KOHYA_LAYOUT:
        tensors = kohya_tensors(layers, topology, dtype)
    elif layout == DIFFUSERS:
        tensors = diffusers_tensors(layers, dtype)
    else:
        raise unknown_layout(layout)
    return file_bytes(tensors, _header(layout, layers, facts, title), dtype)


def kohya_tensors(
    layers: Mapping[str, LoraLayer], topology: Topology, dtype: str | None = None
) -> dict[str, torch.Tensor]:
    """``lora_unet_….lora_down.weight``, ``.lora_up.weight`` and ``.alpha`` of every layer. Raises ModelError."""
    tensors: dict[str, torch.Tensor] = {}
    for layer, found in layers.items():
        stem = kohya_stem(layer, topology)
        if stem is None:
            raise ModelError(f"“{layer}” has no name in kohya's layout: export this LoRA for diffusers.")
        tensors |= kohya_layer(stem, found, dtype)
    return tensors


def _header(layout: str, layers: Mapping[str, LoraLayer], facts: Mapping[str, str], title: str) -> dict[str, str]:
    prediction = facts.get("prediction_type", "")
    spec = {
        "architecture": "stable-diffusion-xl-v1-base/lora",
        "implementation": _SGM if layout == KOHYA_LAYOUT else "diffusers",
        "prediction_type": {"epsilon": "epsilon", "v_prediction": "v"}.get(prediction, ""),
    }
    scripts = {
        "base_model_version": "sdxl_base_v1-0",
        "network_module": "networks.lora",
        "v2": "False",
        "v_parameterization": {"epsilon": "False", "v_prediction": "True"}.get(prediction, ""),
    }
    return header_of(layout, layers, facts, title, spec, scripts)
