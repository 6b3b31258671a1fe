"""A whole job on a card with a cap: training, pictures by base and refiner, restoration, in one process, measured.

    python benchmarks/small_cards.py --card t4 --models FOLDER      # float16, 14 GiB for torch, 12 GB of main memory
    python benchmarks/small_cards.py --card 8gb --models FOLDER     # bfloat16, 7 GiB for torch
    python benchmarks/small_cards.py --card t4 --models FOLDER --size tiny --device cpu

The models are SDXL's base and refiner and CodeFormer in their full shapes with random weights (``tiny``: shrunk, with
the demo's restorer); they are written to FOLDER, 12 GB, where they are not there yet. The program's own engine does
the work; only finding faces is left out, so that neither OpenCV nor facexlib is needed: the middle of each picture
stands for the face. Caps are for torch's allocator, so the driver's context comes on top.

Prints one JSON object; ``ok`` is true when every stage came to its end within the caps and every number of the LoRA
and every picture is one. The exit code says the same.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import psutil
from PIL import Image, ImageStat

from headshot_ui.dataset.saved import save_dataset
from headshot_ui.dataset.types import Dataset, PreparedPhoto
from headshot_ui.engine import Engine, real_parts
from headshot_ui.memory import CONTEXT_BYTES
from headshot_ui.meter import StageMeter
from headshot_ui.parts import Parts
from headshot_ui.prove.random_models import BASE_ID, CODEFORMER, REFINER_ID, SIZES
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec, RestoreSpec, TrainSpec
from headshot_ui.store import Store, save_png

ROOT = Path(__file__).parents[1]
TRAINED, DRAWN = "trained", "drawn"  # two people: without prepared photos nobody looks for faces in pictures
SAMPLE_EVERY_S = 0.02
LOOK_EVERY_S = 0.05
PHOTOS = 10


@dataclass(frozen=True)
class Card:
    """A small card, as it is to be pretended."""

    dtype: str
    cap_bytes: int  # for torch's allocator
    ram_bytes: int | None  # for the whole process


CARDS = {"t4": Card("float16", 14 * 2**30, 12 * 2**30), "8gb": Card("bfloat16", 7 * 2**30, None)}


# --- measuring ----------------------------------------------------------------------------------------
@dataclass
class StageFigures:
    """One stage."""

    stage: str
    seconds: float = 0.0
    error: str = ""
    peak_allocated_bytes: int = 0  # torch's own counter
    peak_reserved_bytes: int = 0  # sampled; the allocator's limit holds it below the cap all the time
    allocator_retries: int = 0  # times torch had to give cached memory back to find room
    peak_rss_bytes: int = 0
    peak_anonymous_bytes: int = 0  # of it, what is no mapped file, which the system can drop; 0 where not told
    facts: dict[str, Any] = field(default_factory=dict)


class Sampler:
    """Samples memory of process and card in a thread of its own until it is stopped."""

    def __init__(self) -> None:
        self.rss = self.anonymous = self.reserved = 0
        self._process = psutil.Process()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        self._look()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_EVERY_S):
            self._look()

    def _look(self) -> None:
        self.rss = max(self.rss, self._process.memory_info().rss)
        self.anonymous = max(self.anonymous, anonymous_bytes())
        torch = cuda()
        if torch is not None:
            self.reserved = max(self.reserved, torch.cuda.memory_reserved())


def anonymous_bytes() -> int:
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def cuda() -> Any:
    """torch, if it is loaded and has begun to use a card."""
    torch = sys.modules.get("torch")
    started = torch is not None and hasattr(torch, "cuda") and torch.cuda.is_initialized()
    return torch if started else None


def measured(name: str, work: Callable[[], dict[str, Any]]) -> StageFigures:
    """Run one stage; an error is noted, not raised."""
    figures, sampler, meter = StageFigures(name), Sampler(), StageMeter()
    retries = allocator_retries()
    began = time.perf_counter()
    try:
        with meter.stage(name):
            figures.facts = work()
    except Exception as error:  # whatever it is, the other figures are worth having
        figures.error = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    figures.seconds = round(time.perf_counter() - began, 2)
    sampler.stop()
    figures.peak_allocated_bytes = meter.stages[-1].peak_vram_bytes
    figures.peak_reserved_bytes = sampler.reserved
    figures.allocator_retries = allocator_retries() - retries
    figures.peak_rss_bytes, figures.peak_anonymous_bytes = sampler.rss, sampler.anonymous
    say(f"{name}: {json.dumps(asdict(figures))}")
    return figures


def allocator_retries() -> int:
    torch = cuda()
    return 0 if torch is None else int(torch.cuda.memory_stats().get("num_alloc_retries", 0))


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# --- what the work needs ------------------------------------------------------------------------------
def make_models(folder: Path, size: str, device: str) -> None:
    """Random models where they are missing, by a process of their own: its memory is not to be counted."""
    wanted = [folder / BASE_ID / "base.json", folder / REFINER_ID / "refiner.json"]
    wanted += [folder / CODEFORMER] if size == "full" else []
    if not all(path.is_file() for path in wanted):
        command = [sys.executable, "-m", "headshot_ui.prove.random_models", "--models", str(folder), "--size", size]
        command += [] if device == "auto" else ["--device", device]
        subprocess.run(command, check=True, cwd=ROOT, stdout=sys.stderr)
    demo = Path("demo", "restorer", "restorer.safetensors")
    if size == "tiny" and not (folder / demo).is_file():
        (folder / demo).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / "models" / demo, folder / demo)


def prepare(store: Store, size_px: int) -> None:
    """The demo's people, enlarged, as a prepared dataset."""
    folder = store.dataset_dir(TRAINED)
    folder.mkdir(parents=True)
    photos = []
    for number, path in enumerate(sorted((ROOT / "models" / "demo" / "people" / "robin").glob("*.jpg"))[:PHOTOS]):
        with Image.open(path) as image:
            original = image.size
            image.convert("RGB").resize((size_px, size_px), Image.Resampling.LANCZOS).save(folder / f"{number}.png")
        photos.append(
            PreparedPhoto(
                path.name, "train", "", crop=f"{number}.png", caption="portrait of tok person, soft light",
                original_size=(original[1], original[0]),
            )
        )  # fmt: skip
    save_dataset(Dataset(TRAINED, folder, size_px, "tok", "person", tuple(photos)))


