"""demo: the main job from end to end on the models and the drawn person that ship with the program."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.commands.base_option import DEMO_BASE
from headshot_ui.commands.job_runner import Context, run_alone
from headshot_ui.commands.output import print_json, print_table
from headshot_ui.commands.progress import format_seconds
from headshot_ui.errors import ModelError
from headshot_ui.specs import GenerateSpec, HeadshotsSpec, PrepareSpec, TrainSpec
from headshot_ui.store import Store, new_folder, readable_bytes

if TYPE_CHECKING:
    from headshot_ui.engine import HeadshotsResult
    from headshot_ui.generation.records import Picture
    from headshot_ui.meter import StageUse
    from headshot_ui.settings import Settings

NAME = "demo"
SUMMARY = "see the whole job run on drawn demo people: photos, training, ranked headshots"
EXAMPLES = """examples:
  demo
  demo --json
  demo --plan                   how long it takes and what it needs
  demo --person robin-2 --seed 1"""

PERSON = "demo-robin"
PHOTOS = Path("demo/people/robin")  # under the models folder
#: Looks that are drawn, and pictures of each: enough to measure likeness by, few enough for two CPU cores. How many
#: are drawn before training is ``amounts.PICTURES_BEFORE``; refining and its share of the steps are the base's own.
PRESETS = 8
PICTURES_PER_PRESET = 2
#: Of the best pictures, so many are restored and exported.
RESTORED = 4
EXPORTED = 1
NOTE = "The demo models draw cartoons, not photographs."


@dataclass(frozen=True)
class MeasuredLikeness:
    """Share of pictures whose nearest identity, among this person and all strangers, is this person."""

    first_match_before: float
    first_match_after: float
    identities: int
    pictures: int  # drawn after training


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", default=DEMO_BASE, metavar="TEXT", help=f"base model (default: {DEMO_BASE})")
    parser.add_argument("--person", default=PERSON, metavar="TEXT", help=f"folder name to use (default: {PERSON})")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="same seed, same training and pictures")


def run(args: argparse.Namespace, context: Context) -> int:
    from headshot_ui.meter import StageMeter
    from headshot_ui.sheet import pictures_before, save_contact_sheet

    started = time.monotonic()
    store = Store(context.settings)
    photos = demo_photos(context.settings)
    store.person_dir(args.person)  # refuses a name that cannot be a folder
    person = args.person
    if not context.plan_only:
        person = new_folder(store.people_dir, args.person).name  # an earlier demo stays as it is
    spec = demo_request(person, photos, args.base, args.seed, context.settings)
    print(NOTE, file=context.progress_stream, flush=True)
    made: HeadshotsResult = run_alone(context, spec)
    before = pictures_before(made)
    meter = StageMeter()
    with meter.stage("measure"):
        likeness = measure(context.settings, args.base, made, before)
        sheet = save_contact_sheet(made, "Headshots of a drawn person", NOTE)
    report = json_report(likeness, [*made.stages, *meter.stages], made, sheet, time.monotonic() - started)
    if context.as_json:
        print_json(report)
    else:
        print_report(report, len(before))
    return 0


def demo_request(person: str, photos: Path, base: str, seed: int, settings: Settings) -> HeadshotsSpec:
    """Everything at its default but the looks, of which the demo draws few. Raises SpecError for a bad name."""
    from headshot_ui.generation.presets import load_presets

    looks = tuple(load_presets(settings))[:PRESETS]
    return HeadshotsSpec(
        PrepareSpec(person, (str(photos),), base),
        TrainSpec(person, base, seed=seed),
        GenerateSpec(person, base, presets=looks, count=PICTURES_PER_PRESET, seed=seed, lora="latest"),
        restore_best=RESTORED,
        export_best=EXPORTED,
    )


def demo_photos(settings: Settings) -> Path:
    """The folder with the bundled portraits. Raises ModelError when they are not there."""
    folder = settings.models_dir / PHOTOS
    if not any(folder.glob("*.jpg")):
        raise ModelError(f"The demo photos are missing from {folder}: get a complete copy of the program.")
    return folder


def measure(settings: Settings, base: str, made: HeadshotsResult, before: tuple[Picture, ...]) -> MeasuredLikeness:
    """First matches among this person and the gallery of strangers, before and after training."""
    from headshot_ui import families
    from headshot_ui.dataset.detector import load_detector
    from headshot_ui.likeness import load_judge

    info = families.find_base(base, settings)
    judge = load_judge(settings, info, load_detector(settings, info), made.dataset)
    after = made.generated.pictures

    def share(pictures: tuple[Picture, ...]) -> float:
        return judge.first_matches(list(_opened(pictures))) / max(1, len(pictures))

    return MeasuredLikeness(
        first_match_before=share(before),
        first_match_after=share(after),
        identities=1 + (0 if judge.gallery is None else len(judge.gallery)),
        pictures=len(after),
    )


def _opened(pictures: tuple[Picture, ...]) -> Iterator[Any]:
    from PIL import Image

    for picture in pictures:
        with Image.open(picture.path) as image:
            yield image.convert("RGB")


def json_report(
    likeness: MeasuredLikeness, stages: list[StageUse], made: HeadshotsResult, sheet: Path, seconds: float
) -> dict[str, Any]:
    """The last line of ``demo --json``; ``restored`` and ``exports`` are empty only where that was not possible."""
    return {
        "likeness": likeness,
        "stages": stages,
        "files": {
            "lora": made.trained.lora_path,
            "headshots": [picture.path for picture in made.generated.pictures],
            "restored": [] if made.restored is None else [picture.path for picture in made.restored.pictures],
            "exports": [] if made.exported is None else [file.path for file in made.exported.files],
            "contact_sheet": sheet,
        },
        "seconds": seconds,
    }


def print_report(report: dict[str, Any], pictures_before: int) -> None:
    """The table at the end of the demo."""
    likeness: MeasuredLikeness = report["likeness"]
    stages: list[StageUse] = report["stages"]
    print()
    rows = [("likeness", "before training", "after training")]
    rows.append((f"taken for this person among {likeness.identities}", f"{likeness.first_match_before:.0%}",
                 f"{likeness.first_match_after:.0%}"))  # fmt: skip
    rows.append(("pictures drawn", str(pictures_before), str(likeness.pictures)))
    print_table(rows)
    print()
    has_gpu = any(stage.peak_vram_bytes for stage in stages)
    table = [("stage", "time", "peak memory", *(["peak GPU memory"] if has_gpu else []))]
    for stage in stages:
        gpu = [readable_bytes(stage.peak_vram_bytes)] if has_gpu else []
        table.append((stage.name, format_seconds(stage.seconds), readable_bytes(stage.peak_ram_bytes), *gpu))
    table.append(("all", format_seconds(report["seconds"]), readable_bytes(max(s.peak_ram_bytes for s in stages)),
                  *([""] if has_gpu else [])))  # fmt: skip
    print_table(table)
    print()
    print(f"LoRA           {report['files']['lora']}")
    print(f"headshots      {Path(report['files']['headshots'][0]).parent}")
    for made in ("restored", "exports"):
        if report["files"][made]:
            print(f"{made:<13}  {Path(report['files'][made][0]).parent}")
    print(f"contact sheet  {report['files']['contact_sheet']}")
