"""Which photos come when, and how fast learning begins."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import pytest
import torch

from headshot_ui.families.protocol import BaseDefaults, BaseInfo
from headshot_ui.specs import TrainSpec
from headshot_ui.training.order import PhotoOrder
from headshot_ui.training.plan import complete, learning_rate_at, plan_of


def order(shapes: str, seed: int = 0) -> PhotoOrder:
    return PhotoOrder(shapes, torch.Generator().manual_seed(seed))


def test_every_photo_comes_once_before_any_comes_again() -> None:
    batches = order("aaaaaaa")
    drawn = list(itertools.chain.from_iterable(batches.next_batch(3) for _ in range(21)))
    rounds = [drawn[start : start + 7] for start in range(0, 63, 7)]
    assert all(sorted(one) == list(range(7)) for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1  # shuffled anew


def test_a_batch_has_one_shape_and_all_photos_their_share() -> None:
    shapes = "aaaabbc"
    batches = order(shapes)
    counts: Counter[int] = Counter()
    for _ in range(400):
        batch = batches.next_batch(4)
        assert len(batch) == 4
        assert len({shapes[index] for index in batch}) == 1
        counts.update(batch)
    assert min(counts[index] for index in range(7)) > 0.9 * 1600 / 7
    assert len(batches.waiting) < 7 * 6


def test_one_photo_fills_a_batch() -> None:
    assert order("a").next_batch(4) == [0, 0, 0, 0]


def test_the_order_is_the_seeds_and_goes_on_from_its_state() -> None:
    first, same, other = order("aaaaaaaa", 1), order("aaaaaaaa", 1), order("aaaaaaaa", 2)
    drawn = [first.next_batch(3) for _ in range(5)]
    assert [same.next_batch(3) for _ in range(5)] == drawn
    assert [other.next_batch(3) for _ in range(5)] != drawn
    resumed = PhotoOrder("aaaaaaaa", torch.Generator())
    resumed.generator.set_state(first.generator.get_state())
    resumed.waiting = list(first.waiting)
    assert [resumed.next_batch(3) for _ in range(9)] == [first.next_batch(3) for _ in range(9)]


def test_what_is_left_open_is_the_bases_own() -> None:
    defaults = BaseDefaults(train_steps=300, batch_size=4, rank=16, learning_rate=2e-3, min_snr_gamma=5.0)
    info = BaseInfo("x", "sdxl", "X", Path("x"), "", "", 256, defaults=defaults)
    plan = plan_of(complete(TrainSpec(person="anna", base="x"), info))
    assert (plan.steps, plan.batch_size, plan.rank, plan.alpha) == (300, 4, 16, 16.0)
    assert (plan.learning_rate, plan.min_snr_gamma, plan.checkpoint_every) == (2e-3, 5.0, 250)
    plan = plan_of(complete(TrainSpec(person="anna", base="x", rank=8, alpha=1.0, steps=5, min_snr_gamma=2.0), info))
    assert (plan.steps, plan.rank, plan.alpha, plan.min_snr_gamma) == (5, 8, 1.0, 2.0)


def test_the_learning_rate_rises_once_and_stays() -> None:
    rates = [learning_rate_at(step, 1e-3) for step in range(30)]
    assert rates[0] == pytest.approx(1e-4)
    assert rates == sorted(rates)
    assert set(rates[9:]) == {1e-3}
