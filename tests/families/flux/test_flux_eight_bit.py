"""Layers in 8 bit compute with nearly their weights, forwards and backwards, and keep nothing for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headshot_ui.families.flux_parts import eight_bit, modulation
from headshot_ui.families.flux_parts.eight_bit import EightBitLinear
from tests.families.flux.flux_tiny import add_lora, drawn, inputs, loss_and_gradients, tiny_transformer

LORA = ["to_q", "to_k", "to_v", "add_q_proj", "proj_mlp"]


def random_layer(inputs: int = 3072, outputs: int = 64, dtype: torch.dtype = torch.float32) -> torch.nn.Linear:
    torch.manual_seed(0)
    layer = torch.nn.Linear(inputs, outputs).to(dtype).requires_grad_(False)
    layer.weight.normal_(0, 0.02)
    return layer


def small(layer: torch.nn.Linear) -> EightBitLinear:
    return EightBitLinear(*eight_bit.rounded(layer.weight), layer.bias)


def off(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative error."""
    got, wanted = got.detach().float(), wanted.detach().float()
    return float((got - wanted).norm() / wanted.norm())


def test_the_error_is_that_of_the_docs_and_less_than_float8() -> None:
    layer = random_layer()
    error = off(small(layer).full_weight(), layer.weight)
    scale = layer.weight.abs().amax(1, keepdim=True) / 448
    float8 = (layer.weight / scale).to(torch.float8_e4m3fn).float() * scale
    assert 0.006 < error < 0.010
    assert 0.022 < off(float8, layer.weight) < 0.03


def test_a_row_of_zeros_and_the_largest_number() -> None:
    weight = torch.tensor([[0.0, 0.0, 0.0], [-3.0, 1.6, 0.0]])
    numbers, factors = eight_bit.rounded(weight)
    assert numbers.tolist() == [[0, 0, 0], [-127, 68, 0]] and float(factors[0]) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forwards_and_backwards_as_a_layer_with_the_rounded_weight(dtype: torch.dtype) -> None:
    layer = random_layer(96, 40, dtype)
    eight = small(layer)
    exact = torch.nn.Linear(96, 40)
    exact.weight.data, exact.bias.data = eight.full_weight(), layer.bias.float()
    x = torch.randn(2, 5, 96).to(dtype).requires_grad_()
    y = x.detach().float().requires_grad_()
    got, wanted = eight(x), exact(y)
    wave = torch.randn(wanted.shape)
    (got.float() * wave).sum().backward()
    (wanted * wave).sum().backward()
    tolerance = 1e-6 if dtype == torch.float32 else 2**-8
    assert got.dtype == dtype and off(got, wanted) < tolerance
    assert off(x.grad, y.grad) < tolerance  # type: ignore[arg-type]


def test_autocast_decides_as_it_does_for_other_layers() -> None:
    eight = small(random_layer(32, 16))
    with torch.autocast("cpu", torch.bfloat16):
        assert eight(torch.randn(3, 32)).dtype == torch.bfloat16
    assert eight(torch.randn(3, 32)).dtype == torch.float32


def test_nothing_large_is_kept_for_the_way_back() -> None:
    layer = random_layer(128, 64)
    kept: list[torch.Tensor] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor)
        return tensor

    eight = small(layer)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        eight(torch.randn(4096, 128, requires_grad=True))
    assert {tensor.data_ptr() for tensor in kept} == {eight.weight.data_ptr(), eight.factors.data_ptr()}


def dequantised(model: Any) -> Any:
    """The same transformer with ordinary layers that hold the rounded weights."""
    plain = tiny_transformer()
    for name, module in model.named_modules():
        if isinstance(module, EightBitLinear):
            plain.get_submodule(name).weight.data = module.full_weight()
    return plain


