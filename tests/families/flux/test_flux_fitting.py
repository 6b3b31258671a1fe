"""The plan of a FLUX.1 transformer: its counts against the real classes, its estimates against what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from headshot_ui.errors import MemoryBudgetError, ModelError
from headshot_ui.families.flux_parts import eight_bit, fitting, modulation, streaming
from headshot_ui.families.flux_parts.fitting import (
    CONTEXT_BYTES,
    SPARE_BYTES,
    Fit,
    Work,
    plan,
    streams_text,
    working_bytes,
)
from headshot_ui.families.flux_parts.sizes import dropped_parameters, lora_parameters, shape_of, weight_bytes
from tests.families.flux.flux_tiny import tiny_transformer

GIB = 2**30
FLUX = shape_of({"guidance_embeds": True})
TEXT = 9_800_000_000  # T5-XXL and CLIP in 16 bit


def meta(config: dict[str, Any]) -> Any:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        return FluxTransformer2DModel(**config).to(torch.bfloat16)


def bytes_of(model: torch.nn.Module) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


@pytest.mark.parametrize("which", ["dev", "schnell", "tiny"])
def test_weights_are_counted_as_they_are(which: str) -> None:
    config = dict(tiny_transformer().config) if which == "tiny" else {"guidance_embeds": which == "dev"}
    shape, model = shape_of(config), meta(config)

    def shrunk(model: Any) -> int:
        eight_bit.shrink(model, torch.bfloat16, "meta", "meta", lambda name: model.get_parameter(name))
        return bytes_of(model)

    whole = bytes_of(model)
    assert weight_bytes(shape, eight_bit=False, dropped=False) == whole
    modulation.drop(model)
    assert (
        weight_bytes(shape, eight_bit=False, dropped=True) == bytes_of(model) == whole - 2 * dropped_parameters(shape)
    )
    assert weight_bytes(shape, eight_bit=True, dropped=True) == shrunk(model)
    assert weight_bytes(shape, eight_bit=True, dropped=False) == shrunk(meta(config))


def test_what_travels_is_counted_as_it_is() -> None:
    model = meta({"guidance_embeds": True})
    modulation.drop(model)
    eight_bit.shrink(model, torch.bfloat16, "meta", "meta", lambda name: model.get_parameter(name))
    whole = plan(FLUX, Work(False, 512, 512, 1), 48 * GIB, 64 * GIB)
    assert not whole.eight_bit
    work = Work(False, 1024, 1024, 28)
    fits = [plan(FLUX, work, size * GIB, 64 * GIB, TEXT) for size in (15, 5)]
    count = fits[1].streamed
    assert not fits[0].streamed and FLUX.single < count < FLUX.blocks, "of both kinds"
    travelling = sum(streaming.block_bytes(block) for block in streaming.chosen_blocks(model, count))
    slots = 2 * streaming.block_bytes(model.transformer_blocks[0])
    saved = fits[0].vram_bytes - fits[1].vram_bytes
    assert saved == pytest.approx(travelling - slots, rel=1e-3)


# --- held against an H200 (torch 2.11) --------------------------------------------------------------------
LEARN_512 = Work(True, 512, 512, 1000, lora=lora_parameters(FLUX, 16))
LEARN_1024 = replace(LEARN_512, width=1024, height=1024)
DRAW_1024 = Work(False, 1024, 1024, 28, lora=lora_parameters(FLUX, 16))
LESS = "16 bit without modulation layers"


def streams(count: int) -> str:
    return f"8 bit, {count} of 57 blocks streamed"


def estimated(work: Work, title: str) -> int:
    """Of the way with this title."""
    return next(way.vram_bytes for way in fitting._ways(FLUX, work, TEXT, 64 * GIB) if way.title == title)


RESULTS = Path(__file__).parents[3] / "benchmarks" / "results"


def kept(name: str) -> Any:
    return json.loads((RESULTS / name).read_text("utf-8"))


def learned_under_a_cap() -> list[tuple[Work, str, int]]:
    """Work, way, and what torch's allocator reserved at most, of the kept runs that came to the end of learning."""
    runs = [run for run in kept("flux-fitting-h200.json") if "learning" in run]
    assert [(run["cap_gib"], run["plan"]["streamed"]) for run in runs] == [(23, 0), (15, 0), (7, 34), (11, 20), (7, 40)]
    works = [replace(LEARN_512, width=run["side"], height=run["side"], steps=run["steps"]) for run in runs]
    reserved = [int(run["learning"]["reserved_gib"] * GIB) for run in runs]
    return list(zip(works, [run["way"] for run in runs], reserved, strict=True))


