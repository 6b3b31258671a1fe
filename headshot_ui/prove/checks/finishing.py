"""What comes after drawing: refiner and face restoration."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.engine_runners import run_generate, run_restore
from headshot_ui.errors import ModelError
from headshot_ui.prove.bench import difference, flaw, pixels
from headshot_ui.prove.checks.drawing import LEAST_CHANGE, REPORT_IT
from headshot_ui.prove.findings import Finding, fails, holds, not_possible
from headshot_ui.specs import RestoreSpec
from headshot_ui.store import save_png

if TYPE_CHECKING:
    import numpy as np

    from headshot_ui.prove.bench import Bench
    from headshot_ui.restoration.protocol import Restorer

#: Nobody with photos: nobody judges these pictures, so that none is thrown away for being less alike.
NOBODY = "prove-nobody"
PORTRAIT = Path(__file__).parents[1] / "portrait.jpg"
#: The square that is redrawn reaches beyond the face by at most half its size (measured with the demo people).
FAR = 0.7
DRAWN_FACES = Path("demo/held_out")  # under the models folder


def check_refiner(bench: Bench, way: str) -> Finding:
    """The refiner changes the pictures, and they stay pictures."""
    from headshot_ui import families

    if not families.abilities(bench.info).takes_refiner:
        return not_possible("base models of this family have no refiner")
    try:
        refiner = families.find_refiner(None, bench.info, bench.shop.settings)
    except ModelError as error:
        return not_possible(str(error))
    if bench.learned is None:
        return not_possible("there are no pictures without it to compare with")
    spec = replace(bench.plan.generate(str(bench.lora), refine=way), person=NOBODY)
    refined = run_generate(bench.shop, spec, bench.job)
    flaws = [found for picture in refined.pictures if (found := flaw(pixels(picture.path)))]
    changed = difference(bench.learned, refined)
    told = f"{refiner.title}: pictures differ by {changed:.2f} levels from those without"
    if flaws:
        return fails(f"{told}; {len(flaws)} of {len(refined.pictures)} are {flaws[0]}", REPORT_IT)
    if changed < LEAST_CHANGE or not all(picture.refined for picture in refined.pictures):
        return fails(f"{told}: it did nothing", REPORT_IT)
    return holds(told)


check_ensemble = partial(check_refiner, way="ensemble")
check_img2img = partial(check_refiner, way="img2img")


def check_restoration(bench: Bench) -> Finding:
    """A face is found and redrawn, and everything around it stays as it was, bit for bit."""
    restorer = _restorer(bench)
    if isinstance(restorer, str):
        return not_possible(restorer)
    real, picture = _face(bench, restorer)
    if picture is None:
        return not_possible("there is no picture of a face that this installation could find: get the program again")
    made = run_restore(bench.shop, RestoreSpec(NOBODY, (str(picture),), restorer.info.id, 0.5), bench.job)
    (restored,) = made.pictures
    what = f"{restorer.info.title} on a {'photographed' if real else 'drawn'} face"
    if not restored.repaired:
        return fails(f"{what}: {restored.skipped or 'no face was repaired'}", REPORT_IT)
    before, after = pixels(picture), pixels(restored.path)
    if before.shape != after.shape or (found := flaw(after)):
        return fails(f"{what}: the picture is {found if before.shape == after.shape else 'of another size'}", REPORT_IT)
    inside, outside = _changes(before, after, restored.faces[0].box)
    told = f"{what}: {inside:.1f} levels changed within it, {outside:.2g} far from it"
    told = " ".join([told, *restored.notes])
    if inside < LEAST_CHANGE or outside:
        return fails(told, REPORT_IT)
    return holds(told, seconds_per_restored_face=made.seconds / restored.repaired)


def _restorer(bench: Bench) -> Restorer | str:
    """For drawn people the demo's, else the first for photographs that can be used; why there is none."""
    settings, parts = bench.shop.settings, bench.shop.parts
    usable = [restorer for restorer in parts.all_restorers().values() if not restorer.missing(settings)]
    usable.sort(key=lambda restorer: restorer.info.demo != bench.info.demo)
    if usable:
        return usable[0]
    return " ".join(restorer.missing(settings) for restorer in parts.all_restorers().values())


def _face(bench: Bench, restorer: Restorer) -> tuple[bool, Path | None]:
    """(whether it is photographed, the picture): photographed where restorer and detector are for photographs."""
    from headshot_ui.dataset.detector import find_weights

    settings = bench.shop.settings
    photographs, _ = find_weights(settings)
    if photographs is not None and not restorer.info.demo:
        return True, PORTRAIT
    drawn = sorted((settings.models_dir / DRAWN_FACES).rglob("*.jpg"))
    return False, _with_border(drawn[0], settings.outputs_dir / "face.png") if drawn else None


def _with_border(source: Path, target: Path) -> Path:
    """The picture amid a grey border half its size, so that there is something a repair must leave alone."""
    from PIL import Image

    with Image.open(source) as image:
        picture = image.convert("RGB")
    canvas = Image.new("RGB", (2 * picture.width, 2 * picture.height), (128, 128, 128))
    canvas.paste(picture, (picture.width // 2, picture.height // 2))
    save_png(target, canvas, {})
    return target


def _changes(before: np.ndarray, after: np.ndarray, box: tuple[float, float, float, float]) -> tuple[float, float]:
    """(mean change within the box, largest change farther from it than ``FAR`` of its size), in levels of 255."""
    import numpy as np

    change = np.abs(before.astype(float) - after).max(axis=2)
    height, width = change.shape
    left, top, right, bottom = (round(side) for side in box)
    far = np.ones_like(change, dtype=bool)
    wide, high = round(FAR * (right - left)), round(FAR * (bottom - top))
    far[max(0, top - high) : bottom + high, max(0, left - wide) : right + wide] = False
    inside = change[max(0, top) : min(height, bottom), max(0, left) : min(width, right)]
    return float(inside.mean()), float(change[far].max()) if far.any() else 0.0
