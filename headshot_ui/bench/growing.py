"""One job of a given size in a process of its own, so that its memory can be told apart: ``growth`` starts these.

    python -m headshot_ui.bench.growing prepare  --photos FOLDER --outputs FOLDER
    python -m headshot_ui.bench.growing generate --models FOLDER --count N --outputs FOLDER

Prints one JSON object: seconds and processor time for each item after the first, which also loads what is needed, and
the memory of the process when the first item was done and at most.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from headshot_ui.engine import Engine
from headshot_ui.errors import HeadshotError
from headshot_ui.jobs import Snapshot
from headshot_ui.logs import stop_log
from headshot_ui.prove.random_models import BASE_ID
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec, PrepareSpec, Spec

PERSON = "bench"
DEMO = "demo-sdxl"
PICTURE_PX = 64
EVERY_S = 0.05


@dataclass(frozen=True)
class Moment:
    """Clock, processor's time and memory."""

    seconds: float
    cpu_s: float
    ram_bytes: int


def now() -> Moment:
    return Moment(time.perf_counter(), time.process_time(), int(psutil.Process().memory_info().rss))


class Watch:
    """Hears of a job: notes the moment its first item was done, and the most memory since."""

    def __init__(self) -> None:
        self.first: Moment | None = None
        self.most = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def __call__(self, snapshot: Snapshot) -> None:
        if self.first is None and snapshot.step >= 1:
            self.first = now()

    def _sample(self) -> None:
        while not self._done.wait(EVERY_S):
            self.most = max(self.most, now().ram_bytes)

    def close(self) -> None:
        self._done.set()
        self._thread.join()


def measured(spec: Spec, settings: Settings, items: int) -> dict[str, float]:
    """Run the job and tell. Raises HeadshotError with the job's own sentence when it fails."""
    watch = Watch()
    with Engine(settings) as engine:
        job = engine.submit(spec)
        job.subscribe(watch)
        last = job.wait()
        end = now()
    watch.close()
    stop_log()
    if last.state != "done" or watch.first is None:
        raise HeadshotError(last.error or "The job ended without a result.")
    first, more = watch.first, max(1, items - 1)
    return {
        "items": items, "seconds": (end.seconds - first.seconds) / more, "cpu_s": (end.cpu_s - first.cpu_s) / more,
        "ram_first_bytes": first.ram_bytes, "ram_most_bytes": max(watch.most, end.ram_bytes),
    }  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "generate"))
    parser.add_argument("--outputs", type=Path, required=True)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--models", type=Path)
    parser.add_argument("--count", type=int, default=0)
    parser.add_argument("--device")
    args = parser.parse_args(argv)
    settings = Settings.from_environment(outputs_dir=args.outputs, models_dir=args.models, device=args.device)
    spec: Spec
    if args.what == "prepare":
        spec, items = PrepareSpec(PERSON, (str(args.photos),), DEMO), len(list(args.photos.iterdir()))
    else:
        spec = GenerateSpec(PERSON, BASE_ID, prompt="a portrait", count=args.count, steps=1, width=PICTURE_PX,
                            height=PICTURE_PX)  # fmt: skip
        items = args.count
    print(json.dumps(measured(spec, settings, items)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
