"""Large layers that multiply in 8 bit: the numbers of float8 and int8, which layers, and nothing left behind."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from headshot_ui import families
from headshot_ui.families.flux_parts import eight_bit, fast_products
from headshot_ui.families.flux_parts.eight_bit import EightBitLinear
from headshot_ui.families.flux_parts.fast_products import FLOAT8, INT8, KINDS
from headshot_ui.families.flux_parts.loaded import LoadedFlux
from headshot_ui.families.protocol import DenoiseRequest
from headshot_ui.settings import Settings
from tests.families.flux.flux_tiny import add_lora, drawn, inputs, loss_and_gradients, tiny_transformer


def off(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """Relative error."""
    got, wanted = got.detach().float(), wanted.detach().float()
    return float((got - wanted).norm() / wanted.norm())


def e4m3(value: float) -> float:
    """The nearest float8, by its definition: 3 bits of fraction, exponents from -6, ties to even, up to 448."""
    if value == 0:
        return 0.0
    exponent = max(-6, math.floor(math.log2(abs(value))))
    step = 2.0 ** (exponent - 3)
    return math.copysign(min(448.0, abs(round(value / step)) * step), value)


# --- numbers ----------------------------------------------------------------------------------------
def test_float8_rounds_as_it_is_defined() -> None:
    rows = torch.randn(4, 64, generator=torch.Generator().manual_seed(1)) * torch.tensor([[1.0], [1e-3], [30.0], [0.0]])
    found = fast_products.in_8_bit(rows, FLOAT8)
    assert found.numbers.dtype == torch.float8_e4m3fn and found.scales.shape == (4, 1)
    for row, numbers, scale in zip(rows, found.numbers.float(), found.scales, strict=True):
        assert numbers.tolist() == [e4m3(value) for value in (row / scale).tolist()]
    assert found.numbers.float().abs().amax(1).tolist() == [448.0, 448.0, 448.0, 0.0]
    half = fast_products.in_8_bit(rows.bfloat16(), FLOAT8)
    assert half.numbers.float().isfinite().all(), "448 may be rounded up on the way"
    assert off(half.numbers.float() * half.scales, rows) < 0.03


@pytest.mark.parametrize(("kind", "least", "most"), [(FLOAT8, 0.02, 0.05), (INT8, 0.005, 0.02)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_product_is_that_of_the_rounded_numbers(kind: str, least: float, most: float, bias: bool) -> None:
    draw = torch.Generator().manual_seed(2)
    layer = torch.nn.Linear(128, 64, bias).to(torch.bfloat16).requires_grad_(False)
    rows = torch.randn(40, 128, generator=draw).bfloat16()
    given, weight = fast_products.in_8_bit(rows, kind), fast_products.rounded_weight(layer, kind)
    wanted = (given.numbers.float() * given.scales) @ (weight.numbers.float() * weight.scales).T
    wanted = wanted if layer.bias is None else wanted + layer.bias
    found = fast_products.product(given, weight, layer.bias, torch.bfloat16)
    assert found.dtype == torch.bfloat16 and found.shape == (40, 64) and off(found, wanted) < 2**-7
    assert least < off(found, layer(rows)) < most


def test_the_cards_own_product_is_asked_as_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row-wise factors (M, 1) and (1, O), the weight in columns, the fast sum, bfloat16 out."""
    asked: dict[str, Any] = {}

    def scaled_mm(a: Any, b: Any, scale_a: Any, scale_b: Any, bias: Any, **more: Any) -> torch.Tensor:
        asked.update(a=a, b=b, scale_a=scale_a, scale_b=scale_b, bias=bias, **more)
        return torch.zeros(a.shape[0], b.shape[1], dtype=torch.bfloat16)

    class OnCard(torch.Tensor):
        """Says that it lies on a card."""

        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("cuda")

    monkeypatch.setattr(torch, "_scaled_mm", scaled_mm)
    given = fast_products.in_8_bit(torch.randn(32, 48).bfloat16(), FLOAT8)
    weight = fast_products.in_8_bit(torch.randn(16, 48).bfloat16(), FLOAT8)
    fast_products.product(replace(given, numbers=given.numbers.as_subclass(OnCard)), weight, None, torch.bfloat16)
    assert asked["use_fast_accum"] is True and asked["out_dtype"] == torch.bfloat16 and asked["bias"] is None
    assert asked["b"].shape == (48, 16) and asked["b"].stride() == (1, 48)
    assert asked["scale_a"].shape == (32, 1) and asked["scale_b"].shape == (1, 16)
    assert asked["scale_b"].is_contiguous() and asked["scale_a"].dtype == asked["scale_b"].dtype == torch.float32


