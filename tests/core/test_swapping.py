"""Frozen weights find their copy in main memory again; what changed on the card is copied back."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import pytest
import torch

from headshot_ui import pinned
from headshot_ui.swapping import _Staging, move


def _net() -> torch.nn.Module:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    net[0].requires_grad_(False)
    return net.eval()


@pytest.mark.gpu
def test_frozen_weights_come_back_without_a_copy() -> None:
    net = _net()
    weight, before = net[0].weight, net[0].weight.clone()
    place = weight.data_ptr()
    move(net, "cuda")
    assert weight.device.type == "cuda" and net[1].running_mean.device.type == "cuda"
    move(net, "cpu")
    assert weight.data_ptr() == place and torch.equal(weight, before)


@pytest.mark.gpu
def test_what_changed_on_the_card_is_copied_back() -> None:
    net = _net()
    move(net, "cuda")
    with torch.no_grad():
        net[1].weight.add_(1.0)  # trained
        net[0].bias.fill_(3.0)  # frozen, but written to
        net[1].running_mean.fill_(5.0)
    move(net, "cpu")
    assert torch.equal(net[1].weight, torch.full((4,), 2.0))
    assert torch.equal(net[0].bias, torch.full((4,), 3.0))
    assert torch.equal(net[1].running_mean, torch.full((4,), 5.0))


# --- from locked memory -------------------------------------------------------------------------------
@pytest.fixture
def may_lock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(pinned, "_locked", pinned._Locked())
    pinned._locked.may = 2**31
    yield
    pinned.settle()
    gc.collect()


def _large(gigabytes: float) -> torch.nn.Module:
    torch.manual_seed(0)
    width = 4096
    layers = [torch.nn.Linear(width, width, bias=False) for _ in range(int(gigabytes * 2**30 / 4 / width**2))]
    return torch.nn.Sequential(*layers).requires_grad_(False)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_blocks_in_locked_memory_bring_the_same_numbers(dtype: torch.dtype | None, may_lock: None) -> None:
    module = _large(0.7).half()
    before = [weight.clone() for weight in module.parameters()]
    for turn in range(3):
        move(module, "cuda", dtype=dtype)
        wanted = [weight.cuda().to(dtype or torch.float16) for weight in before]
        assert all(torch.equal(there, right) for there, right in zip(module.parameters(), wanted, strict=True))
        pinned.settle()
        move(module, "cpu")
        assert all(torch.equal(here, right) for here, right in zip(module.parameters(), before, strict=True))
        places = [pinned.place_of(weight) for weight in module.parameters()]
        assert all(place is not None and place.block.here.is_pinned() for place in places), turn
    assert len({place.block for place in places if place is not None}) > 1


@pytest.mark.gpu
def test_locked_memory_fills_the_card_much_sooner(may_lock: None) -> None:
    module = _large(1.5)

    def seconds() -> float:
        torch.cuda.synchronize()
        began = time.perf_counter()
        move(module, "cuda")
        torch.cuda.synchronize()
        took = time.perf_counter() - began
        move(module, "cpu")
        return took

    pinned._locked.may = 0
    ordinary = min(seconds() for _ in range(3))
    pinned._locked.may = 2**31
    seconds()
    pinned.settle()
    assert min(seconds() for _ in range(3)) < ordinary / 2


@pytest.mark.gpu
def test_small_locked_buffers_bring_the_same_numbers_as_to_does() -> None:
    staging = _Staging()
    whole = torch.randn(9, _Staging.BYTES // 16 + 1)
    tensors = [
        whole, whole.half()[:, :1], whole[:, ::2], whole.t(), torch.tensor(3), torch.empty(0), whole > 0,
        whole[:4, :400].reshape(1, 4, 20, 20).to(memory_format=torch.channels_last), *whole.split(1, dim=0),
    ]  # fmt: skip
    there = [staging.sent(tensor, "cuda") for tensor in tensors]
    for tensor, copy in zip(tensors, there, strict=True):
        assert copy.device.type == "cuda" and copy.dtype == tensor.dtype and torch.equal(copy.cpu(), tensor)


@pytest.mark.gpu
def test_a_refusal_of_the_driver_disturbs_nothing_that_follows(
    may_lock: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    module = _large(0.2)
    taken = torch.empty(pinned.BLOCK_BYTES, dtype=torch.uint8)
    driver = pinned._cudart()
    assert int(driver.cudaHostRegister(taken.data_ptr(), taken.nbytes, 0)) == 0
    try:
        monkeypatch.setattr(pinned, "_memory", lambda size: taken[:size])  # locked already: refused
        move(module, "cuda")
        pinned.settle()
    finally:
        driver.cudaHostUnregister(taken.data_ptr())
    assert "could not be page-locked" in caplog.text and not pinned.allowed()
    move(module, "cpu")
    move(module, "cuda")
    assert torch.isfinite(module(torch.zeros(1, 4096, device="cuda"))).all()
    torch.cuda.synchronize()


def test_staying_in_main_memory_touches_nothing() -> None:
    net = _net()
    places = [tensor.data_ptr() for tensor in net.parameters()]
    move(net, "cpu")
    assert [tensor.data_ptr() for tensor in net.parameters()] == places
