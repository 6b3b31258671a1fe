"""Writing LoRA files that other programs take: kohya's layout for ComfyUI, A1111 and Forge; diffusers' for diffusers.

- Alpha: kohya's layout has it beside every layer. diffusers' has it in the header only, where most readers do not
  look, so there it is multiplied into the upper matrix and every reader's alpha = rank is right.
- diffusers' own converter gives kohya's names up when text encoders were trained and makes alpha equal to the rank;
  that is why this is our own.
- The header says what the LoRA is, in our words, in Stability AI's model specification
  (https://github.com/Stability-AI/ModelSpec) and, in kohya's layout, in the words of sd-scripts. No path goes into it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.sdxl_parts.lora_file import DIFFUSERS, KOHYA_LAYOUT, LoraLayer, commonest
from headshot_ui.families.sdxl_parts.lora_names import Topology, kohya_stem
from headshot_ui.store import write_bytes_atomic

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
#: Header entries of ours that go into every file, where they are known.
FACTS = (
    "family", "base", "base_title", "trigger", "class_word", "steps", "date", "program", "prediction_type",
    "trained_rank", "trained_alpha",
)  # fmt: skip


def save_lora(path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a LoRA of the UNet whole or not at all, for diffusers and everybody who reads its layout.

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


def lora_bytes(
    layout: str,
    layers: Mapping[str, LoraLayer],
    topology: Topology,
    facts: Mapping[str, str],
    title: str,
    dtype: str | None = None,
) -> bytes:
    """A whole LoRA file in ``layout``; the same LoRA gives the same bytes.

    ``facts`` are header entries (those of ``FACTS`` are taken over), ``title`` is what other programs list it as;
    ``dtype`` (one of ``DTYPES``) None keeps every tensor as it is. Raises ModelError for an unknown layout, for a
    layer that kohya's layout has no name for, and for a number that float16 cannot hold.
    """
    from safetensors.torch import save

    if layout == KOHYA_LAYOUT:
        tensors = kohya_tensors(layers, topology, dtype)
    elif layout == DIFFUSERS:
        tensors = diffusers_tensors(layers, dtype)
    else:
        raise ModelError(f"There is no LoRA layout “{layout}”: choose {KOHYA_LAYOUT} or {DIFFUSERS}.")
    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ModelError(f"This LoRA holds numbers too large for {dtype}: export it as float32.")
    bare = save(tensors)
    begin = 8 + int.from_bytes(bare[:8], "little")
    data = memoryview(bare)[begin:]
    header = _header(layout, layers, facts, title)
    digest = hashlib.sha256(data).hexdigest()  # of all that follows the header, as the specification and sd-scripts say
    header["modelspec.hash_sha256"] = f"0x{digest}"
    if layout == KOHYA_LAYOUT:
        header["sshs_model_hash"] = digest
    # safetensors writes the entries of a header in an order drawn by lot.
    entries = {"__metadata__": dict(sorted(header.items())), **json.loads(bare[8:begin])}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, data))


def kohya_tensors(
    layers: Mapping[str, LoraLayer], topology: Topology, dtype: str | None = None
) -> dict[str, torch.Tensor]:
    """``lora_unet_….lora_down.weight``, ``.lora_up.weight`` and ``.alpha`` of every layer. Raises ModelError."""
    tensors = {}
    for layer, found in layers.items():
        stem = kohya_stem(layer, topology)
        if stem is None:
            raise ModelError(f"“{layer}” has no name in kohya's layout: export this LoRA for diffusers.")
        tensors[f"{stem}.lora_down.weight"] = _as(found.down, dtype)
        tensors[f"{stem}.lora_up.weight"] = _as(found.up, dtype)
        tensors[f"{stem}.alpha"] = _alpha(found, dtype)
    return tensors


def diffusers_tensors(layers: Mapping[str, LoraLayer], dtype: str | None = None) -> dict[str, torch.Tensor]:
    """``unet.….lora_A.weight`` and ``.lora_B.weight`` of every layer, alpha over rank multiplied into B."""
    tensors = {}
    for layer, found in layers.items():
        up, scale = found.up, found.strength / found.rank
        if scale != 1:
            scaled = up.float() * scale
            up = scaled.to(up.dtype)  # float16 rounds the smallest numbers
            up = up if torch.equal(up.float(), scaled) else scaled
        tensors[f"{layer}.lora_A.weight"] = _as(found.down, dtype)
        tensors[f"{layer}.lora_B.weight"] = _as(up, dtype)
    return tensors


def _as(tensor: torch.Tensor, dtype: str | None) -> torch.Tensor:
    return (tensor if dtype is None else tensor.to(DTYPES[dtype])).cpu().contiguous()


def _alpha(layer: LoraLayer, dtype: str | None) -> torch.Tensor:
    """As it is in the file it came from; in a smaller type only where that holds it exactly."""
    alpha = torch.tensor(layer.strength) if layer.alpha is None else layer.alpha.clone()
    if dtype is not None:
        smaller = alpha.to(DTYPES[dtype])
        alpha = smaller if float(smaller) == float(alpha) else alpha
    return alpha.contiguous()


def _header(layout: str, layers: Mapping[str, LoraLayer], facts: Mapping[str, str], title: str) -> dict[str, str]:
    rank = commonest(layer.rank for layer in layers.values())
    alpha = commonest(layer.strength for layer in layers.values()) if layout == KOHYA_LAYOUT else float(rank)
    known = {name: facts[name] for name in FACTS if facts.get(name)}
    header = {
        "format": "pt",
        **known,
        "layout": layout,
        "rank": f"{rank:g}",
        "alpha": f"{alpha:g}",
        **_modelspec(layout, known, facts, title),
    }
    if layout == KOHYA_LAYOUT:
        header |= _sd_scripts(known, rank, alpha, title)
    return header


def _modelspec(layout: str, known: Mapping[str, str], facts: Mapping[str, str], title: str) -> dict[str, str]:
    sgm = "https://github.com/Stability-AI/generative-models"
    return _without_empty(
        {
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
            "modelspec.implementation": sgm if layout == KOHYA_LAYOUT else "diffusers",
            "modelspec.title": title,
            "modelspec.date": known.get("date", ""),
            "modelspec.resolution": facts.get("resolution", ""),
            "modelspec.trigger_phrase": known.get("trigger", ""),
            "modelspec.prediction_type": {"epsilon": "epsilon", "v_prediction": "v"}.get(
                known.get("prediction_type", ""), ""
            ),
        }
    )


def _sd_scripts(known: Mapping[str, str], rank: float, alpha: float, title: str) -> dict[str, str]:
    prediction = {"epsilon": "False", "v_prediction": "True"}.get(known.get("prediction_type", ""), "")
    return _without_empty(
        {
            "ss_base_model_version": "sdxl_base_v1-0",
            "ss_network_module": "networks.lora",
            "ss_network_dim": f"{rank:g}",
            "ss_network_alpha": f"{alpha:g}",
            "ss_output_name": title,
            "ss_sd_model_name": known.get("base_title", known.get("base", "")),
            "ss_steps": known.get("steps", ""),
            "ss_v2": "False",
            "ss_v_parameterization": prediction,
        }
    )


def _without_empty(entries: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in entries.items() if text}