def trained_in_bench() -> list[tuple[Work, str, int]]:
    """Likewise of the program's own training step, recorded."""
    without, with_ = (row["ours_peak_bytes"] for row in kept("flux-train-h200.json")["rows"])
    return [(replace(LEARN_512, recomputed=0.0), "16 bit", without), (LEARN_1024, "16 bit", with_)]


@pytest.mark.parametrize("source", [learned_under_a_cap, trained_in_bench])
def test_no_peak_lies_above_the_estimate_and_none_far_below(source: Any) -> None:
    for work, title, reserved in source():
        whole = reserved + CONTEXT_BYTES
        assert whole <= estimated(work, title) <= 1.08 * whole, (title, work.width)


def test_what_ran_out_of_memory_is_not_planned_again() -> None:
    """11 GiB for torch's allocator at 1024 px: going backward it wanted more than all of them."""
    (failed,) = [run for run in kept("flux-fitting-h200.json") if "failed" in run]
    assert failed["way"] == streams(10) and failed["cap_gib"] == 11 and not failed["ok"]
    assert estimated(LEARN_1024, failed["way"]) > 11 * GIB + CONTEXT_BYTES
    planned = plan(FLUX, LEARN_1024, 11 * GIB + CONTEXT_BYTES, 32 * GIB, TEXT)
    assert planned.streamed >= 18 and planned.vram_bytes < estimated(LEARN_1024, failed["way"]) - GIB / 2
    assert plan(FLUX, LEARN_512, 7 * GIB + CONTEXT_BYTES, 32 * GIB, TEXT).streamed > 34, "34 took all 7 GiB"


def test_drawing_lies_above_what_a_step_took() -> None:
    """A step beside what learning had left in the allocator's hands, on a stream of its own: all it took was new."""
    for run in kept("flux-fitting-h200.json"):
        if run["cap_gib"] in (15, 23):
            took = (run["reserved_gib"] - run["learning"]["reserved_gib"]) * GIB
            eight_bit = run["cap_gib"] == 15
            assert took <= working_bytes(FLUX, replace(DRAW_1024, lora=0), eight_bit) <= took + 0.1 * GIB


def test_attention_alone_takes_less() -> None:
    """Measured before feed-forward layers learned too: 23.3 GiB at 512 px, 24.8 at 1024, 28.8 without checkpointing."""
    fewer = lora_parameters(FLUX, 16, feed_forward=False)
    for side, recomputed, measured in ((512, 1.0, 23.3), (1024, 1.0, 24.8), (512, 0.0, 28.8)):
        work = Work(True, side, side, 10, lora=fewer, recomputed=recomputed)
        assert measured * GIB <= estimated(work, "16 bit") - CONTEXT_BYTES <= 1.12 * measured * GIB


