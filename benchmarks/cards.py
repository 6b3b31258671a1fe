"""Which card does what, in minutes: the tables of docs/CARDS.md, computed.

    python benchmarks/cards.py              print the tables
    python benchmarks/cards.py --write      put them into docs/CARDS.md
    python benchmarks/cards.py --count      count the work of Stable Diffusion XL anew (a minute or two on a CPU)

Read are ``cards.json`` (cards, and what others report of them), ``results/sdxl-work.json`` (``--count``) and, where
they are there, ``results/small-cards-*.json`` (``small_cards.py``) and ``results/prove-*.json``
(``prove``). Letters: W work in TFLOP, P a card's dense 16-bit
rate in TFLOP/s by its data sheet, s the share of P that is reached, h seconds a step costs whatever the card.

    at least    W / P                the card at its full rate throughout, which nothing reaches
    estimate    h + W / (s * P)

s is the median of what others report for drawing with the same modules (``reported``). h is measured: what a training
step took in a run of ``prove`` beyond W / (s * P) of the card it ran on. Without such a run there is no estimate for
learning. For drawing h is 0, because s was taken from whole pictures.
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
    bf16: bool


@dataclass(frozen=True)
class Work:
    """TFLOP at 1024 x 1024, batch 1."""

    denoiser: float  # one pass forward
    refiner: float
    decode: float
    encode: float
    step: float  # one training step, rank 32
    step_checkpointed: float
    lora_numbers: float  # of that LoRA, not TFLOP

    def picture(self, steps: int = SAMPLING_STEPS, refined: int = 0) -> float:
        """With guidance, so two passes a step."""
        return 2 * ((steps - refined) * self.denoiser + refined * self.refiner) + self.decode


@dataclass(frozen=True)
class Measured:
    """What one report of ``prove`` says about learning."""

    title: str  # of the card
    seconds_per_step: float
    checkpointing: bool
    tflops: float  # of the card it ran on


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


def seconds_beside(runs: Iterable[Measured], share: float, work: Work) -> float | None:
    """h: seconds of a training step that do not depend on the card; None where nothing was measured."""
    beside = [run.seconds_per_step - step_work(work, run.checkpointing) / (share * run.tflops) for run in runs]
    return max(0.0, statistics.median(beside)) if beside else None


def step_work(work: Work, checkpointing: bool) -> float:
    return work.step_checkpointed if checkpointing else work.step


def read_proofs() -> list[dict[str, Any]]:
    """Every report of ``prove`` whose figures were kept."""
    return [json.loads(path.read_text("utf-8")) for path in sorted((HERE / "results").glob("prove-*.json"))]


def measured_learning(proof: dict[str, Any], cards: Iterable[Card]) -> Measured | None:
    """What a report says of the training step alone; None where there is none, or the card or base is another."""
    check = next((one for one in proof["checks"] if one["id"] == "training" and one["verdict"] == "holds"), None)
    rate = next((card.tflops for card in cards if card.id == proof["machine"]["card"]), None)
    seconds = None if check is None else check["measured"].get("seconds per training step")
    if check is None or rate is None or seconds is None or proof["base"]["size_px"] != SIZE_PX:
        return None
    return Measured(proof["machine"]["card"], seconds, "gradient checkpointing" in check["figure"], rate)


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
def needed_bytes(work: Work, checkpointing: bool) -> int:
    """Graphics memory of a training step by the program's own estimate, its context included."""
    from headshot_ui.amounts import LEARNING, LEARNING_CHECKPOINTED, SDXL_DENOISER_PARAMETERS
    from headshot_ui.memory import CONTEXT_BYTES

    rate = LEARNING_CHECKPOINTED if checkpointing else LEARNING
    lora = 4 * 4 * work.lora_numbers  # float32: weights, gradients, two moments
    return int(2 * SDXL_DENOISER_PARAMETERS + rate * 1024**2 + lora + CONTEXT_BYTES)


