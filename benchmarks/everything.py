"""Measure everything on this card, part after part, as far as the given minutes reach.

    python benchmarks/everything.py --out FOLDER --models FOLDER
    python benchmarks/everything.py --out FOLDER --models FOLDER --minutes 9 --only tests small-card-8gb train

Each part is a program of its own with a limit of its own; what it printed, its figures and how it ended lie in the
folder at once. A part that has ended well is not run again: a second call goes on where the first one stopped. Random
models of full size are made in the models folder (14 GB for SDXL, 34 GB for FLUX.1), which is to lie on a quick disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Part:
    """A program to run. ``{report}`` and ``{models}`` in its arguments are filled in."""

    name: str
    seconds: int  #: it is stopped after so long
    arguments: tuple[str, ...]


def _script(name: str, seconds: int, line: str) -> Part:
    return Part(name, seconds, tuple(line.split()))


#: In the order in which they are worth having: first what must hold, then what is to be quick.
PARTS = (
    _script(
        "tests", 420,
        "-m pytest -q -m gpu --timeout 120 --continue-on-collection-errors "  # a package for other tests may be missing
        "tests/training tests/core tests/families tests/prove",
    ),
    _script("small-card-8gb", 420, "benchmarks/small_cards.py --card 8gb --models {models} --sampling-steps 15"),
    _script("small-card-t4", 420, "benchmarks/small_cards.py --card t4 --models {models} --sampling-steps 15"),
    _script("compile-sdxl-train", 240, "benchmarks/compiled_blocks.py --model sdxl --work train --report {report}"),
    _script(
        "compile-flux-train", 240,
        "benchmarks/compiled_blocks.py --model flux --work train --level full --report {report}",
    ),
    _script("compile-sdxl-draw", 240, "benchmarks/compiled_blocks.py --model sdxl --work draw --report {report}"),
    _script("compile-flux-draw", 240, "benchmarks/compiled_blocks.py --model flux --work draw --report {report}"),
    *(
        _script(f"profile-{model}-{work}", 120,
                f"benchmarks/step_profile.py --model {model} --work {work} --level {level} --compiled "
                "--cache {models}/compiled --count 6 --try all --seconds 60 --report {report}")
        for model, work, level in (
            ("sdxl", "train", "none"), ("sdxl", "draw", "none"), ("flux", "train", "full"), ("flux", "draw", "none"),
        )
    ),
    _script("train", 300, "-m headshot_ui bench train --report {report}"),
    _script("generate", 300, "-m headshot_ui bench generate --report {report}"),
    _script("train-compiled", 420, "-m headshot_ui bench train --compile always --report {report}"),
    _script("generate-compiled", 420, "-m headshot_ui bench generate --compile always --report {report}"),
    _script("swap", 420, "-m headshot_ui bench swap --cap 12 --repeats 4 --report {report}"),
    _script("batch", 300, "-m headshot_ui bench batch --report {report}"),
    _script("whole-training", 300, "benchmarks/whole_training.py --models {models}"),
    *(
        _script(f"flux-{cap}", 240, f"benchmarks/flux_fitting.py --cap {cap} --side {side} --steps {steps}")
        for cap, side, steps in ((23, 1024, 20), (15, 1024, 20), (11, 1024, 20), (7, 512, 20))
    ),
    _script("flux-compare", 240, "benchmarks/flux_fitting.py --cap 120 --side 512 --compare"),
    _script("flux-fast-products", 180, "benchmarks/flux_products.py --side 1024 --repeats 40"),
    _script("flux-train", 420, "-m headshot_ui bench train --model flux --report {report}"),
    _script("flux-generate", 420, "-m headshot_ui bench generate --model flux --report {report}"),
    _script("flux-train-compiled", 480, "-m headshot_ui bench train --model flux --compile always --report {report}"),
    _script(
        "flux-generate-compiled", 480, "-m headshot_ui bench generate --model flux --compile always --report {report}"
    ),
    _script("prove-flux", 540, "-m headshot_ui --models {models} prove --base random-flux"),
)


def run_part(part: Part, out: Path, models: Path, limit: float) -> dict[str, object]:
    """Run one part for at most ``limit`` seconds.

    Its output goes to ``<name>.txt``, how it ended to ``<name>.end.json``.
    """
    report = out / f"{part.name}.json"
    arguments = [each.format(report=report, models=models) for each in part.arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    start = time.monotonic()
    with (out / f"{part.name}.txt").open("w", encoding="utf-8") as told:
        try:
            code = subprocess.run(
                [sys.executable, *arguments], cwd=ROOT, env=environment, stdout=told, stderr=subprocess.STDOUT,
                timeout=limit, check=False,
            ).returncode  # fmt: skip
        except subprocess.TimeoutExpired:
            code = None
    end = {"part": part.name, "code": code, "seconds": round(time.monotonic() - start, 1), "command": arguments}
    (out / f"{part.name}.end.json").write_text(json.dumps(end, indent=1) + "\n", encoding="utf-8")
    return end


def is_done(part: Part, out: Path) -> bool:
    try:
        return json.loads((out / f"{part.name}.end.json").read_text(encoding="utf-8"))["code"] == 0
    except (OSError, ValueError, KeyError):
        return False


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    """Returns 0 when every part that was asked for has ended well, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the results go")
    parser.add_argument("--models", type=Path, required=True, metavar="FOLDER", help="where random models are made")
    parser.add_argument("--minutes", type=float, default=60.0, help="no part goes on for longer (default: 60)")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in parts], metavar="PART",
                        help=f"these alone: {', '.join(part.name for part in parts)}")  # fmt: skip
    chosen = parser.parse_args(arguments)
    chosen.out.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + 60 * chosen.minutes
    wanted = [part for part in parts if chosen.only is None or part.name in chosen.only]
    for part in wanted:
        left = until - time.monotonic()
        if is_done(part, chosen.out):
            print(f"{part.name}: done before", flush=True)
        elif left <= 0:
            print(f"{part.name}: no time left", flush=True)
        else:
            end = run_part(part, chosen.out.resolve(), chosen.models.resolve(), min(part.seconds, left))
            how = {0: "done", None: "stopped, out of time"}.get(end["code"], f"failed with code {end['code']}")
            print(f"{part.name}: {how} after {end['seconds']} s", flush=True)
    return 0 if all(is_done(part, chosen.out) for part in wanted) else 1


if __name__ == "__main__":
    sys.exit(main())
