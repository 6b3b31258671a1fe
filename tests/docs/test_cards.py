"""docs/CARDS.md: every number of its tables is what benchmarks/cards.py computes from the kept figures."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def cards():
    spec = importlib.util.spec_from_file_location("cards", ROOT / "benchmarks" / "cards.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["cards"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["cards"]


def test_the_page_holds_what_is_computed(cards):
    page = cards.PAGE.read_text("utf-8")
    assert cards.filled(page, cards.tables()) == page, "run: python benchmarks/cards.py --write"
    with pytest.raises(ValueError, match="no part"):
        cards.filled(page, {"nowhere": ""})


def test_estimates_follow_from_reports_and_measured_runs(cards):
    steps = {"step": 10, "step_partial": 12, "step_checkpointed": 20}
    work = cards.Work(denoiser=5, refiner=6, decode=10, encode=1, **steps, lora_numbers=0)
    assert work.picture(steps=2) == 2 * 2 * 5 + 10
    assert work.picture(steps=3, refined=1) == 2 * (2 * 5 + 6) + 10
    slow = cards.Card("slow", "Slow", 24, 10.0, 0.5, True)
    reported = [{"card": "slow", "what": "drawing", "steps": 2, "seconds": 6.0, "source": "a/b#1"}]
    share = cards.share_reached([slow], reported, work)
    assert share == pytest.approx(30 / 10 / 6)
    assert cards.moved_beside([], share, work) is None
    run = cards.Measured("fast", seconds_per_step=0.7, checkpointing="full", tflops=100.0, tb_per_s=4.0)
    beside = cards.moved_beside([run], share, work)
    assert beside == pytest.approx((0.7 - 20 / (0.5 * 100)) * 4)
    (row,) = cards.card_rows([slow], work, share, beside)
    assert row[1] == "none"
    assert row[3] == cards.minutes(1000 * (beside / 0.5 + 10 / 5)) and row[2] == cards.minutes(1000 * 10 / 10)
    assert cards.card_rows([slow], work, share, None)[0][3] == cards.NOT_YET


def test_a_card_that_is_too_small_is_said_to_be(cards):
    work = cards.read_work()
    needed = [cards.needed_bytes(work, level) for level in ("none", "partial", "full")]
    assert needed == sorted(needed, reverse=True)
    sizes = (6, 8, 12, 16, 24)
    small, *others = (cards.Card("s", "S", gb, 10, 1, True) for gb in sizes)
    assert cards.checkpoints(small, work) is None
    assert [cards.checkpoints(card, work) for card in others] == ["full", "partial", "none", "none"]
    assert cards.card_rows([small], work, 0.5, 1.0)[0][1] == "does not fit"


def test_figures_of_a_kept_run_are_read(cards):
    facts = {"steps": 20, "seconds_of_training": 16.0, "gradient_checkpointing": True}
    stage = {"stage": "train", "error": "", "seconds": 31.4, "peak_reserved_bytes": 6 * 2**30,
             "peak_rss_bytes": 9 * 2**30, "facts": facts}  # fmt: skip
    run = {"card": "8gb", "size": "full", "device": "NVIDIA H200", "dtype": "bfloat16", "cap_bytes": 7 * 2**30,
           "stages": [stage, stage | {"stage": "restore", "facts": {}}]}  # fmt: skip
    assert [row[1:] for row in cards.measured_rows([run])] == [
        ["train, 20 steps", "6.0 GB", "9.0 GB", "31 s"],
        ["restore", "6.0 GB", "9.0 GB", "31 s"],
    ]
    failed = run | {"stages": [stage | {"error": "MemoryBudgetError: full"}]}
    assert cards.measured_rows([failed])[0][-1] == "MemoryBudgetError: full"
    assert cards.measured_rows([]) == [[cards.NOT_YET, "", "", "", ""]]


def test_the_pace_of_learning_is_that_of_a_whole_training(cards, tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    measuring = [cards.Card("NVIDIA H200", "H200", 141, 989, 4.8, True)]
    run = {"device": "NVIDIA H200", "size": "full", "seconds_per_step": 0.08, "gradient_checkpointing": False}
    for number, changed in enumerate(({}, {"device": "another"}, {"size": "tiny"})):
        (tmp_path / "results" / f"whole-training-{number}.json").write_text(json.dumps(run | changed))
    monkeypatch.setattr(cards, "HERE", tmp_path)
    assert cards.measured_learning(measuring) == [cards.Measured("NVIDIA H200", 0.08, "none", 989, 4.8)]