def checkpoints(card: Card, work: Work) -> bool | None:
    """Whether learning at 1024 has to save memory on this card; None where it does not fit all the same."""
    from headshot_ui.forecast import ROOM_FOR_DOUBT

    if ROOM_FOR_DOUBT * needed_bytes(work, False) <= card.gb * GIB:
        return False
    return True if needed_bytes(work, True) <= card.gb * GIB else None


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
        step = None if beside is None else beside + learning / (share * card.tflops)
        rows.append([
            f"{card.title}, {card.gb} GB",
            "on" if checkpointing else "off",
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
            computed = step_work(work, one["checkpointing"]) / (share * card.tflops)
            here = None if beside is None else beside + computed
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
    cards, measuring, reported = read_cards()
    work = read_work()
    runs = read_runs()
    learned = [one for proof in read_proofs() if (one := measured_learning(proof, cards + measuring)) is not None]
    share = share_reached(cards, reported, work)
    beside = seconds_beside(learned, share, work)
    numbers = {"denoiser, one pass": work.denoiser, "refiner, one pass": work.refiner, "VAE, decoding": work.decode,
               "VAE, encoding": work.encode, "training step": work.step,
               "training step with checkpointing": work.step_checkpointed}  # fmt: skip
    told = NOT_YET if beside is None else f"{beside:.2f} s"
    return {
        "measured": table(("run", "stage", "graphics memory", "main memory", "time"), measured_rows(runs)),
        "cards": table(
            ("card", "gradient checkpointing", "learning, at least", "learning, estimate",
             "one picture, with refiner: estimate", "whole job, at least", "whole job, estimate"),
            card_rows(cards, work, share, beside),
        ),
        "work": table(("work at 1024 x 1024", "TFLOP"), ([name, f"{w:.1f}"] for name, w in numbers.items()))
        + f"\n\nShare of the data sheet's rate that is reached, s = {share:.0%}. "
        + f"Seconds of a step beside it, h = {told}.",
        "memory": table(
            ("learning at 1024 x 1024", "graphics memory, the program's own estimate"),
            [[f"gradient checkpointing {'on' if on else 'off'}", f"{needed_bytes(work, on) / GIB:.1f} GB"]
             for on in (False, True)],
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
    from peft import LoraConfig, inject_adapter_in_model
    from residency import FULL, unet, vae
    from torch.utils.flop_counter import FlopCounterMode

    from headshot_ui.families.sdxl_parts.lora import TARGETS

    def tflop(work: Callable[[], object]) -> float:
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops() / 1e12

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(*shape, device="meta")

    def passed(net: Any, config: dict[str, Any]) -> Any:
        sizes = (config["projection_class_embeddings_input_dim"] - 1280) // 256
        added = {"text_embeds": zeros(1, 1280), "time_ids": zeros(1, sizes)}
        text = zeros(1, 77, config["cross_attention_dim"])
        return net(zeros(1, 4, 128, 128), zeros(1), encoder_hidden_states=text, added_cond_kwargs=added).sample

    with torch.device("meta"):
        base, refiner, coder = unet(FULL.base), unet(FULL.refiner), vae(FULL.vae)
    for net in (base, refiner, coder):
        net.requires_grad_(False)
    counted = {}
    with torch.no_grad():
        counted["denoiser"] = tflop(lambda: passed(base, FULL.base))
        counted["refiner"] = tflop(lambda: passed(refiner, FULL.refiner))
        counted["decode"] = tflop(lambda: coder.decode(zeros(1, 4, 128, 128)))
        counted["encode"] = tflop(lambda: coder.encode(zeros(1, 3, 1024, 1024)))
    inject_adapter_in_model(LoraConfig(r=32, target_modules=list(TARGETS)), base)
    lora = sum(p.numel() for p in base.parameters() if p.requires_grad)
    base.train()
    counted["step"] = tflop(lambda: passed(base, FULL.base).sum().backward())
    base.enable_gradient_checkpointing()
    counted["step_checkpointed"] = tflop(lambda: passed(base, FULL.base).sum().backward())
    return counted, lora


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
