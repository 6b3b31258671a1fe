"""A tiny FLUX.1 transformer of the real class, with random numbers, and inputs for it."""

from __future__ import annotations

from typing import Any

import torch


def tiny_transformer(
    double: int = 2, single: int = 4, guidance: bool = True, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Any:
    """Two heads of 16; every weight random, so that no part can be left out without a difference."""
    from diffusers import FluxTransformer2DModel

    model = FluxTransformer2DModel(
        in_channels=16, num_layers=double, num_single_layers=single, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=20, guidance_embeds=guidance, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    for weight in model.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * (0.5 / max(weight.shape[-1], 4) ** 0.5)
    for name, weight in model.named_parameters():
        if ".norm_" in name:
            weight.data += 1
    model = model if dtype == torch.float32 else model.to(dtype)
    return model.eval().requires_grad_(False)


def inputs(batch: int, guidance: bool = True, dtype: torch.dtype = torch.float32, seed: int = 1) -> dict[str, Any]:
    """What the transformer is called with: 4 x 4 packed latents and 5 tokens of text."""
    generator = torch.Generator().manual_seed(seed)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    ids = torch.zeros(4, 4, 3)
    ids[..., 1] += torch.arange(4)[:, None]
    ids[..., 2] += torch.arange(4)
    return {
        "hidden_states": numbers(batch, 16, 16),
        "encoder_hidden_states": numbers(batch, 5, 24),
        "pooled_projections": numbers(batch, 20),
        "timestep": torch.rand(batch, generator=generator),
        "guidance": torch.full((batch,), 3.5) if guidance else None,
        "img_ids": ids.reshape(16, 3),
        "txt_ids": torch.zeros(5, 3),
        "return_dict": False,
    }


def drawn(model: Any, given: dict[str, Any]) -> torch.Tensor:
    """One pass without gradients."""
    with torch.no_grad():
        out: torch.Tensor = model(**given)[0]
    return out


def add_lora(model: Any, targets: str | list[str], learning: bool = True, seed: int = 2) -> list[torch.nn.Parameter]:
    """A LoRA of rank 2 that already does something; its parameters."""
    from peft import LoraConfig

    model.add_adapter(LoraConfig(r=2, lora_alpha=4, target_modules=targets), adapter_name="subject")
    found = [weight for name, weight in model.named_parameters() if "lora_" in name]
    generator = torch.Generator().manual_seed(seed)
    for weight in found:
        weight.data = torch.randn(weight.shape, generator=generator) * 0.2
        weight.requires_grad_(learning)
    return found


def loss_and_gradients(
    model: Any, given: dict[str, Any], parameters: list[torch.nn.Parameter]
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """A squared error and its gradients."""
    out = model(**given)[0].float()
    loss = (out - 0.3).square().mean()
    grads = torch.autograd.grad(loss, parameters)
    return loss.detach(), list(grads)
