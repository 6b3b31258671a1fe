"""Which card does what, in minutes: the tables of docs/CARDS.md, computed.

    python benchmarks/cards.py              print the tables
    python benchmarks/cards.py --write      put them into docs/CARDS.md
    python benchmarks/cards.py --count      count the work of Stable Diffusion XL anew (a minute or two on a CPU)

Read are ``cards.json`` (cards, and what others report of them), ``results/sdxl-work.json`` (``--count``) and, where
they are there, ``results/small-cards-*.json`` (``small_cards.py``) and ``results/whole-training-*.json``
(``whole_training.py``). Letters: W work in TFLOP, P a card's dense 16-bit
rate in TFLOP/s by its data sheet, B its memory's in TB/s, s the share of P that is reached, M TB that a step moves
beside its products.

    at least    W / P                the card at its full rate throughout, which nothing reaches
    estimate    M / B + W / (s * P)

s is the median of what others report for drawing with the same modules (``reported``). M is measured: what a training
step took in a whole training beyond W / (s * P) of the card it ran on, times B of that card. Without such a run
there is no estimate for learning. For drawing M is 0, because s was taken from whole pictures.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

PAGE = HERE.parent / "docs" / "CARDS.md"
WORK = HERE / "results" / "sdxl-work.json"
BEGIN, END = "<!-- computed: {} -->", "<!-- end -->"
NOT_YET = "not measured yet"
#: Of the base ``sdxl`` and the command ``headshots`` with nothing else said.
STEPS, SAMPLING_STEPS, LOOKS, PER_LOOK, BEFORE, PHOTOS = 1000, 30, 10, 4, 4, 12
REFINED_STEPS = 6  # of SAMPLING_STEPS, drawn by the refiner as an ensemble
GIB = 2**30
SIZE_PX = 1024


@dataclass(frozen=True)
class Card:
    """One graphics card by its data sheet."""

    id: str
    title: str
    gb: int
    tflops: float  # dense, 16 bit, added up in 32 bit
    tb_per_s: float  # of its memory
    bf16: bool


@dataclass(frozen=True)
class Work:
    """TFLOP at 1024 x 1024, batch 1."""

    denoiser: float  # one pass forward
    refiner: float
    decode: float
    encode: float
    step: float  # one training step, rank 32
    step_partial: float  # with partial gradient checkpointing
    step_checkpointed: float  # with full
    lora_numbers: float  # of that LoRA, not TFLOP

    def picture(self, steps: int = SAMPLING_STEPS, refined: int = 0) -> float:
        """With guidance, so two passes a step."""
        return 2 * ((steps - refined) * self.denoiser + refined * self.refiner) + self.decode


@dataclass(frozen=True)
class Measured:
    """What a whole training says of its steps."""

    title: str  # of the card
    seconds_per_step: float
    checkpointing: str  # its level
    tflops: float  # of the card it ran on
    tb_per_s: float  # likewise


# --- what is known -----------------------------------------------------------------------------------
def read_cards() -> tuple[list[Card], list[Card], list[dict[str, Any]]]:
    """Cards of the table, cards that runs were made on (ids as torch names them), and reports."""
    data = json.loads((HERE / "cards.json").read_text("utf-8"))
    listed, measuring = ([Card(**entry) for entry in data[name]] for name in ("cards", "measuring"))
    return listed, measuring, data["reported"]


def read_work() -> Work:
    data = json.loads(WORK.read_text("utf-8"))
    return Work(**data["tflop"], lora_numbers=data["lora_numbers"])


def read_runs() -> list[dict[str, Any]]:
    """Every run of small_cards.py whose figures were kept."""
    runs: list[dict[str, Any]] = []
    for path in sorted((HERE / "results").glob("small-cards-*.json")):
        data = json.loads(path.read_text("utf-8"))
        runs += data if isinstance(data, list) else [data]
    return runs


def share_reached(cards: Sequence[Card], reported: Iterable[dict[str, Any]], work: Work) -> float:
    """Median share of the data sheet's rate over the reports of drawing."""
    rate = {card.id: card.tflops for card in cards}
    shares = [work.picture(one["steps"]) / rate[one["card"]] / one["seconds"]
              for one in reported if one["what"] == "drawing"]  # fmt: skip
    return statistics.median(shares)


def moved_beside(runs: Iterable[Measured], share: float, work: Work) -> float | None:
    """M: TB that a training step moves beside its products; None where nothing was measured."""
    beside = [
        (run.seconds_per_step - step_work(work, run.checkpointing) / (share * run.tflops)) * run.tb_per_s
        for run in runs
    ]
    return max(0.0, statistics.median(beside)) if beside else None


def step_seconds(card: Card, work: Work, checkpointing: str, share: float, beside: float | None) -> float | None:
    """The estimate of a training step; None without a measured run."""
    if beside is None:
        return None
    return beside / card.tb_per_s + step_work(work, checkpointing) / (share * card.tflops)


