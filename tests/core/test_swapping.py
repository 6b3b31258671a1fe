"""Frozen weights find their copy in main memory again; what changed on the card is copied back."""

from __future__ import annotations

import pytest
import torch

from headshot_ui.swapping import move


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


def test_staying_in_main_memory_touches_nothing() -> None:
    net = _net()
    places = [tensor.data_ptr() for tensor in net.parameters()]
    move(net, "cpu")
    assert [tensor.data_ptr() for tensor in net.parameters()] == places
