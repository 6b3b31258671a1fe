"""The layer of the base model that a LoRA stands on: in which format it computes, and with which weight.

Layers in 8 bit have whole numbers for weights, and for each row of them a factor, ``factors`` (out, 1).
"""

from __future__ import annotations

from typing import Any

import torch


def computing_dtype(layer: Any) -> torch.dtype:
    """The number format in which a linear layer or convolution computes; in 8 bit it is that of the bias."""
    told = layer.weight if layer.weight.is_floating_point() or layer.bias is None else layer.bias
    return told.dtype if told.is_floating_point() else layer.factors.dtype  # type: ignore[no-any-return]


def full_weight(layer: Any) -> torch.Tensor:
    """Its weight in float32, of a layer in 8 bit as it computes with it."""
    weight: torch.Tensor = layer.weight.float()
    return weight if layer.weight.is_floating_point() else weight * layer.factors.float()