def parts_without_faces(size: str) -> Parts:
    """The program's parts, without whatever finds faces."""
    real = real_parts()
    restorer = real.all_restorers()["codeformer" if size == "full" else "demo"]
    return replace(
        real,
        load_detector=lambda settings, info: None,
        load_any_detector=lambda settings, drawn_first: None,
        choose_restorer=lambda restorer_id, settings: restorer,
        restore=restore_middles,
    )


def restore_middles(spec: RestoreSpec, store: Store, tools: Any, report: Any, judge: Any = None) -> list[Path]:
    """What ``restoration.restore`` does with one face per picture, which lies in the middle of it."""
    import numpy as np

    from headshot_ui.restoration.runner import NETWORK, repair_face

    made = []
    with tools.open_restorer() as restorer:
        restorer.keep(NETWORK)
        side = restorer.info.size_px
        for number, path in enumerate(map(Path, spec.pictures), start=1):
            with Image.open(path) as picture:
                image = picture.convert("RGB")
            left, top = (image.width - side) // 2, (image.height - side) // 2
            face = np.asarray(image.crop((left, top, left + side, top + side)))
            image.paste(Image.fromarray(repair_face(restorer, face, spec.fidelity_weight)), (left, top))
            made.append(store.restored_dir(spec.person) / path.name)
            save_png(made[-1], image, {})
            report("Repairing faces", number, len(spec.pictures))
        restorer.keep(frozenset())
    return made


# --- the stages ---------------------------------------------------------------------------------------
def run_job(engine: Engine, spec: Any) -> Any:
    job, said, began = engine.submit(spec), "", time.perf_counter()
    while not (snapshot := job.wait(LOOK_EVERY_S)).finished:
        if snapshot.stage != said:
            said = snapshot.stage
            say(f"  {time.perf_counter() - began:.1f} s  {said}")
    if snapshot.state != "done":
        raise RuntimeError(f"{snapshot.state}: {snapshot.error}")
    return snapshot.result


def train(engine: Engine, steps: int, samples: bool) -> dict[str, Any]:
    from safetensors.numpy import load_file

    spec = TrainSpec(TRAINED, BASE_ID, steps=steps, sample_every=steps if samples else 100_000)
    planned = engine.forecast(spec)
    result = run_job(engine, spec)
    import numpy as np

    run = json.loads((result.run_dir / "run.json").read_text(encoding="utf-8"))
    numbers = all(bool(np.isfinite(tensor).all()) for tensor in load_file(result.lora_path).values())
    return {
        "lora": str(result.lora_path), "loss_first": result.losses[0], "loss_last": result.losses[-1],
        "steps": result.steps, "seconds_of_training": round(result.seconds, 2), "lora_is_numbers": numbers,
        "gradient_checkpointing": run["spec"]["gradient_checkpointing"], "rank": run["spec"]["rank"],
        "planned_peak_bytes": planned.peak_bytes, "planned_to_fit": planned.fits,
    }  # fmt: skip


