"""LoRA in FLUX.1: one of the transformer that is being trained. Finished ones go on as ``in_model`` does it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from headshot_ui.families.flux_parts import blocks
from headshot_ui.families.flux_parts.choosing import OfLoras
from headshot_ui.families.lora_parts import in_model
from headshot_ui.families.lora_parts.layers import Layer, LoraFile
from headshot_ui.families.lora_parts.relatives import RelatedLayer
from headshot_ui.families.shared_parts.load import quiet

PREFIX = "transformer."
_ATTENTION = "to_q|to_k|to_v|to_out\\.0|add_q_proj|add_k_proj|add_v_proj|to_add_out"
#: Attention and feed-forward layers of all blocks, by their whole paths: the name ``proj_out`` alone would mean the
#: last layer too, and "linear" the modulation, which a face has no part in.
TARGETS = (
    rf"transformer_blocks\.\d+\.(attn\.({_ATTENTION})|ff(_context)?\.net\.(0\.proj|2))"
    r"|single_transformer_blocks\.\d+\.(attn\.(to_q|to_k|to_v)|proj_mlp|proj_out)"
)
#: Layers that a row of modulation stands for, as LoRA files name them, and those that it is computed from.
_MODULATION = re.compile(r"\.norm(1|1_context|_out)?\.linear$")
_EMBEDDING = f"{PREFIX}time_text_embed."


def add_trainable(transformer: Any, rank: int, alpha: float, seed: int) -> list[torch.nn.Parameter]:
    """A fresh float32 LoRA on attention and feed-forward layers: A gaussian from ``seed``, B zero.

    No other LoRA may be on. Returns its parameters in the order of the modules.
    """
    from peft import LoraConfig

    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=TARGETS, init_lora_weights="gaussian")
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        transformer.add_adapter(config, in_model.TRAINED)
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    for parameter in parameters:  # in bfloat16 most updates would be rounded away
        parameter.data = parameter.data.float()
    blocks.speed_up(transformer, in_model.TRAINED)
    return parameters


def facts_of(loras: Sequence[tuple[LoraFile, float]]) -> OfLoras:
    """What a way of fitting has to know of finished LoRAs."""
    layers = {name: layer for file, _ in loras for name, layer in file.layers.items() if name.startswith(PREFIX)}
    matrices = [one for layer in layers.values() for one in _matrices_of(layer)]
    return OfLoras(sum(one.numel() for one in matrices), any(_MODULATION.search(name) for name in layers))


def embed_otherwise(loras: Sequence[tuple[LoraFile, float]]) -> bool:
    """Whether some change how timestep, guidance and pooled prompt are embedded, and so every row of modulation."""
    return any(name.startswith(_EMBEDDING) for file, _ in loras for name in file.layers)


def measure_weights(loras: Sequence[tuple[LoraFile, float]]) -> bool:
    """Whether some look at the weights they are put on (DoRA), which must be there then."""
    layers = (layer for file, _ in loras for layer in file.layers.values())
    return any(isinstance(layer, RelatedLayer) and layer.lengths is not None for layer in layers)


def _matrices_of(layer: Layer) -> list[torch.Tensor]:
    return list(layer.factors.values()) if isinstance(layer, RelatedLayer) else [layer.down, layer.up]


def trainable_state(transformer: Any) -> dict[str, torch.Tensor]:
    """The LoRA being trained as float32 on the CPU, keys ``transformer.<module>.lora_A.weight`` and ``…lora_B…``."""
    return in_model.trainable_state(transformer, PREFIX)


def set_trainable_state(transformer: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Put a state of ``trainable_state`` back, exactly. Raises ModelError when it is for another LoRA."""
    in_model.set_trainable_state(transformer, state, PREFIX)
