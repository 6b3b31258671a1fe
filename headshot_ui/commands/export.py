"""export: finished pictures in, crops for LinkedIn, a CV or a badge out, with a zip archive of them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headshot_ui.commands.job_runner import Context, run_alone
from headshot_ui.commands.known_people import check_known
from headshot_ui.commands.output import print_json
from headshot_ui.commands.spec_options import HELP, add_spec_options, build_spec
from headshot_ui.specs import ExportSpec
from headshot_ui.store import Store

if TYPE_CHECKING:
    from headshot_ui.export import ExportResult

NAME = "export"
SUMMARY = "crop finished pictures for LinkedIn, a CV or a badge, and zip them"
EXAMPLES = """examples:
  export --person anna                                    every picture with a star, in every layout
  export best.png other.png --person anna --layouts linkedin cv
  export best.png --person anna --layouts full --file-type webp --quality 85 --json"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="*", metavar="PICTURES", help=HELP[ExportSpec]["pictures"])
    add_spec_options(parser, ExportSpec, skip=frozenset({"pictures"}))


def run(args: argparse.Namespace, context: Context) -> int:
    spec = build_spec(ExportSpec, args)
    check_known(spec.person, Store(context.settings).people(), must_be=not spec.pictures)
    result = run_alone(context, spec)
    if context.as_json:
        print_json(result)
    else:
        print("\n".join(export_lines(result)))
    return 0


def export_lines(result: ExportResult) -> Sequence[str]:
    """Every file with its size and what is not as wished, the archive, and the pictures left out."""
    lines = [f"{len(result.files)} file{'s' * (len(result.files) != 1)} in {result.folder}"]
    for file in result.files:
        note = f"  {file.note}" if file.note else ""
        lines.append(f"  {file.path.name}  {file.width} x {file.height}{note}")
    lines += [f"  {sentence}" for sentence in result.skipped]
    return [*lines, f"Zip archive: {result.archive}"]
