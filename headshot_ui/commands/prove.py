"""prove: does everything work on this computer, with these models? Tries it, and writes a report without faces."""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from headshot_ui.commands.base_option import DEMO_BASE
from headshot_ui.commands.job_runner import Context, PlanShown, follow_job, show_plan
from headshot_ui.commands.licences import accept_licence
from headshot_ui.commands.output import print_json
from headshot_ui.errors import SpecError
from headshot_ui.forecast import forecast_lines
from headshot_ui.lock import hold
from headshot_ui.store import readable_bytes, told_plainly
from headshot_ui.wording import format_seconds

if TYPE_CHECKING:
    from headshot_ui.engine import Engine
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.prove.findings import Proof
    from headshot_ui.prove.plan import ProvePlan
    from headshot_ui.settings import Settings

NAME = "prove"
SUMMARY = "try everything on this computer, about ten minutes, and write a report"
EXAMPLES = """examples:
  prove                          on the demo models, about a minute and a half
  prove --base sdxl              on the full-size models, about ten minutes on a graphics card
  prove --base sdxl --photos ~/Pictures/me
  prove --random-weights         full-size models of random weights: needs no download but 12 GB of disk
  prove --base random-flux       the same of FLUX.1-dev: 34 GB of disk

Nothing of a person stays: pictures, LoRA and prepared photos are removed at the end (--keep keeps them). The report
holds figures only and can be attached to an issue. The exit code is 0 only if no check failed."""
FOLDER = ".prove-"  # in the outputs folder, so that the disk is the one people work on


@dataclass(frozen=True)
class _Place:
    """Where a proof works: folders that are gone afterwards."""

    folder: Path
    settings: Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", default=None, metavar="ID", help=f"base model to try (default: {DEMO_BASE})")
    parser.add_argument(
        "--photos", nargs="+", default=[], metavar="PHOTOS",
        help="photos, folders or .zip archives of one person (default: the bundled ones of a drawn person)",
    )  # fmt: skip
    parser.add_argument(
        "--random-weights", nargs="?", const="full", choices=("full", "tiny"), default=None, metavar="SIZE",
        help="make base, refiner and CodeFormer with random weights and try those: full (the default) or tiny; with "
        "--base another set (examples below)",
    )  # fmt: skip
    parser.add_argument("--steps", type=int, default=None, metavar="N", help="training steps (default: by the device)")
    parser.add_argument("--report", type=Path, default=None, metavar="FILE", help="where the report goes (.md)")
    parser.add_argument("--keep", action="store_true", help="keep what was made, to look at it")
    parser.add_argument(
        "--accept-licence", metavar="ID", help="show a restorer's licence and accept it, so that it is tried too"
    )


def run(args: argparse.Namespace, context: Context) -> int:
    _check(args)
    if args.accept_licence is not None:
        accept_licence(args.accept_licence, context)
    outputs = context.settings.outputs_dir
    with hold(outputs, NAME), _place(context.settings, args.keep, context.progress_stream) as place:
        base, size = _chosen(args)
        if size:
            place = replace(place, settings=_random_models(place, base, size, context))
        engine = context.make_engine(place.settings)
        try:
            info, plan = _planned(args, base, size, context, engine)
            proof = _prove(engine, plan, context.progress_stream)
        finally:
            engine.close()
        return _end(args, context, place, info, plan, proof)


def _check(args: argparse.Namespace) -> None:
    """Raises SpecError for options that cannot be meant."""
    from headshot_ui.prove.random_sets import all_sets

    if args.random_weights and args.base is not None and args.base not in all_sets():
        known = " or ".join(f"“{base}”" for base in sorted(all_sets()))
        raise SpecError("base", f"--random-weights makes its own base model: leave --base out, or choose {known}.")
    if args.steps is not None and args.steps < 1:
        raise SpecError("steps", f"The number of steps is {args.steps}; it must be 1 or more.")


def _chosen(args: argparse.Namespace) -> tuple[str, str]:
    """(base model, size of the random weights that are made for it; "" for a model that is there)."""
    from headshot_ui.prove.random_models import BASE_ID
    from headshot_ui.prove.random_sets import all_sets

    if args.random_weights or args.base in all_sets():
        return args.base or BASE_ID, args.random_weights or "full"
    return args.base or DEMO_BASE, ""


@contextmanager
def _place(settings: Settings, keep: bool, stream: TextIO) -> Iterator[_Place]:
    """A folder of its own for everything made, removed when the block ends; so is what a crash left of an earlier one.

    The outputs folder is held by this program, so no other can be at work in those.
    """
    for old in settings.outputs_dir.glob(f"{FOLDER}*"):
        shutil.rmtree(old, ignore_errors=True)
    with told_plainly(settings.outputs_dir, "written"):
        settings.outputs_dir.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=FOLDER, dir=settings.outputs_dir))
    try:
        yield _Place(folder, replace(settings, outputs_dir=folder / "outputs"))
    finally:
        if keep:
            kept = folder.rename(settings.outputs_dir / f"prove-{_now()}")
            print(f"What was made is kept in {kept}.", file=stream, flush=True)
        else:
            shutil.rmtree(folder, ignore_errors=True)


