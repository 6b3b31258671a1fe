"""A transformer with modulation from a table computes what it computes with its layers, and gives them back."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headshot_ui.families.flux_parts import modulation
from headshot_ui.families.flux_parts.sizes import dropped_parameters, row_numbers, shape_of
from tests.families.flux.flux_tiny import add_lora, drawn, inputs, loss_and_gradients, tiny_transformer

TINY = shape_of({"attention_head_dim": 16, "num_attention_heads": 2, "num_layers": 2, "num_single_layers": 4})
ATTENTION = ["to_q", "to_k", "to_v", "add_q_proj", "proj_mlp"]


def condition(given: dict[str, Any]) -> modulation.Condition:
    return modulation.Condition(given["timestep"], given["guidance"], given["pooled_projections"])


@pytest.mark.parametrize("guidance", [True, False])
@pytest.mark.parametrize("batch", [1, 3])
def test_drawing_is_bit_equal(guidance: bool, batch: int) -> None:
    model = tiny_transformer(guidance=guidance)
    steps = [inputs(batch, guidance, seed=seed) for seed in range(3)]
    wanted = [drawn(model, given) for given in steps]
    rows = modulation.table(model, [condition(given) for given in steps], "cpu", torch.float32)
    assert rows.shape == (3, batch, row_numbers(TINY))
    dropped = modulation.drop(model)
    left = sum(weight.numel() for weight in model.parameters())
    for index in (2, 0, 1):
        dropped.use(rows[index])
        assert torch.equal(drawn(model, steps[index]), wanted[index])
    dropped.restore()
    assert sum(weight.numel() for weight in model.parameters()) == left + dropped_parameters(TINY)
    assert torch.equal(drawn(model, steps[1]), wanted[1])


@pytest.mark.parametrize("checkpointing", [True, False])
def test_training_is_bit_equal(checkpointing: bool) -> None:
    model = tiny_transformer()
    parameters = add_lora(model, ATTENTION)
    given = inputs(2)
    wanted, wanted_grads = loss_and_gradients(model, given, parameters)
    rows = modulation.table(model, [condition(given)], "cpu", torch.float32)
    dropped = modulation.drop(model)
    dropped.use(rows[0])
    if checkpointing:
        model.enable_gradient_checkpointing()
        model.train()
    loss, grads = loss_and_gradients(model, given, parameters)
    assert torch.equal(loss, wanted)
    assert all(
        torch.equal(mine, theirs) and theirs.norm() > 0 for mine, theirs in zip(grads, wanted_grads, strict=True)
    )


def test_half_precision_is_bit_equal_too() -> None:
    model = tiny_transformer(dtype=torch.bfloat16)
    given = inputs(1, dtype=torch.bfloat16)
    times = torch.linspace(0.5, 1, 200)
    rounded_twice = (times.bfloat16() * 1000) != (times * 1000).bfloat16()  # as the transformer does, and not
    given["timestep"] = times[rounded_twice][:1]
    wanted = drawn(model, given)
    rows = modulation.table(model, [condition(given)], "cpu", torch.bfloat16)
    dropped = modulation.drop(model)
    dropped.use(rows[0])
    assert torch.equal(drawn(model, given), wanted)


def test_one_row_counts_for_all_pictures_of_a_step() -> None:
    model = tiny_transformer()
    given = inputs(2)
    for name in ("timestep", "pooled_projections"):
        given[name] = given[name][:1].expand_as(given[name]).clone()
    wanted = drawn(model, given)
    one = modulation.Condition(given["timestep"][:1], given["guidance"][:1], given["pooled_projections"][:1])
    rows = modulation.table(model, [one], "cpu", torch.float32)
    dropped = modulation.drop(model)
    dropped.use(rows[0])
    assert torch.allclose(drawn(model, given), wanted, atol=1e-6)


def test_a_training_finds_its_rows_by_what_they_are_made_of() -> None:
    model = tiny_transformer()
    steps = [inputs(2, seed=seed) for seed in (0, 1, 0)]
    wanted = [drawn(model, given) for given in steps]
    rows = modulation.rows_for(model, [condition(given) for given in steps], "cpu", torch.float32)
    assert len(rows.table) == 4  # the third step is the first once more
    dropped = modulation.drop(model)
    for index in (1, 2, 0):
        dropped.use(rows.of(condition(steps[index])))
        assert torch.allclose(drawn(model, steps[index]), wanted[index], atol=1e-6)
    other = condition(steps[0])
    with pytest.raises(KeyError):
        rows.of(modulation.Condition(other.timesteps + 0.01, other.guidance, other.pooled))
    assert other.guidance is not None
    with pytest.raises(KeyError):
        rows.of(modulation.Condition(other.timesteps, other.guidance + 1, other.pooled))


def test_a_lora_on_the_layers_is_in_the_table() -> None:
    model = tiny_transformer()
    given = inputs(1)
    plain = drawn(model, given)
    add_lora(model, r".*\.norm1\.linear|.*blocks\.\d\.norm\.linear|norm_out\.linear|.*\.to_q", learning=False)
    wanted = drawn(model, given)
    assert not torch.allclose(plain, wanted, atol=1e-3)
    rows = modulation.table(model, [condition(given)], "cpu", torch.float32)
    with pytest.raises(ValueError, match="cannot be read again"):
        modulation.drop(model, let_go=True)
    dropped = modulation.drop(model)
    dropped.use(rows[0])
    assert torch.equal(drawn(model, given), wanted)
    dropped.restore()
    assert torch.equal(drawn(model, given), wanted)


def test_a_lora_that_learns_these_layers_is_refused() -> None:
    model = tiny_transformer()
    add_lora(model, r".*\.norm1\.linear")
    with pytest.raises(ValueError, match="is learning"):
        modulation.table(model, [condition(inputs(1))], "cpu", torch.float32)


def test_layers_that_were_never_loaded_are_read_one_by_one() -> None:
    model = tiny_transformer()
    given = inputs(1)
    wanted = drawn(model, given)
    stored = {name: weight.clone() for name, weight in model.state_dict().items()}
    dropped = modulation.drop(model, let_go=True)
    assert all(weight.is_meta for layer in dropped.layers.values() for weight in layer.parameters())
    with pytest.raises(ValueError, match="nothing was given to read"):
        dropped.restore()
    for name, layer in dropped.layers.items():  # as a loader would leave them: in their places, without weights
        model.get_submodule(name.removesuffix(".linear")).register_module("linear", layer)
    read: list[str] = []

    def reading(name: str) -> torch.Tensor:
        read.append(name)
        return stored[name]

    rows = modulation.table(model, [condition(given)], "cpu", torch.float32, reading)
    assert len(read) == len(set(read)) == 2 * len(modulation.parts_of(model))
    dropped = modulation.drop(model)
    dropped.use(rows[0])
    assert torch.equal(drawn(model, given), wanted)
    dropped.restore(stored.__getitem__)
    assert torch.equal(drawn(model, given), wanted)
    assert all(torch.equal(weight, stored[name]) for name, weight in model.state_dict().items())


def test_what_does_not_fit_is_said() -> None:
    model = tiny_transformer()
    given = inputs(2)
    rows = modulation.table(model, [condition(given)], "cpu", torch.float32)
    dropped = modulation.drop(model)
    with pytest.raises(RuntimeError, match="has none"):
        drawn(model, given)
    with pytest.raises(ValueError, match="numbers, not"):
        dropped.use(rows[0][:, :-1])
    dropped.use(rows[0])
    with pytest.raises(RuntimeError, match="step of 3 pictures"):
        drawn(model, inputs(3))
    with pytest.raises(ValueError, match="same shape"):
        modulation.table(model, [condition(given), condition(inputs(1))], "cpu", torch.float32)


def test_the_next_row_before_the_gradients_is_noticed() -> None:
    model = tiny_transformer()
    parameters = add_lora(model, ATTENTION)
    given = inputs(1)
    rows = modulation.table(model, [condition(given)], "cpu", torch.float32)
    dropped = modulation.drop(model)
    dropped.use(rows[0])
    loss = model(**given)[0].square().mean()
    dropped.use(rows[0])
    with pytest.raises(RuntimeError, match="inplace"):
        torch.autograd.grad(loss, parameters)


def test_steps_of_one_shape_read_one_address() -> None:
    model = tiny_transformer()
    rows = modulation.table(model, [condition(inputs(1, seed=s)) for s in range(2)], "cpu", torch.float32)
    dropped = modulation.drop(model)
    places = []
    for row in (rows[0], rows[1], rows[0].expand(2, -1), rows[1]):
        dropped.use(row)
        assert dropped.now.row is not None
        places.append(dropped.now.row.data_ptr())
    assert places[0] == places[1] == places[3] != places[2]


def test_the_real_model_without_them_is_17_gigabytes() -> None:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    whole = sum(weight.numel() for weight in model.parameters())
    dropped = modulation.drop(model)
    left = sum(weight.numel() for weight in model.parameters())
    assert whole - left == dropped_parameters(shape_of({})) == 3_247_448_064
    assert 17.2e9 < 2 * left < 17.4e9 < 23.7e9 < 2 * whole < 23.9e9
    assert dropped.parts[-1].stop == row_numbers(shape_of({})) == 1_056_768
