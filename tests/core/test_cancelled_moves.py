"""Weights on their way to a card are told, and a cancel on the way leaves nothing half there."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from headshot_ui import pinned, swapping
from headshot_ui.errors import Cancelled
from headshot_ui.families.shelf import Shelf
from headshot_ui.swapping import move
from tests.core.test_pinned import CARD, Card, all_tensors, net


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    fake = Card()
    monkeypatch.setattr(swapping, "_sent", fake.take)
    monkeypatch.setattr(swapping, "_is_here", lambda tensor: not fake.holds(tensor))
    return fake


class Model(torch.nn.Module):
    """Says, as libraries' models do, that it is where its first weight is."""

    def __init__(self, card: Card) -> None:
        super().__init__()
        self.net, self._card = net(), card

    @property
    def device(self) -> Any:
        there = self._card.holds(next(self.parameters()))
        return type("Device", (), {"type": CARD if there else "cpu"})


def test_every_weight_that_takes_long_is_told(card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    module, heard = net(), []
    move(module, CARD, told=lambda done, total: heard.append((done, total)))
    total = len(all_tensors(module))
    assert heard == [(done, total) for done in range(total + 1)]
    move(module, "cpu", told=lambda done, total: heard.append((done, total)))
    assert len(heard) == total + 1


def test_a_cancelled_part_is_off_the_card_and_comes_whole_the_next_time(card: Card) -> None:
    model, at = Model(card), [3]
    before = [tensor.clone() for tensor in all_tensors(model)]

    def moved(part: str, done: int, total: int) -> None:
        assert part == "denoiser"
        if done == at[0]:
            raise Cancelled

    shelf = Shelf(CARD, {"denoiser": (model,)}, None, on_moved=moved)
    with pytest.raises(Cancelled):
        shelf.keep(frozenset({"denoiser"}))
    assert len(card.sent) == 3 and not any(card.holds(tensor) for tensor in all_tensors(model))
    assert "denoiser" not in shelf.here
    at[0] = -1
    shelf.keep(frozenset({"denoiser"}))
    assert all(card.holds(tensor) for tensor in all_tensors(model)) and "denoiser" in shelf.here
    assert all(torch.equal(now, then) for now, then in zip(all_tensors(model), before, strict=True))
    assert not pinned.allowed()
