"""FLUX.1's blocks of fewer kernels compute what diffusers and peft compute, and a training leaves nothing behind."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from headshot_ui.families.flux_parts import blocks, eight_bit, lora, modulation
from headshot_ui.families.lora_parts import linear
from headshot_ui.families.lora_parts.in_model import take_off
from tests.families.flux.flux_tiny import drawn, inputs, loss_and_gradients, tiny_transformer

Results = tuple[torch.Tensor, list[torch.Tensor]]


def trained(dtype: torch.dtype = torch.float32, alpha: float = 3.0) -> tuple[Any, list[torch.nn.Parameter]]:
    """A transformer with a LoRA of rank 2 that already does something."""
    model = tiny_transformer(dtype=dtype)
    parameters = lora.add_trainable(model, 2, alpha, seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter in parameters:
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    model.train()
    return model, parameters


def as_diffusers(model: Any) -> None:
    """Its own blocks and peft's own layers again."""
    linear.slow_down(model)
    for block in (*model.transformer_blocks, *model.single_transformer_blocks):
        del block.__dict__["forward"]


def apart(first: list[torch.Tensor], second: list[torch.Tensor]) -> float:
    """Norm of the difference, as a share of the second's."""
    one, other = (torch.cat([tensor.flatten().double() for tensor in tensors]) for tensors in (first, second))
    return float((one - other).norm() / other.norm())


@pytest.mark.parametrize(("alpha", "batch", "checkpointing"), [(2.0, 1, False), (3.0, 2, True)])
def test_same_loss_and_gradients_as_peft_and_diffusers(alpha: float, batch: int, checkpointing: bool) -> None:
    model, parameters = trained(alpha=alpha)
    if checkpointing:
        model.enable_gradient_checkpointing()
    loss, grads = loss_and_gradients(model, inputs(batch), parameters)
    as_diffusers(model)
    plain_loss, plain_grads = loss_and_gradients(model, inputs(batch), parameters)
    assert loss == pytest.approx(float(plain_loss), abs=1e-6)
    for mine, theirs in zip(grads, plain_grads, strict=True):
        assert theirs.norm() > 0 and (mine - theirs).norm() <= 1e-5 * theirs.norm()


def test_half_precision_is_no_further_from_float32_than_autocast() -> None:
    _, exact = loss_and_gradients(*_given(torch.float32))
    model, given, parameters = _given(torch.bfloat16)
    _, ours = loss_and_gradients(model, given, parameters)
    as_diffusers(model)
    with torch.autocast("cpu", torch.bfloat16):
        _, theirs = loss_and_gradients(model, given, parameters)
    assert ours[0].dtype == torch.float32 and 0 < apart(ours, exact) <= 1.1 * apart(theirs, exact) < 0.1


def _given(dtype: torch.dtype) -> tuple[Any, dict[str, Any], list[torch.nn.Parameter]]:
    """The same weights and inputs, rounded to bfloat16, in either format."""
    model, parameters = trained(torch.bfloat16)
    if dtype == torch.float32:
        model.float()
    given = inputs(1)
    for name in ("hidden_states", "encoder_hidden_states", "pooled_projections"):
        given[name] = given[name].bfloat16().to(dtype)
    given |= {"timestep": torch.tensor([0.5]), "guidance": torch.tensor([1.0])}  # 500 and 1000 have few digits
    return model, given, parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_samples_are_to_the_last_bit_what_is_drawn_afterwards(dtype: torch.dtype) -> None:
    """Where nothing is learned, every layer computes as peft has it."""
    model, _ = trained(dtype)
    sample = drawn(model, inputs(1, dtype=dtype))
    linear.slow_down(model)
    assert torch.equal(drawn(model, inputs(1, dtype=dtype)), sample)


