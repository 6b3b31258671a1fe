"""Parts that take turns on the device, and parts that stay there together."""

from __future__ import annotations

import pytest

from headshot_ui import swapping
from headshot_ui.families.shelf import Shelf
from tests.core.test_cancelled_moves import Model
from tests.core.test_pinned import CARD, Card, all_tensors

TEXT, VAE, DENOISER = (frozenset({part}) for part in ("text", "vae", "denoiser"))


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Card:
    fake = Card()
    monkeypatch.setattr(swapping, "_sent", fake.take)
    monkeypatch.setattr(swapping, "_is_here", lambda tensor: not fake.holds(tensor))
    return fake


@pytest.fixture
def parts(card: Card) -> dict[str, Model]:
    return {part: Model(card) for part in ("text", "vae", "denoiser")}


def on_card(parts: dict[str, Model], card: Card) -> set[str]:
    return {part for part, model in parts.items() if all(map(card.holds, all_tensors(model)))}


def test_parts_take_turns(parts: dict[str, Model], card: Card) -> None:
    shelf = Shelf(CARD, {part: (model,) for part, model in parts.items()}, None)
    for turn in (TEXT, DENOISER, VAE, TEXT):
        shelf.keep(turn)
        assert on_card(parts, card) == set(shelf.here) == turn


def test_where_there_is_room_for_all_they_travel_once(parts: dict[str, Model], card: Card) -> None:
    shelf = Shelf(CARD, {part: (model,) for part, model in parts.items()}, None)
    shelf.together = True
    for job in range(2):
        for turn in (TEXT, DENOISER, VAE):
            shelf.keep(turn)
            assert turn <= on_card(parts, card) == set(shelf.here)
        assert len(on_card(parts, card)) == 3
        assert len(card.sent) == 3 * len(all_tensors(parts["vae"])), job
    shelf.keep(frozenset())  # the card is wanted for something else
    assert on_card(parts, card) == set() == set(shelf.here)
    shelf.keep(VAE)
    assert on_card(parts, card) == {"vae"}, "what left is not fetched back before it is needed"
    shelf.keep(TEXT)
    shelf.together = False  # the next job takes more
    shelf.keep(VAE)
    assert on_card(parts, card) == {"vae"}


def test_what_is_there_stays_where_main_memory_is_short(parts: dict[str, Model], card: Card) -> None:
    class Files:
        in_turns = True

        def read(self, part: str, as_stored: bool = False) -> tuple[Model, ...]:
            return (Model(card),)

        def dtype_of(self, part: str) -> None:
            return None

    shelf = Shelf(CARD, dict.fromkeys(parts, ()), Files())  # type: ignore[arg-type]
    shelf.together = True
    shelf.keep(TEXT)
    (text,) = shelf.modules("text")
    shelf.keep(DENOISER)
    assert shelf.modules("text") == (text,), "it need not be read again"
    shelf.keep(frozenset())
    assert shelf.modules("text") == () == shelf.modules("denoiser")
