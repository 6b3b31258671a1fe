"""One picture that shows a whole result: photos given, pictures before training, ranked headshots."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

WIDTH = 1600  # pixels
MARGIN = 64
GAP = 20
_PAPER, _INK, _SOFT, _LINE = (250, 249, 246), (34, 38, 46), (116, 122, 132), (225, 223, 217)
_GOOD, _BAD = (35, 110, 84), (160, 74, 54)
_CORNER = 14
_SUPERSAMPLE = 3  # rounded corners are drawn larger and scaled down, since Pillow does not smooth them


@dataclass(frozen=True)
class Tile:
    """One picture on the sheet."""

    image: Path | Image.Image
    caption: str = ""  # e.g. the preset's title
    percent: float | None = None  # likeness, 0 to 100
    rank: int | None = None  # 1 is the best
    reason: str = ""  # why the picture was rejected; shown instead of the percentage


@dataclass(frozen=True)
class Section:
    """A heading and its pictures."""

    title: str
    tiles: Sequence[Tile]
    columns: int
    note: str = ""  # small words to the right of the heading


def contact_sheet(
    title: str,
    training: Sequence[Tile],
    before: Sequence[Tile],
    best: Sequence[Tile],
    subtitle: str = "",
    footer: str = "AI-generated pictures, made with headshot_ui",
) -> Image.Image:
    """RGB picture ``WIDTH`` pixels wide: the person's photos, a row from before training, the best headshots.

    An empty sequence leaves its section out. Raises OSError when a file cannot be read.
    """
    sections = [
        Section("Photos given", training, min(12, max(6, len(training))), _count(training, "photo")),
        Section("Before training", before, 8, "the bare base model with the same prompts"),
        Section("Headshots", best, 4, "ranked by likeness; 100 % = as alike as the photos are to each other"),
    ]
    return compose(title, subtitle, [section for section in sections if section.tiles], footer)


def compose(title: str, subtitle: str, sections: Sequence[Section], footer: str = "") -> Image.Image:
    """RGB picture of any sections, laid out from top to bottom."""
    from PIL import Image, ImageDraw

    height = _header_height(subtitle) + sum(map(_section_height, sections)) + (56 if footer else 0) + MARGIN // 2
    sheet = Image.new("RGB", (WIDTH, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), _fit(title, 52, WIDTH - 2 * MARGIN), _INK, _font(52), anchor="lt")
    if subtitle:
        draw.text((MARGIN, MARGIN + 68), _fit(subtitle, 24, WIDTH - 2 * MARGIN), _SOFT, _font(24), anchor="lt")
    top = _header_height(subtitle)
    for section in sections:
        _draw_section(sheet, draw, section, top)
        top += _section_height(section)
    if footer:
        draw.text((MARGIN, height - MARGIN), _fit(footer, 20, WIDTH - 2 * MARGIN), _SOFT, _font(20), anchor="lt")
    return sheet


def _header_height(subtitle: str) -> int:
    return MARGIN + (68 + 24 if subtitle else 52) + 34


def _tile_px(section: Section) -> int:
    return (WIDTH - 2 * MARGIN - (section.columns - 1) * GAP) // section.columns


def _row_height(section: Section) -> int:
    return _tile_px(section) + _words_height(section) + GAP


def _words_height(section: Section) -> int:
    """Room below each picture: one line of likeness, as many lines as the longest caption needs."""
    size = _caption_size(section)
    lines = max((len(_lines(tile.caption, size, _tile_px(section))) for tile in section.tiles), default=0)
    lines += any(tile.percent is not None or tile.reason for tile in section.tiles)
    return 12 + lines * (size + 6) if lines else 0


def _section_height(section: Section) -> int:
    rows = -(-len(section.tiles) // section.columns)
    return 78 + rows * _row_height(section) + 22


def _caption_size(section: Section) -> int:
    """Font size in pixels that lets a preset's title fit under its picture."""
    return 21 if _tile_px(section) >= 240 else 16


