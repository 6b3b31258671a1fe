"""prepare: photos in, a checked, cropped and captioned dataset out, as a zip archive if wanted."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.commands.base_option import Unnamed, name_base
from headshot_ui.commands.job_runner import Context, run_alone
from headshot_ui.commands.output import print_json, to_plain
from headshot_ui.commands.spec_options import HELP, add_spec_options, build_spec
from headshot_ui.errors import SpecError
from headshot_ui.specs import PrepareSpec
from headshot_ui.store import Store

if TYPE_CHECKING:
    from headshot_ui.dataset.types import Dataset

NAME = "prepare"
SUMMARY = "check, crop and caption the photos of a person"
EXAMPLES = """examples:
  prepare ~/Pictures/me --person anna
  prepare one.jpg two.heic album.zip --person anna --json
  prepare ~/Pictures/me --person anna --zip ~/anna-dataset.zip
  prepare --person anna --zip ~/anna-dataset.zip           the photos prepared before, with edited captions"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    photos = HELP[PrepareSpec]["photos"] + " (with --zip: none takes what was prepared before)"
    parser.add_argument("photos", nargs="*", metavar="PHOTOS", help=photos)
    add_spec_options(parser, PrepareSpec, skip=frozenset({"photos"}), defaults={"base": Unnamed()})
    parser.add_argument("--zip", metavar="FILE", help="also write pictures and captions as a .zip for other programs")


def run(args: argparse.Namespace, context: Context) -> int:
    archive = None if args.zip is None else _archive_path(args.zip, args.photos)
    if archive is not None and not args.photos:
        dataset = _prepared_before(args.person, context)
    else:
        name_base(args, context)
        dataset = run_alone(context, build_spec(PrepareSpec, args))
    if archive is not None:
        from headshot_ui.dataset.saved import export_zip

        export_zip(dataset, archive)
    if context.as_json:
        print_json(dataset if archive is None else {**to_plain(dataset), "zip": archive})
    else:
        print("\n".join(dataset_lines(dataset)))
        if archive is not None:
            print(f"Zip archive: {archive}")
    return 0


def _prepared_before(person: str, context: Context) -> Dataset:
    """Raises DatasetError when nothing was prepared for this person, SpecError for an impossible name."""
    from headshot_ui.dataset.saved import load_dataset

    return load_dataset(Store(context.settings).dataset_dir(person))


def _archive_path(given: str, photos: Sequence[str]) -> Path:
    """Where the archive goes. Raises SpecError, before anything is done, for a folder or one of the photos."""
    path = Path(given).expanduser()
    if path.is_dir():
        raise SpecError("zip", f"{path} is a folder: add a file name, such as {path / 'dataset.zip'}.")
    if path.suffix.lower() != ".zip":
        raise SpecError("zip", f"{path} does not end in .zip: name the archive like {path.name}.zip.")
    sources = [Path(photo).expanduser().resolve() for photo in photos]
    target = path.resolve()
    if path.exists() and any(source == target or source in target.parents for source in sources):
        raise SpecError("zip", f"{path} is one of the photos given, which are never changed: choose another name.")
    return path


def dataset_lines(dataset: Dataset) -> Sequence[str]:
    """How many photos are used, and every photo left out with its reason and remedy."""
    kept = [photo for photo in dataset.photos if photo.verdict != "rejected"]
    held_out = sum(photo.verdict == "held_out" for photo in kept)
    lines = [f"{len(kept) - held_out} photos to learn from, {held_out} held out, "
             f"{len(dataset.photos) - len(kept)} left out. Folder: {dataset.folder}"]  # fmt: skip
    lines += [f"  left out: {photo.source}: {photo.reason}" for photo in dataset.photos if photo.verdict == "rejected"]
    lines += [f"  note: {photo.source}: {'; '.join(photo.warnings)}" for photo in kept if photo.warnings]
    return lines
