"""restore: any pictures in, the same pictures with repaired faces out, enlarged if wanted."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headshot_ui.commands.job_runner import Context, run_alone
from headshot_ui.commands.licences import accept_licence
from headshot_ui.commands.output import print_json
from headshot_ui.commands.spec_options import HELP, add_spec_options, build_spec
from headshot_ui.errors import SpecError
from headshot_ui.specs import RestoreSpec

if TYPE_CHECKING:
    from headshot_ui.restoration.records import RestoredPicture, RestoreResult

NAME = "restore"
SUMMARY = "repair the faces in any pictures, and enlarge the pictures"
EXAMPLES = """examples:
  restore portrait.png --person anna
  restore portrait.png --person anna --fidelity-weight 0.8     keeps more of the face as it is
  restore family.jpg --person anna --faces 1 2 --upscale 2 --parse-face
  restore album.zip ~/Pictures/old --person anna --json
  restore --accept-licence codeformer                         accept a licence, once

The fidelity weight goes from repair to keep: 0 repairs most and may change who it is, 1 keeps most of what is
there, flaws as well. Faces are numbered by size, the largest is 1."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="*", metavar="PICTURES", help=HELP[RestoreSpec]["pictures"])
    # Neither is needed for --accept-licence alone; ``run`` asks for them.
    add_spec_options(parser, RestoreSpec, skip=frozenset({"pictures"}), defaults={"person": None})
    parser.add_argument(
        "--accept-licence", metavar="ID", help="show a restorer's licence and accept it, once for this computer"
    )


def run(args: argparse.Namespace, context: Context) -> int:
    if args.accept_licence is not None:
        accept_licence(args.accept_licence, context)
        if not args.pictures:
            if context.as_json:
                print_json({"accepted": args.accept_licence})
            return 0
    if args.pictures and args.person is None:
        raise SpecError("person", "Say whose folder the results go to: add --person and a name.")
    result = run_alone(context, build_spec(RestoreSpec, args, person=args.person or "nobody"))
    if context.as_json:
        print_json(result)
    else:
        print("\n".join(restored_lines(result)))
    return 0


def restored_lines(result: RestoreResult) -> Sequence[str]:
    """One line per picture, every face and file left out with its reason, and what holds for all of them once."""
    count = len(result.pictures)
    by = f" with the restorer “{result.restorer}”" if result.restorer else ""
    lines = [f"{count} picture{'s' * (count != 1)} restored{by}. Folder: {result.folder}"]
    shared = [note for note in result.pictures[0].notes if all(note in p.notes for p in result.pictures)]
    for picture in result.pictures:
        lines += _lines(picture, [note for note in picture.notes if note not in shared])
    lines += [f"  left out: {refusal.name}: {refusal.reason}" for refusal in result.refused]
    return [*lines, *shared]


def _lines(picture: RestoredPicture, notes: Sequence[str]) -> Sequence[str]:
    faces = f"{len(picture.faces)} face{'s' * (len(picture.faces) != 1)}"
    told = f"{picture.repaired} of {faces} repaired"
    before, after = picture.likeness_before, picture.likeness_after
    if before is not None and after is not None:
        told += f", likeness {before.percent:.0f} % → {after.percent:.0f} %"
    lines = [f"  {picture.path.name}: {picture.skipped or told}"]
    if not picture.skipped:
        lines += [f"    face {face.number} left alone: {face.skipped}" for face in picture.faces if face.skipped]
    return [*lines, *(f"    {sentence}" for sentence in (picture.warning, *notes) if sentence)]
