"""Writing LoRA files: what is the same for every family and layout.

- diffusers' layout has alpha in the header only, where most readers do not look, so there it is multiplied into the
  upper matrix and every reader's alpha = rank is right.
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
from headshot_ui.families.lora_parts.fused import scaled_up
from headshot_ui.families.lora_parts.layers import DIFFUSERS, KOHYA_LAYOUT, LoraFile, LoraLayer, commonest, exactly
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.store import write_bytes_atomic

DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32}
#: Header entries of ours that go into every file, where they are known.
FACTS = (
    "family", "base", "base_title", "licence", "trigger", "class_word", "steps", "date", "program", "prediction_type",
    "trained_rank", "trained_alpha",
)  # fmt: skip


def save_lora(path: Path, state: Mapping[str, torch.Tensor], metadata: Mapping[str, str]) -> None:
    """Write a LoRA of the denoiser whole or not at all, for diffusers and everybody who reads its layout.

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


def plain_layers(file: LoraFile) -> dict[str, LoraLayer]:
    """All layers of a LoRA. Raises ModelError for its relatives, which are not written here."""
    layers = {layer: found for layer, found in file.layers.items() if isinstance(found, LoraLayer)}
    if len(layers) != len(file.layers):
        raise ModelError(
            f"{file.path} is no plain LoRA, and other kinds are not written here: give away the file itself."
        )
    return layers


def known_facts(file: LoraFile, facts: Mapping[str, str], info: BaseInfo) -> dict[str, str]:
    """What is known of a LoRA that is written anew: ``facts`` win over what its file says of itself."""
    return {
        **file.header,
        **{name: text for name, text in facts.items() if text},
        "family": info.family,
        "resolution": f"{info.size_px}x{info.size_px}",
        "trained_rank": file.header.get("trained_rank", file.header.get("rank", "")),
        "trained_alpha": file.header.get("trained_alpha", file.header.get("alpha", "")),
    }


def header_of(
    layout: str,
    layers: Mapping[str, LoraLayer],
    facts: Mapping[str, str],
    title: str,
    spec: Mapping[str, str],
    scripts: Mapping[str, str],
) -> dict[str, str]:
    """The header of a LoRA file, but for the hash of its data.

    ``spec`` and ``scripts`` are what a family adds for Stability AI's specification and, in kohya's layout, for
    sd-scripts (see ``modelspec`` and ``sd_scripts``).
    """
    rank = commonest(layer.rank for layer in layers.values())
    alpha = commonest(layer.strength for layer in layers.values()) if layout == KOHYA_LAYOUT else float(rank)
    known = {name: facts[name] for name in FACTS if facts.get(name)}
    header = {"format": "pt", **known, "layout": layout, "rank": f"{rank:g}", "alpha": f"{alpha:g}"}
    header |= modelspec(known, title, {**spec, "resolution": facts.get("resolution", "")})
    return header | (sd_scripts(known, rank, alpha, title, scripts) if layout == KOHYA_LAYOUT else {})


def unknown_layout(layout: str) -> ModelError:
    return ModelError(f"There is no LoRA layout “{layout}”: choose {KOHYA_LAYOUT} or {DIFFUSERS}.")


def file_bytes(tensors: Mapping[str, torch.Tensor], header: Mapping[str, str], dtype: str | None) -> bytes:
    """A whole LoRA file; the same input gives the same bytes. The header gets a hash of the data.

    Raises ModelError for a number that ``dtype`` cannot hold.
    """
    from safetensors.torch import save

    if not all(bool(tensor.isfinite().all()) for tensor in tensors.values()):
        raise ModelError(f"This LoRA holds numbers too large for {dtype}: export it as float32.")
    bare = save(dict(tensors))
    begin = 8 + int.from_bytes(bare[:8], "little")
    data = memoryview(bare)[begin:]
    digest = hashlib.sha256(data).hexdigest()  # of all that follows the header, as the specification and sd-scripts say
    told = {**header, "modelspec.hash_sha256": f"0x{digest}"}
    if "ss_network_module" in header:
        told["sshs_model_hash"] = digest
    # safetensors writes the entries of a header in an order drawn by lot.
    entries = {"__metadata__": dict(sorted(told.items())), **json.loads(bare[8:begin])}
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, data))


def kohya_layer(stem: str, layer: LoraLayer, dtype: str | None) -> dict[str, torch.Tensor]:
    """``….lora_down.weight``, ``.lora_up.weight`` and ``.alpha``."""
    return {
        f"{stem}.lora_down.weight": _as(layer.down, dtype),
        f"{stem}.lora_up.weight": _as(layer.up, dtype),
        f"{stem}.alpha": _alpha(layer, dtype),
    }


def diffusers_tensors(layers: Mapping[str, LoraLayer], dtype: str | None = None) -> dict[str, torch.Tensor]:
    """``….lora_A.weight`` and ``.lora_B.weight`` of every layer, alpha over rank multiplied into B."""
    tensors = {}
    seen: set[int] = set()  # a file holds no tensor twice, but layers may share one
    for layer, found in layers.items():
        for name, matrix in (("lora_A", found.down), ("lora_B", scaled_up(found))):
            tensor = _as(matrix, dtype)
            if tensor.data_ptr() in seen:
                tensor = tensor.clone()
            seen.add(tensor.data_ptr())
            tensors[f"{layer}.{name}.weight"] = tensor
    return tensors


def modelspec(known: Mapping[str, str], title: str, more: Mapping[str, str]) -> dict[str, str]:
    """Entries of Stability AI's model specification; ``more`` has the architecture and what else a family knows."""
    return without_empty(
        {
            "modelspec.sai_model_spec": "1.0.0",
            "modelspec.title": title,
            "modelspec.date": known.get("date", ""),
            "modelspec.license": known.get("licence", ""),
            "modelspec.trigger_phrase": known.get("trigger", ""),
            **{f"modelspec.{name}": text for name, text in more.items()},
        }
    )


def sd_scripts(
    known: Mapping[str, str], rank: float, alpha: float, title: str, more: Mapping[str, str]
) -> dict[str, str]:
    """Entries that sd-scripts writes; ``more`` has the version of the base model and what else a family knows."""
    return without_empty(
        {
            "ss_network_dim": f"{rank:g}",
            "ss_network_alpha": f"{alpha:g}",
            "ss_output_name": title,
            "ss_sd_model_name": known.get("base_title", known.get("base", "")),
            "ss_steps": known.get("steps", ""),
            **{f"ss_{name}": text for name, text in more.items()},
        }
    )


def without_empty(entries: Mapping[str, str]) -> dict[str, str]:
    return {name: text for name, text in entries.items() if text}


def _as(tensor: torch.Tensor, dtype: str | None) -> torch.Tensor:
    return (tensor if dtype is None else tensor.to(DTYPES[dtype])).cpu().contiguous()


def _alpha(layer: LoraLayer, dtype: str | None) -> torch.Tensor:
    """As it is in the file it came from; in a smaller type only where that holds it exactly."""
    alpha = exactly(layer.strength) if layer.alpha is None else layer.alpha.clone()
    if dtype is not None:
        smaller = alpha.to(DTYPES[dtype])
        alpha = smaller if float(smaller) == float(alpha) else alpha
    return alpha.contiguous()