def step_work(work: Work, checkpointing: str) -> float:
    return {"none": work.step, "partial": work.step_partial, "full": work.step_checkpointed}[checkpointing]


def level_of(kept: bool | str) -> str:
    """Figures of before there were levels have only on or off."""
    return kept if isinstance(kept, str) else "full" if kept else "none"


def measured_learning(cards: Iterable[Card]) -> list[Measured]:
    """The steps of every whole training whose figures were kept, at full size and on a card that is known."""
    known = {card.id: card for card in cards}
    found = []
    for path in sorted((HERE / "results").glob("whole-training-*.json")):
        run = json.loads(path.read_text("utf-8"))
        card = known.get(run["device"])
        if card is not None and run["size"] == "full":
            seconds, checkpointing = run["seconds_per_step"], level_of(run["gradient_checkpointing"])
            found.append(Measured(card.id, seconds, checkpointing, card.tflops, card.tb_per_s))
    return found


def run_title(run: dict[str, Any]) -> str:
    return f"{run['card']}: {run['cap_bytes'] / GIB:.0f} GB for torch, {run['dtype']}, on one {run['device']}"


def measured_rows(runs: Iterable[dict[str, Any]]) -> list[list[str]]:
    """One row for each stage of each run."""
    rows = []
    for run in runs:
        for stage in run["stages"]:
            name = stage["stage"] + (f", {stage['facts']['steps']} steps" if "steps" in stage["facts"] else "")
            peaks = [f"{stage[key] / GIB:.1f} GB" for key in ("peak_reserved_bytes", "peak_rss_bytes")]
            rows.append([run_title(run), name, *peaks, stage["error"] or f"{stage['seconds']:.0f} s"])
    return rows or [[NOT_YET, "", "", "", ""]]


# --- what follows ------------------------------------------------------------------------------------
def needed_bytes(work: Work, checkpointing: str) -> int:
    """Graphics memory of a training step by the program's own estimate, its context included."""
    from headshot_ui.base_bytes import LEARNING, SDXL_DENOISER_PARAMETERS
    from headshot_ui.memory import CONTEXT_BYTES

    rate = LEARNING[checkpointing]
    lora = 4 * 4 * work.lora_numbers  # float32: weights, gradients, two moments
    return int(2 * SDXL_DENOISER_PARAMETERS + rate * 1024**2 + lora + CONTEXT_BYTES)


def checkpoints(card: Card, work: Work) -> str | None:
    """The gradient checkpointing with which learning at 1024 is planned on this card; None where nothing fits."""
    from headshot_ui.families.fits import ROOM_FOR_DOUBT
    from headshot_ui.specs import CHECKPOINTING, FULL

    for level in CHECKPOINTING:
        if ROOM_FOR_DOUBT * needed_bytes(work, level) <= card.gb * GIB:
            return level
    return FULL if needed_bytes(work, FULL) <= card.gb * GIB else None


def card_rows(cards: Sequence[Card], work: Work, share: float, beside: float | None) -> list[list[str]]:
    rows = []
    for card in cards:
        checkpointing = checkpoints(card, work)
        if checkpointing is None:
            rows.append([f"{card.title}, {card.gb} GB", "does not fit"] + ["–"] * 5)
            continue
        learning = step_work(work, checkpointing)
        picture, refined = work.picture(), work.picture(refined=REFINED_STEPS)
        pictures = LOOKS * PER_LOOK + BEFORE
        least = (STEPS * learning + pictures * picture + PHOTOS * work.encode) / card.tflops
        drawing = pictures * picture / (share * card.tflops)
        step = step_seconds(card, work, checkpointing, share, beside)
        rows.append([
            f"{card.title}, {card.gb} GB",
            checkpointing,
            minutes(STEPS * learning / card.tflops),
            NOT_YET if step is None else minutes(STEPS * step),
            f"{picture / (share * card.tflops):.0f} s, {refined / (share * card.tflops):.0f} s",
            minutes(least),
            NOT_YET if step is None else minutes(STEPS * step + drawing),
        ])  # fmt: skip
    return rows


def check_rows(cards: Sequence[Card], reported: Iterable[dict[str, Any]], work: Work, share: float,
               beside: float | None) -> list[list[str]]:  # fmt: skip
    """What the formulas give for what others report."""
    by_id = {card.id: card for card in cards}
    rows = []
    for one in reported:
        card = by_id[one["card"]]
        if one["what"] == "drawing":
            told, here = f"a picture, {one['steps']} steps", work.picture(one["steps"]) / (share * card.tflops)
        else:
            told = f"a training step, {one['how']}"
            here = step_seconds(card, work, level_of(one["checkpointing"]), share, beside)
        seconds = one["seconds"] / one.get("passes", 1)
        rows.append([card.title, told, f"{seconds:.3g} s", NOT_YET if here is None else f"{here:.1f} s",
                     link(one["source"])])  # fmt: skip
    return rows


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 600 else f"{seconds / 60:.1f} min"


