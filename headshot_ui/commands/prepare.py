"""prepare: photos in, a checked, cropped and captioned dataset out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headshot_ui.commands.job_runner import Context, run_alone
from headshot_ui.commands.output import print_json
from headshot_ui.commands.spec_options import DEFAULT_BASE, HELP, add_spec_options, build_spec
from headshot_ui.specs import PrepareSpec

if TYPE_CHECKING:
    from headshot_ui.dataset.types import Dataset

NAME = "prepare"
SUMMARY = "check, crop and caption the photos of a person"
EXAMPLES = """examples:
  prepare ~/Pictures/me --person anna
  prepare one.jpg two.heic album.zip --person anna --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("photos", nargs="+", metavar="PHOTOS", help=HELP[PrepareSpec]["photos"])
    add_spec_options(parser, PrepareSpec, skip=frozenset({"photos"}), defaults={"base": DEFAULT_BASE})


def run(args: argparse.Namespace, context: Context) -> int:
    dataset = run_alone(context, build_spec(PrepareSpec, args))
    if context.as_json:
        print_json(dataset)
    else:
        print("\n".join(dataset_lines(dataset)))
    return 0


def dataset_lines(dataset: Dataset) -> Sequence[str]:
    """How many photos are used, and every photo left out with its reason and remedy."""
    kept = [photo for photo in dataset.photos if photo.verdict != "rejected"]
    held_out = sum(photo.verdict == "held_out" for photo in kept)
    lines = [f"{len(kept) - held_out} photos to learn from, {held_out} held out, "
             f"{len(dataset.photos) - len(kept)} left out. Folder: {dataset.folder}"]  # fmt: skip
    lines += [f"  left out: {photo.source}: {photo.reason}" for photo in dataset.photos if photo.verdict == "rejected"]
    lines += [f"  note: {photo.source}: {'; '.join(photo.warnings)}" for photo in kept if photo.warnings]
    return lines