def generate(engine: Engine, lora: str, pictures: int, sampling_steps: int) -> dict[str, Any]:
    spec = GenerateSpec(
        DRAWN, BASE_ID, prompt="portrait of {subject}, navy suit, studio backdrop", count=pictures, lora=lora,
        steps=sampling_steps, refine="ensemble", refiner=REFINER_ID,
    )  # fmt: skip
    result = run_job(engine, spec)
    paths = [picture.path for picture in result.pictures]
    return {"pictures": [str(path) for path in paths], "refined": all(p.refined for p in result.pictures),
            "looks": [look_of(path) for path in paths]}  # fmt: skip


def restore(engine: Engine, pictures: Sequence[str]) -> dict[str, Any]:
    made = run_job(engine, RestoreSpec(DRAWN, tuple(pictures)))
    return {"pictures": [str(path) for path in made], "looks": [look_of(path) for path in made]}


def look_of(path: Path) -> dict[str, Any]:
    """Whether a picture is all of one colour, as one of which the numbers overflowed would be."""
    with Image.open(path) as image:
        whole = image.convert("RGB")
    low_high, mean = whole.getextrema(), ImageStat.Stat(whole).mean
    black, flat = all(high == 0 for _, high in low_high), all(low == high for low, high in low_high)
    return {"size": list(whole.size), "mean": [round(m, 1) for m in mean], "black": black, "flat": flat}


def run(args: argparse.Namespace) -> dict[str, Any]:
    card = CARDS[args.card]
    dtype = args.dtype or ("float32" if args.device == "cpu" else card.dtype)
    make_models(args.models, args.size, args.device)
    with tempfile.TemporaryDirectory() as outputs:
        settings = Settings.from_environment(
            models_dir=args.models, outputs_dir=outputs, device=args.device, dtype=dtype,
            vram_limit=card.cap_bytes + CONTEXT_BYTES, ram_limit=card.ram_bytes, environment={},
        )  # fmt: skip
        prepare(Store(settings), SIZES[args.size].size_px)
        with Engine(settings, lambda: parts_without_faces(args.size)) as engine:
            stages = [measured("train", lambda: train(engine, args.steps, args.samples))]
            lora = stages[0].facts.get("lora")
            if lora:
                stages.append(measured("generate", lambda: generate(engine, lora, args.pictures, args.sampling_steps)))
            drawn = stages[-1].facts.get("pictures")
            if drawn:
                stages.append(measured("restore", lambda: restore(engine, drawn)))
            again = bool(drawn) and args.again
            if again:  # the base is read again after refiner and restorer had its room
                stages.append(measured("train again", lambda: train(engine, 2, False)))
        return summary(args, card, settings, stages)


def summary(args: argparse.Namespace, card: Card, settings: Settings, stages: list[StageFigures]) -> dict[str, Any]:
    torch = cuda()
    reserved = max(stage.peak_reserved_bytes for stage in stages)
    rss = max(stage.peak_rss_bytes for stage in stages)
    looks = [look for stage in stages for look in stage.facts.get("looks", [])]
    whole = all(stage.facts.get("lora_is_numbers", True) for stage in stages)
    done = not any(stage.error for stage in stages) and len(stages) >= 3
    in_ram = card.ram_bytes is None or rss <= card.ram_bytes
    bad = sum(look["black"] or look["flat"] for look in looks)
    return {
        "card": args.card, "size": args.size,
        "device": settings.device if torch is None else torch.cuda.get_device_name(), "dtype": settings.dtype,
        "torch": sys.modules["torch"].__version__, "allocator": os.environ.get("PYTORCH_ALLOC_CONF", ""),
        "cap_bytes": card.cap_bytes, "peak_reserved_bytes": reserved, "within_cap": reserved <= card.cap_bytes,
        "ram_cap_bytes": card.ram_bytes, "peak_rss_bytes": rss, "within_ram": in_ram,
        "pictures": len(looks), "black_or_flat_pictures": bad, "lora_is_numbers": whole,
        "loss_first": stages[0].facts.get("loss_first"), "loss_last": stages[0].facts.get("loss_last"),
        "stages": [asdict(stage) for stage in stages],
        "ok": done and in_ram and reserved <= card.cap_bytes and not bad and whole,
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--card", choices=tuple(CARDS), required=True)
    parser.add_argument("--models", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--size", choices=("full", "tiny"), default="full")
    parser.add_argument("--device", choices=("auto", "cuda", "cpu"), default="auto")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                        help="default: the card's; float32 on a CPU, for which 16 bit is slow")  # fmt: skip
    parser.add_argument("--steps", type=int, default=20, help="of training")
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--sampling-steps", type=int, default=30)
    parser.add_argument("--samples", action=argparse.BooleanOptionalAction, default=True, help="a sample at the end")
    parser.add_argument("--again", action=argparse.BooleanOptionalAction, default=True, help="two more steps at last")
    args = parser.parse_args(argv)
    if sys.platform == "linux":  # before torch loads; see headshot_ui/cli.py
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    made = run(args)
    print(json.dumps(made, indent=1))
    return 0 if made["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