def _draw_section(sheet: Image.Image, draw: ImageDraw.ImageDraw, section: Section, top: int) -> None:
    draw.line([(MARGIN, top), (WIDTH - MARGIN, top)], _LINE, 2)
    heading = top + 26
    draw.text((MARGIN, heading), section.title, _INK, _font(28), anchor="lt")
    if section.note:
        left = MARGIN + draw.textlength(section.title, _font(28)) + GAP
        words = _fit(section.note, 20, WIDTH - MARGIN - left)
        draw.text((WIDTH - MARGIN, heading + 6), words, _SOFT, _font(20), anchor="rt")
    size = _tile_px(section)
    for index, tile in enumerate(section.tiles):
        row, column = divmod(index, section.columns)
        corner = (MARGIN + column * (size + GAP), top + 78 + row * _row_height(section))
        _draw_tile(sheet, draw, tile, corner, size, _caption_size(section))


def _draw_tile(
    sheet: Image.Image, draw: ImageDraw.ImageDraw, tile: Tile, corner: tuple[int, int], size: int, font_px: int
) -> None:
    from PIL import ImageOps

    left, top = corner
    # A little above the middle, where the face of a portrait is, should a picture not be square.
    picture = ImageOps.fit(_open(tile.image), (size, size), centering=(0.5, 0.35))
    sheet.paste(picture, corner, _rounded(size, size, _CORNER))
    if tile.rank is not None:
        _draw_rank(sheet, draw, tile.rank, left + 12, top + 12)
    baseline = top + size + 12
    if tile.reason:
        draw.text((left, baseline), _fit(tile.reason, font_px, size), _BAD, _font(font_px), anchor="lt")
        baseline += font_px + 6
    elif tile.percent is not None:
        colour = _GOOD if tile.percent >= 50 else _SOFT
        draw.text((left, baseline), f"{tile.percent:.0f} % likeness", colour, _font(font_px), anchor="lt")
        baseline += font_px + 6
    for line in _lines(tile.caption, font_px, size):
        draw.text((left, baseline), line, _INK, _font(font_px), anchor="lt")
        baseline += font_px + 6


def _draw_rank(sheet: Image.Image, draw: ImageDraw.ImageDraw, rank: int, left: int, top: int) -> None:
    height = 40
    width = max(height, int(draw.textlength(str(rank), _font(23))) + 24)
    sheet.paste(_PAPER, (left, top, left + width, top + height), _rounded(width, height, height // 2))
    draw.text((left + width / 2, top + height / 2), str(rank), _INK, _font(23), anchor="mm")


def _open(image: Path | Image.Image) -> Image.Image:
    from PIL import Image

    if isinstance(image, Path):
        with Image.open(image) as opened:
            return opened.convert("RGB")
    return image.convert("RGB")


def _rounded(width: int, height: int, radius: int) -> Image.Image:
    """Mask "L" of a rectangle with smooth round corners."""
    from PIL import Image, ImageDraw

    scale = _SUPERSAMPLE
    mask = Image.new("L", (width * scale, height * scale), 0)
    box = (0, 0, width * scale - 1, height * scale - 1)
    ImageDraw.Draw(mask).rounded_rectangle(box, radius * scale, fill=255)
    return mask.resize((width, height), Image.Resampling.LANCZOS)


def _fit(text: str, font_px: int, width: float) -> str:
    """``text`` cut with … so that it is at most ``width`` pixels wide."""
    font = _font(font_px)
    if font.getlength(text) <= width:
        return text
    fitting = bisect(range(1, len(text)), width, key=lambda length: font.getlength(text[:length] + "…"))
    return text[:fitting].rstrip() + "…"


def _lines(text: str, font_px: int, width: int) -> list[str]:
    """``text`` in at most two lines of at most ``width`` pixels, broken at spaces."""
    font = _font(font_px)
    words = text.split()
    first = len(words)
    while first > 1 and font.getlength(" ".join(words[:first])) > width:
        first -= 1
    lines = [" ".join(words[:first]), " ".join(words[first:])]
    return [_fit(line, font_px, width) for line in lines if line]


def _count(tiles: Sequence[Tile], noun: str) -> str:
    return f"{len(tiles)} {noun}{'' if len(tiles) == 1 else 's'}"


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font, so that the sheet looks the same on every system."""
    from PIL import ImageFont

    return ImageFont.load_default(size_px)
