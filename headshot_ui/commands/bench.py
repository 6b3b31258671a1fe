"""bench: how fast this is beside the usual way of doing the same, measured on this computer."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.commands.job_runner import Context
from headshot_ui.commands.output import print_json, print_table
from headshot_ui.errors import SpecError
from headshot_ui.lock import hold
from headshot_ui.logs import start_log
from headshot_ui.memory import limit_vram
from headshot_ui.settings import Settings, parse_bytes
from headshot_ui.store import told_plainly, write_json_atomic

if TYPE_CHECKING:
    from headshot_ui.bench.rows import Row
    from headshot_ui.bench.runner import Measured
    from headshot_ui.bench.work import Work

NAME = "bench"
SUMMARY = "measure how fast this is beside the usual way, on this computer"
EXAMPLES = """examples:
  bench                          everything; on a graphics card about half an hour
  bench train generate           only these
  bench swap --cap 12            as if the card had 12 GB
  bench train --compile always   with compiled blocks (generate too); the seconds of compiling are a figure of their own
  bench train --model flux       a training step of FLUX.1 instead of Stable Diffusion XL
  bench train --size tiny        does it work at all? The figures mean nothing

Full-size models get random weights, so nothing is downloaded. The usual way is that of the published scripts and
pipelines with their defaults, written out in the benchmark itself. Missing a goal is no error."""
FOLDER = ".bench-"  # in the outputs folder, so that the disk is the one people work on
REPEATS = {"full": 7, "tiny": 2}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("works", nargs="*", metavar="WORK", help="what to measure (default: everything there is)")
    parser.add_argument("--cap", metavar="GB", help="as if the card had so much memory")
    parser.add_argument(
        "--size", choices=tuple(REPEATS), help="of the models (default: full; tiny without a card for what needs one)"
    )
    parser.add_argument("--model", metavar="NAME", help="family whose works to measure (default: sdxl)")
    parser.add_argument("--repeats", type=int, metavar="N", help=f"times each is measured (default: {REPEATS['full']})")
    parser.add_argument("--report", type=Path, metavar="FILE", help="keep machine and rows in a JSON file")


def run(args: argparse.Namespace, context: Context) -> int:
    from headshot_ui.bench.machine import facts
    from headshot_ui.bench.rows import as_json, seconds, table
    from headshot_ui.bench.runner import measure_works
    from headshot_ui.bench.setting import BenchSetting

    works, settings = _chosen(args), _capped(args, context.settings)
    stream = context.progress_stream

    def size_of(work: Work) -> str:
        return str(args.size or ("tiny" if work.needs_gpu and settings.device != "cuda" else "full"))

    def say(line: str) -> None:
        print(line, file=stream, flush=True)

    rows: list[Row] = []

    def told(row: Row) -> None:
        rows.append(row)
        say(f"  {row.work}: {seconds(row.ours_s)} instead of {seconds(row.reference_s)}, {row.ratio:.2f} times as fast")
        if args.report is not None:  # what a machine that is gone the next moment has measured is not lost
            _keep(args.report, {"rows": as_json(rows)})

    with hold(settings.outputs_dir, NAME), _scratch(settings.outputs_dir) as folder:
        start_log(settings)
        limit_vram(settings)
        measured = measure_works(
            works, lambda work: BenchSetting(settings, size_of(work), _repeats(args, size_of(work)), folder, say), told
        )
        if args.report is not None:
            _keep(args.report, {"machine": facts(settings.device), "rows": as_json(measured.rows)})
    if context.as_json:
        print_json(as_json(measured.rows))
    else:
        print()
        print_table(table(measured.rows))
        print("\n".join(_remarks(measured)))
    for sentence in measured.failures:
        print(sentence, file=sys.stderr, flush=True)
    return 1 if measured.failures else 0


def _chosen(args: argparse.Namespace) -> list[Work]:
    """Raises SpecError for a work that is not there, and for a number that cannot be meant."""
    from headshot_ui.bench.work import USUAL_MODEL
    from headshot_ui.bench.works import all_works, works_by_model

    works = all_works(args.model or USUAL_MODEL)
    if not works:
        known = ", ".join(works_by_model())
        raise SpecError("model", f"Nothing is measured with a model called “{args.model}”: choose from {known}.")
    for name in args.works:
        if name not in works:
            raise SpecError("works", f"There is nothing called “{name}” to measure: choose from {', '.join(works)}.")
    if args.repeats is not None and args.repeats < 1:
        raise SpecError("repeats", f"The number of repeats is {args.repeats}; it must be 1 or more.")
    return [works[name] for name in dict.fromkeys(args.works or works)]


def _capped(args: argparse.Namespace, settings: Settings) -> Settings:
    """``--cap 8`` is ``--vram-limit 8GB``. Raises SetupError."""
    if args.cap is None:
        return settings
    return replace(settings, vram_limit_bytes=parse_bytes(f"{args.cap}GB" if args.cap[-1:].isdigit() else args.cap))


def _repeats(args: argparse.Namespace, size: str) -> int:
    return int(args.repeats or REPEATS[size])


@contextmanager
def _scratch(outputs: Path) -> Iterator[Path]:
    """A folder that is gone afterwards; so is what a crash left of an earlier one. Raises StoreError.

    The outputs folder is held by this program, so no other can be at work in those.
    """
    for old in outputs.glob(f"{FOLDER}*"):
        shutil.rmtree(old, ignore_errors=True)
    with told_plainly(outputs, "written"):
        outputs.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=FOLDER, dir=outputs))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _keep(path: Path, told: dict[str, Any]) -> None:
    """Raises StoreError."""
    path = path.expanduser().absolute()
    with told_plainly(path, "written"):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_atomic(path, told)


def _remarks(measured: Measured) -> list[str]:
    """What a table has no room for."""
    lines = []
    for row in measured.rows:
        lines.append(f"{row.work}: the goal is {row.goal}." if row.goal else f"{row.work}: no goal at this size.")
        if row.note:
            lines.append(f"  {row.note}")
    return lines
