"""headshots: photos in, ranked headshots out, the best repaired and cropped for their use if wanted; in one go."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.commands.base_option import Unnamed, name_base
from headshot_ui.commands.export import export_lines
from headshot_ui.commands.generate import picture_lines
from headshot_ui.commands.job_runner import Context, run_alone, telling_how_to_go_on
from headshot_ui.commands.output import print_json, to_plain
from headshot_ui.commands.prepare import dataset_lines
from headshot_ui.commands.restore import restored_lines
from headshot_ui.commands.spec_options import HELP, add_spec_options, build_spec
from headshot_ui.errors import HeadshotError
from headshot_ui.specs import GenerateSpec, HeadshotsSpec, PrepareSpec, TrainSpec

if TYPE_CHECKING:
    from headshot_ui.engine import HeadshotsResult

NAME = "headshots"
SUMMARY = "all of it: photos in, ranked headshots out"
EXAMPLES = """examples:
  headshots ~/Pictures/me --person anna
  headshots ~/Pictures/me --person anna --restore-best 8 --export-best 3
  headshots ~/Pictures/me --person anna --plan              what it would take
  headshots ~/Pictures/me --person anna --base sdxl --recipe original
  headshots album.zip --person anna --count 8 --keep-best 12 --json"""

_SHARED = frozenset({"person", "base", "seed", "recipe"})
_PARTS = frozenset({"prepare", "train", "generate"})
_TRAIN_NAMES = {"steps": "train_steps"}
_GENERATE_NAMES = {"steps": "sampling_steps"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", nargs="+", metavar="PHOTOS", help=HELP[PrepareSpec]["photos"])
    add_spec_options(parser, PrepareSpec, skip=frozenset({"photos", "recipe"}), defaults={"base": Unnamed()})
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same training and pictures")
    parser.add_argument("--recipe", metavar="TEXT", help=HELP[TrainSpec]["recipe"])
    add_spec_options(parser.add_argument_group("training"), TrainSpec, _SHARED | {"run"}, _TRAIN_NAMES)
    add_spec_options(parser.add_argument_group("pictures"), GenerateSpec, _SHARED | {"lora"}, _GENERATE_NAMES)
    add_spec_options(parser.add_argument_group("the best of them"), HeadshotsSpec, _PARTS)


def run(args: argparse.Namespace, context: Context) -> int:
    name_base(args, context)
    spec = HeadshotsSpec(
        build_spec(PrepareSpec, args),
        build_spec(TrainSpec, args, _TRAIN_NAMES),
        build_spec(GenerateSpec, args, _GENERATE_NAMES, lora="latest"),
        args.restore_best,
        args.export_best,
        args.fidelity_weight,
    )
    with telling_how_to_go_on(context, spec.train.person):
        result = run_alone(context, spec)
    sheet = _contact_sheet(result)
    if context.as_json:
        print_json({**to_plain(result), "contact_sheet": sheet})
    else:
        lines = [*dataset_lines(result.dataset), *picture_lines(result.generated)]
        lines += [] if result.restored is None else restored_lines(result.restored)
        lines += [] if result.exported is None else export_lines(result.exported)
        lines += [] if sheet is None else [f"Contact sheet: {sheet}"]
        print("\n".join(lines))
    return 0


def _contact_sheet(result: HeadshotsResult) -> Path | None:
    """An overview beside the headshots; a sentence on standard error and None where it cannot be written."""
    from headshot_ui.sheet import save_contact_sheet

    try:
        return save_contact_sheet(result, f"Headshots of {result.dataset.person}")
    except HeadshotError as error:  # the pictures are there all the same
        print(f"No contact sheet was made: {error}", file=sys.stderr, flush=True)
        return None
