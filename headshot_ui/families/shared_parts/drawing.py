"""What drawing begins with, whatever draws; and what to tell when it ends in no picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from headshot_ui.families.protocol import PromptEmbeds


def first_noise(seeds: Sequence[int], shape: tuple[int, int, int]) -> torch.Tensor:
    """(B, C, h, w) float32 on the CPU; each picture from a generator of its own, so a batch changes nothing."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def to_model(embeds: PromptEmbeds, denoiser: Any) -> dict[str, torch.Tensor]:
    """Embeddings on the device and in the dtype of the denoiser."""
    device, dtype = denoiser.device, denoiser.dtype  # asked once: each time takes 5 ms
    return {name: tensor.to(device, dtype) for name, tensor in embeds.items()}


def not_a_number(dtype: torch.dtype) -> str:
    """What to tell when a model's numbers overflowed: the picture would be black."""
    if dtype == torch.float16:
        other = "compute in bfloat16 or float32 (HEADSHOT_UI_DTYPE=float32), or choose another base model or LoRA"
    else:
        other = "choose another base model or LoRA, or less strength of the LoRA"
    name = str(dtype).removeprefix("torch.")
    return f"The picture became “not a number” while computing in {name}, and would be black: {other}."