def test_a_pass_is_that_of_diffusers_but_for_rounding() -> None:
    """In half precision no further from float32 than diffusers' own, because less is rounded."""
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        model, given, _ = _given(dtype)
        ours = drawn(model, given).float()
        as_diffusers(model)
        found[dtype] = ours, drawn(model, given).float()
    exact, plain_exact = found[torch.float32]
    assert (exact - plain_exact).abs().max() < 1e-5
    ours, theirs = found[torch.bfloat16]
    assert 0 < apart([ours], [exact]) <= 1.1 * apart([theirs], [exact]) < 0.05


def test_they_take_nothing_else() -> None:
    model, _ = trained()
    with pytest.raises(ValueError, match="no arguments"), torch.no_grad():
        model(**inputs(1), joint_attention_kwargs={"ip_hidden_states": []})


def test_with_8_bit_and_without_modulation_layers_the_same() -> None:
    given = inputs(1)
    results: list[Results] = []
    for fitted in (True, False):
        model = tiny_transformer()
        eight_bit.shrink(model, torch.float32)
        condition = modulation.Condition(given["timestep"], given["guidance"], given["pooled_projections"])
        if fitted:
            rows = modulation.table(model, [condition], "cpu", torch.float32)
            modulation.drop(model).use(rows[0])
        parameters = lora.add_trainable(model, 2, 3.0, seed=0)
        for seed, parameter in enumerate(parameters):
            parameter.data = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed)) * 0.2
        results.append(loss_and_gradients(model.train(), given, parameters))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(results[0][1], results[1][1], strict=True))


def test_taken_off_nothing_is_left() -> None:
    model = tiny_transformer()
    blocks.put_in(model)
    before = {name: set(vars(module)) for name, module in model.named_modules() if name}  # peft marks the whole
    lora.add_trainable(model, 2, 2.0, seed=0)
    assert {name: set(vars(module)) for name, module in model.named_modules() if name} != before
    take_off({"transformer": model})
    assert {name: set(vars(module)) for name, module in model.named_modules() if name} == before
    assert "forward" not in vars(model)


class Counting(TorchDispatchMode):
    """How often each operation that computes is carried out."""

    def __init__(self) -> None:
        super().__init__()
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.counted[func.overloadpacket.__name__] += 1
        return func(*args, **(kwargs or {}))


def test_products_with_a_shared_input_are_made_together() -> None:
    """2 double and 4 single blocks: 44 layers in 24 groups, and nothing else is multiplied or turned one by one."""
    model, parameters = trained(torch.bfloat16)
    given = inputs(1, dtype=torch.bfloat16)
    counts = []
    for _ in range(2):
        loss_and_gradients(model, given, parameters)  # copies of the matrices are made in the first pass
        with Counting() as mode:
            loss_and_gradients(model, given, parameters)
        counts.append(mode.counted)
        if len(counts) == 1:
            as_diffusers(model)
        linear.speed_up(model, "subject")  # each layer by itself, in diffusers' blocks
    ours, alone = counts
    layers, groups = 44, 2 * (2 + 2 + 4) + 4 * 2
    # One for all A forwards and one backwards. The gradient of an input begins with a product, to which those of the
    # group's other layers are added; the input of the first block has none, that of its words neither.
    without = 2 * 2
    assert alone["mm"] - ours["mm"] == 3 * (layers - groups) - without
    assert ours["neg"] == 0 and ours["addcmul"] == 2 * 8 + 4 * 2
    assert sum(ours.values()) < 0.85 * sum(alone.values())


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_never_go_through_cudnns_attention(checkpointing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor may what is computed again on the way back choose another one than the first time."""
    asked: list[bool] = []
    real = torch.nn.functional.scaled_dot_product_attention

    def attention(*given: Any) -> torch.Tensor:
        asked.append(torch.backends.cuda.cudnn_sdp_enabled())
        return real(*given)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attention)
    model, parameters = trained()
    if checkpointing:
        model.enable_gradient_checkpointing()
    loss_and_gradients(model, inputs(1), parameters)
    count = len(model.transformer_blocks) + len(model.single_transformer_blocks)
    assert asked == [False] * count * (1 + checkpointing) and torch.backends.cuda.cudnn_sdp_enabled()
    asked.clear()
    drawn(model, inputs(1))
    assert asked == [True] * count