def test_a_whole_transformer_with_a_lora_that_learns() -> None:
    model = tiny_transformer()
    before = drawn(model, inputs(2))
    count = len(list(eight_bit.layers_of(model)))
    told: list[tuple[int, int]] = []
    eight_bit.shrink(model, torch.float32, told=lambda done, total: told.append((done, total)))
    assert count == 2 * 14 + 4 * 6 + 1 and told == [(i, count) for i in range(count + 1)]
    assert 1e-4 < off(drawn(model, inputs(2)), before) < 0.01
    plain = dequantised(model)
    theirs = loss_and_gradients(plain, inputs(2), add_lora(plain, LORA))
    parameters = add_lora(model, LORA)
    assert all(parameter.dtype == torch.float32 for parameter in parameters)
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
            model.train()
        loss, grads = loss_and_gradients(model, inputs(2), parameters)
        assert abs(float(loss - theirs[0])) < 1e-6
        assert all(off(mine, other) < 1e-4 and other.norm() > 0 for mine, other in zip(grads, theirs[1], strict=True))


def test_half_precision_leaves_the_factors_alone() -> None:
    model = tiny_transformer()
    eight_bit.shrink(model, torch.float32)
    layer = model.transformer_blocks[0].ff.net[2]
    factors = layer.factors.clone()
    exact = drawn(model, inputs(1))
    model.to(torch.bfloat16)
    assert torch.equal(layer.factors, factors) and layer.weight.dtype == torch.int8
    assert model.dtype == torch.bfloat16
    half = drawn(model, inputs(1, dtype=torch.bfloat16))
    plain = dequantised(model).to(torch.bfloat16)
    alike = off(drawn(plain, inputs(1, dtype=torch.bfloat16)), exact)
    assert half.dtype == torch.bfloat16 and off(half, exact) < 1.2 * alike


def test_with_dropped_modulation_the_table_is_in_8_bit_only_if_it_comes_after() -> None:
    model, given = tiny_transformer(), inputs(1)
    condition = modulation.Condition(given["timestep"], given["guidance"], given["pooled_projections"])
    first = modulation.table(model, [condition], "cpu", torch.float32)
    modulation.drop(model)
    assert not any(".norm" in name for name, _ in eight_bit.layers_of(model))
    eight_bit.shrink(model, torch.float32)
    other = tiny_transformer()
    eight_bit.shrink(other, torch.float32)
    later = modulation.table(other, [condition], "cpu", torch.float32)
    assert 1e-4 < off(later, first) < 0.02
    wanted = drawn(other, given)
    dropped = modulation.drop(other)
    dropped.use(later[0])
    assert off(drawn(other, given), wanted) < 1e-6


def test_a_lora_that_is_on_already_stays_as_it_is() -> None:
    model, other = tiny_transformer(), tiny_transformer()
    parameters = add_lora(model, LORA)
    before = [parameter.clone() for parameter in parameters]
    eight_bit.shrink(model, torch.float32)
    eight_bit.shrink(other, torch.float32)
    add_lora(other, LORA)
    again = [weight for name, weight in model.named_parameters() if "lora_" in name]
    assert all(
        mine is same and torch.equal(mine, was) for mine, same, was in zip(again, parameters, before, strict=True)
    )
    assert torch.equal(drawn(model, inputs(1)), drawn(other, inputs(1)))


def test_layers_without_weights_are_read() -> None:
    model = tiny_transformer()
    stored = {name: weight.clone() for name, weight in model.state_dict().items()}
    wanted = tiny_transformer()
    eight_bit.shrink(wanted, torch.float32)
    for _, layer in eight_bit.layers_of(model):
        layer.to("meta")
    with pytest.raises(ValueError, match="nothing was given"):
        eight_bit.shrink(model, torch.float32)
    eight_bit.shrink(model, torch.float32, read=stored.__getitem__)
    assert torch.equal(drawn(model, inputs(1)), drawn(wanted, inputs(1)))


def test_the_real_model_in_8_bit_is_9_gigabytes() -> None:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True).to(torch.bfloat16)
        modulation.drop(model)
        eight_bit.shrink(model, torch.bfloat16, "meta", "meta", lambda name: model.get_parameter(name))
    tensors = [*model.parameters(), *model.buffers()]
    assert 8.6e9 < sum(tensor.nbytes for tensor in tensors) < 8.8e9