@pytest.mark.parametrize(
    ("card_gib", "learn_512", "learn_1024", "draw_1024"),
    [
        (32, "16 bit", "16 bit", "16 bit"),
        (24, LESS, LESS, LESS),
        (23, LESS, LESS, LESS),
        (16, "8 bit", "8 bit", "8 bit"),
        (15, "8 bit", "8 bit", "8 bit"),
        (12, "8 bit", streams(16), "8 bit"),
        (11, streams(8), streams(26), "8 bit"),
        (8, streams(36), streams(48), streams(26)),
        (7, streams(44), streams(52), streams(36)),
    ],
)
def test_what_each_card_does(card_gib: int, learn_512: str, learn_1024: str, draw_1024: str) -> None:
    for work, wanted in ((LEARN_512, learn_512), (LEARN_1024, learn_1024), (DRAW_1024, draw_1024)):
        fit = plan(FLUX, work, card_gib * GIB, 32 * GIB, TEXT)
        assert fit.title == wanted
        assert fit.vram_bytes <= card_gib * GIB and fit.keeps_copy
        most = 13 if not work.learning else 14 if fit.eight_bit else 26  # what learns leaves the card for a sample
        assert fit.ram_bytes <= most * GIB
        assert fit.vram_bytes > CONTEXT_BYTES + SPARE_BYTES


def test_no_card_asks_for_a_slower_way_than_a_smaller_one() -> None:
    def rank(fit: Fit) -> tuple[bool, bool, int]:
        return fit.eight_bit, fit.dropped, fit.streamed

    ranks = [rank(plan(FLUX, LEARN_1024, int(tenths * GIB / 10), 64 * GIB)) for tenths in range(60, 300, 5)]
    assert ranks == sorted(ranks, reverse=True) and len(set(ranks)) > 8


def test_what_does_not_fit_is_said_in_one_sentence() -> None:
    with pytest.raises(MemoryBudgetError, match=r"needs about 5.8 GB of graphics memory to learn at 1024 x 1024"):
        plan(FLUX, LEARN_1024, 4 * GIB, 64 * GIB, TEXT)
    with pytest.raises(MemoryBudgetError, match=r"about 11\.\d GB of free main memory to draw .* 8\.0 GB may be used"):
        plan(FLUX, DRAW_1024, 24 * GIB, 8 * GIB, TEXT)
    with pytest.raises(MemoryBudgetError, match="graphics memory"):  # blocks cannot travel without checkpointing
        plan(FLUX, replace(LEARN_512, recomputed=0.0), 12 * GIB, 64 * GIB)
    with pytest.raises(ModelError, match="damaged"):
        shape_of({"num_layers": "many"})


def test_main_memory_decides_too() -> None:
    long = replace(LEARN_512, steps=10_000)  # 21 GB of modulation: in 16 bit without dropping none is needed
    assert plan(FLUX, long, 24 * GIB, 48 * GIB).title == LESS
    assert plan(FLUX, long, 24 * GIB, 36 * GIB).title == "8 bit"
    with pytest.raises(MemoryBudgetError, match="main memory"):
        plan(FLUX, long, 24 * GIB, 16 * GIB)
    assert plan(FLUX, long, 32 * GIB, 28 * GIB).title == "16 bit"
    assert plan(FLUX, LEARN_512, 32 * GIB, 16 * GIB).title == "8 bit"
    drawing = plan(FLUX, DRAW_1024, 32 * GIB, 16 * GIB)
    assert drawing.title == "16 bit" and not drawing.keeps_copy


def test_which_cards_hold_the_text_encoders() -> None:
    assert [streams_text(TEXT, size * GIB) for size in (16, 12, 11, 8, 7)] == [False, False, False, True, True]


def test_a_lora_on_the_modulation_keeps_it() -> None:
    fit = plan(FLUX, replace(LEARN_512, may_drop=False), 24 * GIB, 64 * GIB)
    assert fit.eight_bit and not fit.dropped and fit.vram_bytes > 12 * 10**9


def test_the_sentences() -> None:
    said = [plan(FLUX, LEARN_512, size * GIB, 32 * GIB, TEXT).sentence() for size in (32, 24, 16, 7)]
    assert said[0] == "FLUX.1 fits in 16 bit (about 25.3 GB of graphics memory and 25.4 GB of main memory)."
    assert "because what depends on the timestep only is computed beforehand" in said[1]
    assert said[2].startswith("FLUX.1 fits in 8 bit (about 11.4 GB")
    assert "with 44 of its 57 blocks in main memory, which travel to the card one ahead" in said[3]