def _random_models(place: _Place, base: str, size: str, context: Context) -> Settings:
    """Settings whose models folder has random models beside what else is there. Raises StoreError, ModelError."""
    from headshot_ui.prove.random_parts import OUTLINE
    from headshot_ui.prove.random_sets import all_sets, linked_models

    made, models = all_sets()[base], place.folder / "models"
    settings = replace(place.settings, models_dir=models)
    if context.plan_only:  # sizes are all that a plan asks of weights
        linked_models(context.settings.models_dir, models, made.replaces)
        made.make(models, size, OUTLINE, lambda _: None)
        return settings
    if size == "full":
        made.check_room(place.folder, settings)
    linked_models(context.settings.models_dir, models, made.replaces)
    began = time.monotonic()

    def tell(what: str) -> None:
        print(f"Making random weights: {what}", file=context.progress_stream, flush=True)

    made.make(models, size, context.settings.device, tell)
    print(f"Random weights made in {format_seconds(time.monotonic() - began)}.", file=context.progress_stream)
    return settings


def _planned(
    args: argparse.Namespace, base: str, size: str, context: Context, engine: Engine
) -> tuple[BaseInfo, ProvePlan]:
    """What will be tried, told before it begins. Raises PlanShown after ``--plan``, ModelError, SpecError."""
    from headshot_ui import families
    from headshot_ui.prove.plan import forecast_of, plan_proof
    from headshot_ui.prove.random_sets import all_sets

    info = families.find_base(base, engine.settings)
    plan = plan_proof(info, args.photos, args.steps, engine.settings)
    forecast = forecast_of(plan, info, engine)
    if context.plan_only:
        if forecast is not None:
            show_plan(context, forecast)
        if size == "full":
            print(
                f"The random weights take {readable_bytes(all_sets()[base].full_bytes)} of the disk meanwhile.",
                file=context.progress_stream,
            )
        raise PlanShown
    amounts, stream = plan.amounts, context.progress_stream
    print(
        f"Trying “{info.title}”: {amounts.train_steps} training steps, then {amounts.pictures} pictures of "
        f"{amounts.sampling_steps} steps, several times.", file=stream,
    )  # fmt: skip
    for line in () if forecast is None else forecast_lines(forecast):
        print(line, file=stream, flush=True)
    return info, plan


def _prove(engine: Engine, plan: ProvePlan, stream: TextIO) -> Proof:
    """Raises Cancelled."""
    from headshot_ui.engine import Task
    from headshot_ui.prove.plan import PERSON
    from headshot_ui.prove.runner import run_proof

    proof: Proof = follow_job(engine.submit_task(Task(NAME, "Trying", run_proof), plan, PERSON), stream)
    return proof


def _end(
    args: argparse.Namespace, context: Context, place: _Place, info: BaseInfo, plan: ProvePlan, proof: Proof
) -> int:
    """Write the report, keep the peaks for plans to come, and tell. The exit code."""
    from headshot_ui.peaks import Peaks
    from headshot_ui.prove.random_sets import random_ids
    from headshot_ui.prove.report import machine, write_report

    outputs = context.settings.outputs_dir
    path = (args.report or outputs / f"prove-{_now()}.md").expanduser().absolute()
    path, beside = write_report(path, proof, plan, info, machine(place.settings), (context.settings, place.settings))
    stored = Peaks(outputs).take_over(Peaks(place.settings.outputs_dir), skip=random_ids())
    if context.as_json:
        print_json(_told(proof, path, beside, stored))
    else:
        print("\n".join(_lines(proof, path)))
    return 1 if proof.failed else 0


def _told(proof: Proof, path: Path, beside: Path, stored: int) -> dict[str, Any]:
    return {
        "ok": not proof.failed, "checks": proof.results, "report": path, "report_json": beside,
        "peaks_stored": stored, "seconds": proof.seconds,
    }  # fmt: skip


def _lines(proof: Proof, path: Path) -> Sequence[str]:
    """The table at the end."""
    marks = {"holds": "holds", "fails": "FAILS", "not possible": "-"}
    lines = []
    for result in proof.results:
        lines.append(f"{marks[result.verdict]:<6} {result.title}: {result.figure}")
        if result.verdict == "fails":
            lines.append(f"{'':<7}{result.advice}")
    failed = len(proof.failed)
    total = "Everything that could be tried holds." if not failed else f"{failed} of {len(proof.results)} checks fail."
    return [*lines, "", f"{total} {format_seconds(proof.seconds)}.", f"Report, to attach to an issue: {path}"]


def _now() -> str:
    return datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
