"""Writing LoRA files of FLUX.1: kohya's layout for ComfyUI and Forge; diffusers' for diffusers and ai-toolkit.

In kohya's layout query, key and value are one layer (see ``lora_names``); those of a LoRA that has them apart are put
together as sd-scripts' own converter does (networks/convert_flux_lora.py), with the ranks added up. What is the same
for every family is in ``lora_parts.writing``.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from headshot_ui.families.flux_parts.lora_file import Place
from headshot_ui.families.flux_parts.lora_names import kohya_layers
from headshot_ui.families.lora_parts.fused import united
from headshot_ui.families.lora_parts.layers import DIFFUSERS, KOHYA_LAYOUT, LoraLayer
from headshot_ui.families.lora_parts.writing import (
    diffusers_tensors,
    file_bytes,
    header_of,
    kohya_layer,
    unknown_layout,
)
from headshot_ui.families.lora_parts.writing import save_lora as save_lora

_SOURCE = "https://github.com/black-forest-labs/flux"


def lora_bytes(
    layout: str,
    layers: Mapping[str, LoraLayer],
    place: Place,
    facts: Mapping[str, str],
    title: str,
    dtype: str | None = None,
) -> bytes:
    """A whole LoRA file in ``layout``; the same LoRA gives the same bytes.

    ``facts`` are header entries (those of ``writing.FACTS`` are taken over; "architecture" is the base's, "flux-1-dev"
    for instance), ``title`` is what other programs list it as; ``dtype`` (one of ``writing.DTYPES``) None keeps every
    tensor as it is. Raises ModelError for an unknown layout and for a number that float16 cannot hold.
    """
    if layout == KOHYA_LAYOUT:
        tensors = kohya_tensors(layers, place, dtype)
    elif layout == DIFFUSERS:
        tensors = diffusers_tensors(layers, dtype)
    else:
        raise unknown_layout(layout)
    return file_bytes(tensors, _header(layout, layers, facts, title), dtype)


def kohya_tensors(layers: Mapping[str, LoraLayer], place: Place, dtype: str | None = None) -> dict[str, torch.Tensor]:
    """``lora_unet_….lora_down.weight``, ``.lora_up.weight`` and ``.alpha`` of every layer, as it is there."""
    sizes = {layer: shape[0] for layer, shape in place.shapes.items()}
    tensors: dict[str, torch.Tensor] = {}
    for stem, pieces in kohya_layers(place.shapes).items():
        whole = united(layers, pieces, sizes)
        if whole is not None:
            tensors |= kohya_layer(stem, whole, dtype)
    return tensors


def _header(layout: str, layers: Mapping[str, LoraLayer], facts: Mapping[str, str], title: str) -> dict[str, str]:
    spec = {
        "architecture": f"{facts.get('architecture', 'flux-1-dev')}/lora",
        "implementation": _SOURCE if layout == KOHYA_LAYOUT else "diffusers",
    }
    scripts = {"base_model_version": "flux1", "network_module": "networks.lora_flux", "v2": "False"}
    return header_of(layout, layers, facts, title, spec, scripts)