def link(source: str) -> str:
    repository, number = source.split("#")
    return f"[{source}](https://github.com/{repository}/issues/{number})"


def table(heading: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables() -> dict[str, str]:
    """Every computed part of the page by its name."""
    from headshot_ui.specs import CHECKPOINTING

    cards, measuring, reported = read_cards()
    work = read_work()
    runs = read_runs()
    learned = measured_learning(cards + measuring)
    share = share_reached(cards, reported, work)
    beside = moved_beside(learned, share, work)
    numbers = {"denoiser, one pass": work.denoiser, "refiner, one pass": work.refiner, "VAE, decoding": work.decode,
               "VAE, encoding": work.encode, "training step": work.step,
               "training step, partial checkpointing": work.step_partial,
               "training step, full checkpointing": work.step_checkpointed}  # fmt: skip
    told = NOT_YET if beside is None else f"{beside:.2f} TB"
    return {
        "measured": table(("run", "stage", "graphics memory", "main memory", "time"), measured_rows(runs)),
        "cards": table(
            ("card", "gradient checkpointing", "learning, at least", "learning, estimate",
             "one picture, with refiner: estimate", "whole job, at least", "whole job, estimate"),
            card_rows(cards, work, share, beside),
        ),
        "work": table(("work at 1024 x 1024", "TFLOP"), ([name, f"{w:.1f}"] for name, w in numbers.items()))
        + f"\n\nShare of the data sheet's rate that is reached, s = {share:.0%}. "
        + f"Moved beside the products in a training step, M = {told}.",
        "memory": table(
            ("learning at 1024 x 1024", "graphics memory, the program's own estimate"),
            [[f"gradient checkpointing: {level}", f"{needed_bytes(work, level) / GIB:.1f} GB"]
             for level in CHECKPOINTING],
        ),
        "check": table(("card", "what", "reported", "by the formulas", "where"),
                       check_rows(cards, reported, work, share, beside)),
    }  # fmt: skip


def filled(page: str, parts: dict[str, str]) -> str:
    """The page with every part between its marks replaced. Raises ValueError for a mark that is missing."""
    for name, text in parts.items():
        begin = BEGIN.format(name)
        before, found, rest = page.partition(begin + "\n")
        _, ended, after = rest.partition(END)
        if not found or not ended:
            raise ValueError(f"docs/CARDS.md has no part “{begin}” … “{END}”.")
        page = before + begin + "\n" + text + "\n" + END + after
    return page


# --- counting ----------------------------------------------------------------------------------------
def count_work() -> tuple[dict[str, float], int]:
    """TFLOP of one pass each (an addition and a multiplication are two), and how many numbers the LoRA has.

    By torch's own counter on modules without weights.
    """
    import torch
    from activations import loaded_outline, step_tflop
    from torch.utils.flop_counter import FlopCounterMode

    from headshot_ui.prove.random_models import build_part

    def tflop(work: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops() / 1e12

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, device="meta")

    def passed(net: Any) -> Any:
        sizes = (net.config.projection_class_embeddings_input_dim - 1280) // 256
        added = {"text_embeds": zeros(1, 1280), "time_ids": zeros(1, sizes)}
        text = zeros(1, 77, net.config.cross_attention_dim)
        return net(zeros(1, 4, 128, 128), zeros(1), encoder_hidden_states=text, added_cond_kwargs=added).sample

    with torch.device("meta"):
        base, refiner, coder = (
            build_part(model, part, "full") for model, part in (("base", "unet"), ("refiner", "unet"), ("base", "vae"))
        )
    counted = {}
    with torch.no_grad():
        counted["denoiser"] = tflop(lambda: passed(base))
        counted["refiner"] = tflop(lambda: passed(refiner))
        counted["decode"] = tflop(lambda: coder.decode(zeros(1, 4, 128, 128)))
        counted["encode"] = tflop(lambda: coder.encode(zeros(1, 3, 1024, 1024)))
    trained = loaded_outline()
    for name, level in (("step", "none"), ("step_partial", "partial"), ("step_checkpointed", "full")):
        counted[name] = step_tflop(trained, level)
    return counted, sum(p.numel() for p in trained.modules.unet.parameters() if p.requires_grad)


def main() -> int:
    parser = argparse.ArgumentParser(description="Tables of docs/CARDS.md.")
    parser.add_argument("--write", action="store_true", help="put them into docs/CARDS.md")
    parser.add_argument("--count", action="store_true", help="count the work of Stable Diffusion XL anew")
    args = parser.parse_args()
    if args.count:
        how = "torch.utils.flop_counter, 1024 x 1024, batch 1, LoRA of rank 32, the program's targets"
        tflop, lora = count_work()
        WORK.write_text(json.dumps({"counted_by": how, "tflop": tflop, "lora_numbers": lora}, indent=1) + "\n", "utf-8")
    parts = tables()
    if args.write:
        PAGE.write_text(filled(PAGE.read_text("utf-8"), parts), "utf-8")
    else:
        print("\n\n".join(parts.values()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
