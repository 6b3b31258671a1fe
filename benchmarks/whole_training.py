"""A whole training, from the press of the button to the LoRA on disk, with the second at which each stage began.

    python benchmarks/whole_training.py --models FOLDER --steps 1000      # SDXL's full shape with random weights
    python benchmarks/whole_training.py --models FOLDER --steps 6 --size tiny --device cpu

The program's own engine does the work: loading, reading captions and photos, steps, samples, checkpoints. Only finding
faces is left out (see ``small_cards.py``, which also says what the models are). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.small_cards import BASE_ID, PHOTOS, SIZES, TRAINED, cuda, make_models, parts_without_faces, prepare, say
from headshot_ui.engine import Engine
from headshot_ui.settings import Settings
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store
from headshot_ui.training.runner import STAGE

LOOK_EVERY_S = 0.01


def timeline(engine: Engine, spec: TrainSpec) -> dict[str, Any]:
    """Seconds since the press at which each stage began and the first step was done, and what came of it."""
    began = time.perf_counter()
    job = engine.submit(spec)
    stages: list[dict[str, Any]] = []
    first_step = None
    while not (snapshot := job.snapshot).finished:
        now = round(time.perf_counter() - began, 2)
        if snapshot.stage and (not stages or stages[-1]["stage"] != snapshot.stage):
            stages.append({"stage": snapshot.stage, "began_s": now})
            say(f"{now:.2f} s  {snapshot.stage}, step {snapshot.step} of {snapshot.total}")
        if first_step is None and snapshot.stage == STAGE and snapshot.step:
            first_step = now
        time.sleep(LOOK_EVERY_S)
    seconds = round(time.perf_counter() - began, 2)
    if snapshot.state != "done":
        raise RuntimeError(f"{snapshot.state}: {snapshot.error}")
    losses = snapshot.result.losses
    settled = json.loads((snapshot.result.run_dir / "run.json").read_text("utf-8"))["spec"]
    return {
        "photos": PHOTOS, "rank": settled["rank"], "gradient_checkpointing": settled["gradient_checkpointing"],
        "steps": len(losses), "seconds": seconds, "first_step_s": first_step,
        "seconds_per_step": round(seconds_of_training(stages, first_step or 0.0, seconds) / max(len(losses) - 1, 1), 4),
        "loss_first": losses[0], "loss_last": losses[-1], "stages": stages,
    }  # fmt: skip


def seconds_of_training(stages: Sequence[dict[str, Any]], first_step: float, end: float) -> float:
    """Seconds after the first step in which steps were made and checkpoints written, but no sample drawn."""
    ends = [stage["began_s"] for stage in stages[1:]] + [end]
    spans = [(max(stage["began_s"], first_step), until) for stage, until in zip(stages, ends, strict=True)
             if stage["stage"] == STAGE]  # fmt: skip
    return sum(until - began for began, until in spans)


def run(args: argparse.Namespace) -> dict[str, Any]:
    make_models(args.models, args.size, args.device)
    with tempfile.TemporaryDirectory() as outputs:
        dtype = "float32" if args.device == "cpu" else "auto"
        settings = Settings.from_environment(
            models_dir=args.models, outputs_dir=outputs, device=args.device, dtype=dtype, environment={}
        )
        prepare(Store(settings), SIZES[args.size].size_px)
        with Engine(settings, lambda: parts_without_faces(args.size)) as engine:
            found = timeline(engine, TrainSpec(TRAINED, BASE_ID, steps=args.steps))
    torch = cuda()
    device = settings.device if torch is None else torch.cuda.get_device_name()
    return {"size": args.size, "device": device, "dtype": settings.dtype, **found}


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args(argv)
    if sys.platform == "linux":  # before torch loads; see headshot_ui/cli.py
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    print(json.dumps(run(args), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
