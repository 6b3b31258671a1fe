"""A LoRA that learns on 8-bit layers computes what it computes on ordinary ones with the rounded weights."""

from __future__ import annotations

import pytest
import torch

from headshot_ui.families.flux_parts import eight_bit, lora, streaming
from headshot_ui.families.flux_parts.eight_bit import EightBitLinear
from tests.families.flux.flux_tiny import inputs, loss_and_gradients, tiny_transformer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("streamed", [0, 4])
def test_the_programs_own_lora_layers(dtype: torch.dtype, streamed: int) -> None:
    given = inputs(1, dtype=dtype)
    model, plain = tiny_transformer(dtype=dtype), tiny_transformer(dtype=dtype)
    eight_bit.shrink(model, dtype)
    for name, module in model.named_modules():
        if isinstance(module, EightBitLinear):
            plain.get_submodule(name).weight.data = module.full_weight().to(dtype)
    if streamed:
        streaming.stream(model, streaming.chosen_blocks(model, streamed), "cpu")
    results = []
    for transformer in (model, plain):
        parameters = lora.add_trainable(transformer, 2, 4.0, seed=0)
        for seed, parameter in enumerate(parameters):
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.2
        transformer.enable_gradient_checkpointing()
        transformer.train()
        results.append(loss_and_gradients(transformer, given, parameters))
    (loss, grads), (wanted, wanted_grads) = results
    assert torch.equal(loss, wanted)
    pairs = zip(grads, wanted_grads, strict=True)
    assert all(torch.equal(mine, theirs) and theirs.norm() > 0 for mine, theirs in pairs)


def test_no_weight_in_16_bit_is_kept_for_the_gradients() -> None:
    model = tiny_transformer()
    eight_bit.shrink(model, torch.float32)
    lora.add_trainable(model, 2, 4.0, seed=0)
    layer = model.single_transformer_blocks[0].proj_mlp
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(5, 32, requires_grad=True))
    assert layer.base_layer.weight.data_ptr() in {tensor.data_ptr() for tensor in kept}
    assert not any(t.is_floating_point() and t.numel() == layer.base_layer.weight.numel() for t in kept)