# --- a whole transformer --------------------------------------------------------------------------------
def made(eight: bool) -> Any:
    model = tiny_transformer()
    if eight:
        eight_bit.shrink(model, torch.float32)
    return model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eight", [False, True])
@torch.no_grad()
def test_on_and_off_again(kind: str, eight: bool) -> None:
    model, given = made(eight), inputs(2)
    before = drawn(model, given)
    tensors = {name: tensor.data_ptr() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    extra = fast_products.extra_bytes(model, kind)
    assert (extra == 0) == (eight and kind == INT8)
    fast_products.switch_on(model, kind)
    assert fast_products.kind_of(model) == kind
    added = {name: one for name, one in model.named_buffers() if name not in tensors}
    assert sum(one.nbytes for one in added.values()) == extra and not any("fast" in name for name in model.state_dict())
    assert 1e-4 < off(drawn(model, given), before) < 0.06
    fast_products.switch_off(model)
    left = {name: tensor.data_ptr() for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    assert torch.equal(drawn(model, given), before) and left == tensors and fast_products.kind_of(model) is None
    assert not any("forward" in module.__dict__ for module in model.modules())


def test_which_layers() -> None:
    model = made(False)
    names = {name for name, layer in model.named_modules() if layer in fast_products.fast_layers(model, FLOAT8)}
    assert len(names) == 2 * 12 + 4 * 5 and all("transformer_blocks." in name for name in names)
    assert not any(".norm" in name for name in names)
    odd = torch.nn.Module()
    odd.transformer_blocks = torch.nn.ModuleList([torch.nn.Linear(24, 32)])
    assert not fast_products.fast_layers(odd, FLOAT8) and len(fast_products.fast_layers(odd, INT8)) == 1


def test_what_reads_one_input_rounds_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = torch.nn.Module()
    layers.transformer_blocks = torch.nn.ModuleList([torch.nn.Linear(32, 32).requires_grad_(False) for _ in range(3)])
    fast_products.switch_on(layers, FLOAT8)
    rounds: list[int] = []
    in_8_bit = fast_products.in_8_bit
    monkeypatch.setattr(fast_products, "in_8_bit", lambda rows, kind: rounds.append(len(rows)) or in_8_bit(rows, kind))
    with torch.no_grad():
        x = torch.randn(2, 20, 32)
        first, *_ = [layer(x) for layer in layers.transformer_blocks]
        assert rounds == [40]
        x.mul_(2)
        assert off(layers.transformer_blocks[0](x), first) > 0.2 and rounds == [40, 40], "it has changed"
        layers.transformer_blocks[0](torch.randn(20, 32))
        assert rounds == [40, 40, 20]
        layers.transformer_blocks[0](torch.randn(16, 32))  # too few rows for the kernels
        assert len(rounds) == 3


def test_gradients_are_exact_and_a_lora_stands_on_top() -> None:
    model, given = made(False), inputs(2)
    parameters = add_lora(model, ["to_q", "proj_mlp"])
    assert parameters
    exact = drawn(model, given)
    loss, grads = loss_and_gradients(model, given, parameters)
    fast_products.switch_on(model, INT8)
    again, fast_grads = loss_and_gradients(model, given, parameters)
    assert torch.equal(again, loss) and all(map(torch.equal, fast_grads, grads))
    with torch.no_grad():
        fast = drawn(model, given)
        assert 1e-5 < off(fast, exact) < 0.05
        for parameter in parameters:
            parameter.mul_(3)
        assert off(drawn(model, given), fast) > 0, "the LoRA counts"


# --- where it can be done ---------------------------------------------------------------------------------
def test_a_trial_decides(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert all(fast_products.works(kind, "cpu") for kind in KINDS)
    monkeypatch.setattr(fast_products, "product", lambda *_: torch.zeros(64, 128))
    assert not fast_products.works(FLOAT8, "cpu")

    def lacking(*_: Any) -> torch.Tensor:
        raise NotImplementedError("rowwise scaling is not in this build")

    monkeypatch.setattr(fast_products, "product", lacking)
    assert not fast_products.works(FLOAT8, "cpu") and "rowwise scaling" in caplog.text
    assert fast_products.kinds_on.__wrapped__("cpu") == () == fast_products.kinds_on.__wrapped__("mps")


@pytest.mark.parametrize(
    ("capability", "broken", "wanted"),
    [((9, 0), (), (FLOAT8, INT8)), ((8, 9), (FLOAT8,), (INT8,)), ((8, 6), (), (INT8,)), ((7, 0), (), ())],
)
def test_what_cards_do(capability: Any, broken: Any, wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(fast_products, "works", lambda kind, device: kind not in broken)
    assert fast_products.kinds_on.__wrapped__("cuda") == wanted


@pytest.mark.parametrize(
    ("eight", "travels", "room", "wanted"),
    [
        (False, False, 10**9, FLOAT8),
        (True, False, 10**9, FLOAT8),
        (True, False, 100, INT8),
        (True, True, 10**9, INT8),
        (False, False, 100, None),
        (False, False, None, FLOAT8),
    ],
)
def test_room_decides(
    eight: bool, travels: bool, room: int | None, wanted: str | None, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(fast_products, "kinds_on", lambda device: KINDS)
    model = made(eight)
    fast_products.ask(model, True, travels, room)
    assert fast_products.kind_of(model) == wanted
    assert ("no room for rounded weights" in caplog.text) == (wanted is None)
    fast_products.ask(model, False, travels, room)
    assert fast_products.kind_of(model) is None


@pytest.fixture
def base(settings: Settings) -> Iterator[LoadedFlux]:
    made = LoadedFlux.read(families.find_base("tiny-flux", settings), settings)
    yield made
    made.release()


def test_a_base_draws_so_only_while_it_is_asked_to(base: LoadedFlux, monkeypatch: pytest.MonkeyPatch) -> None:
    embeds = base.encode_prompts(["portrait of tok person"])
    request = DenoiseRequest(embeds, embeds, (3,), 3, 3.5, 64, 64)
    asked = replace(request, products_in_8_bit=True)

    def latents(request: DenoiseRequest) -> torch.Tensor:
        return list(base.denoise(request))[-1].latents

    exact = latents(request)
    assert torch.equal(latents(asked), exact), "the CPU does not multiply so"
    monkeypatch.setattr(fast_products, "kinds_on", lambda device: KINDS)
    fast = latents(asked)
    assert 1e-4 < off(fast, exact) < 0.1 and torch.equal(latents(asked), fast)
    assert torch.equal(latents(request), exact)
    latents(asked)
    transformer = base._shelf.modules("denoiser")[0]
    assert fast_products.kind_of(transformer) == FLOAT8
    base.keep(frozenset({"vae"}))
    assert fast_products.kind_of(transformer) is None, "before it moves"
    latents(asked)
    base.add_trainable_lora(2, 2.0, 0)
    assert fast_products.kind_of(transformer) is None, "before it learns"
    base.use_loras(())
    assert torch.equal(latents(request), exact)
    assert not any(isinstance(layer, EightBitLinear) for layer in transformer.modules())
