"""Draw the sheet of docs/PHOTOS.md: photos of a demo person, spoilt in the usual ways, with what the program says.

    python -m tools.photo_examples

The words below the pictures are those that preparing really gave, so the sheet cannot say what the program does not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

    from headshot_ui.dataset.types import Dataset

ROOT = Path(__file__).parents[1]
PEOPLE = ROOT / "models" / "demo" / "people"
SHEET = ROOT / "docs" / "images" / "photo-advice.webp"
BASE = "demo-sdxl"
COLUMNS, TILE_PX, GAP, LINE_PX, LINES = 4, 300, 24, 24, 4
PAPER, INK, GOOD, BAD, DOUBTFUL = "#ffffff", "#22252b", "#18794e", "#b42318", "#8a5a00"


def spoilt() -> Iterator[tuple[str, Image.Image]]:
    """File name and picture of every example, best first."""
    from PIL import Image, ImageEnhance, ImageFilter

    def photo(person: str, number: int) -> Image.Image:
        return Image.open(PEOPLE / person / f"{person}-{number:02d}.jpg").convert("RGB")

    first = photo("robin", 1)
    wide = Image.new("RGB", (first.width * 2, first.height), "#9aa7b0")
    wide.paste(first, (0, 0))
    wide.paste(photo("kim", 3).resize(first.size), (first.width, 0))
    yield "01 sharp, from near", first
    yield "02 another day and place", photo("robin", 4)
    yield "03 another light", photo("robin", 6)
    yield "04 a little blurred", photo("robin", 3).filter(ImageFilter.GaussianBlur(2.3))
    yield "05 out of focus", photo("robin", 5).filter(ImageFilter.GaussianBlur(6))
    yield "06 at night", ImageEnhance.Brightness(photo("robin", 7)).enhance(0.12)
    yield "07 in the flash", ImageEnhance.Brightness(photo("robin", 8)).enhance(3.2)
    small = photo("robin", 9)
    yield "08 from a messenger", small.resize((small.width // 7, small.height // 7), Image.Resampling.LANCZOS)
    yield "09 with a friend", wide
    yield "10 of somebody else", photo("alex", 2)
    yield "11 the first one again", first.resize((300, 297))


def prepared(folder: Path) -> Dataset:
    """What the program makes of the examples, with further good photos of the person beside them."""
    from headshot_ui import families
    from headshot_ui.dataset.detector import load_detector
    from headshot_ui.dataset.prepare import prepare
    from headshot_ui.likeness import load_recogniser
    from headshot_ui.settings import Settings
    from headshot_ui.specs import PrepareSpec
    from headshot_ui.store import Store

    for name, image in spoilt():
        image.save(folder / f"{name}.png")
    more = [PEOPLE / "robin" / f"robin-{number:02d}.jpg" for number in (2, 10)]
    settings = replace(Settings.from_environment(outputs_dir=folder / "outputs"), wanted_device="cpu")
    base = families.find_base(BASE, settings)
    photos = (*map(str, sorted(folder.glob("*.png"))), *map(str, more))
    spec = PrepareSpec("robin", photos, BASE, held_out=0)
    tools = load_detector(settings, base), lambda *_, **__: None, load_recogniser(settings, base)
    return prepare(spec, Store(settings), base, *tools)


def draw_sheet(folder: Path, dataset: Dataset) -> Image.Image:
    """Every example with its name and the program's words."""
    from PIL import Image, ImageDraw, ImageOps

    said = {photo.source: photo for photo in dataset.photos}
    names = [name for name, _ in spoilt()]
    rows = -(-len(names) // COLUMNS)
    height = TILE_PX + LINES * LINE_PX + 2 * GAP
    sheet = Image.new("RGB", (COLUMNS * (TILE_PX + GAP) + GAP, rows * height + GAP), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, name in enumerate(names):
        left, top = GAP + index % COLUMNS * (TILE_PX + GAP), GAP + index // COLUMNS * height
        with Image.open(folder / f"{name}.png") as image:
            sheet.paste(ImageOps.pad(image, (TILE_PX, TILE_PX), color="#eceef1"), (left, top))
        photo = said[f"{name}.png"]
        colour = BAD if photo.reason else DOUBTFUL if photo.warnings else GOOD
        words = photo.reason or "; ".join(photo.warnings) or "used"
        lines = [(name[3:], INK), *((line, colour) for line in _wrapped(draw, words))]
        for number, (line, ink) in enumerate(lines[:LINES]):
            draw.text((left, top + TILE_PX + 8 + number * LINE_PX), line, ink, _font())
    return sheet


def _wrapped(draw: ImageDraw.ImageDraw, words: str) -> Iterator[str]:
    line = ""
    for word in words.split():
        if line and draw.textlength(f"{line} {word}", _font()) > TILE_PX:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line


def _font() -> object:
    from PIL import ImageFont

    return ImageFont.load_default(19)


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        dataset = prepared(folder)
        for photo in dataset.photos:
            print(f"{photo.source:<32} {photo.verdict:<9} {photo.reason or '; '.join(photo.warnings)}")
        draw_sheet(folder, dataset).save(SHEET, quality=82, method=6)
    print(f"{SHEET}: {SHEET.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
