"""The contact sheet shows every picture given to it, unspoilt, and its words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from headshot_ui.generation.contact_sheet import MARGIN, WIDTH, Tile, contact_sheet


def flat(colour: tuple[int, int, int], size: tuple[int, int] = (64, 64)) -> Image.Image:
    return Image.new("RGB", size, colour)


def share(sheet: Image.Image, colour: tuple[int, int, int]) -> float:
    """Pixels of exactly this colour."""
    return float((np.asarray(sheet) == colour).all(-1).sum())


def test_every_picture_is_on_the_sheet_at_the_same_size():
    colours = [(10 * i, 255 - 10 * i, 7) for i in range(1, 9)]
    sheet = contact_sheet("Robin", [], [], [Tile(flat(colour), "a look", 50.0, 1) for colour in colours])
    areas = [share(sheet, colour) for colour in colours]
    assert sheet.width == WIDTH
    assert min(areas) > 0.95 * ((WIDTH - 2 * MARGIN - 60) / 4) ** 2
    assert max(areas) < 1.02 * min(areas)


def test_margins_stay_free():
    tiles = [Tile(flat((200, 0, 0)), "a very long caption " * 5, 99.0, 100 + i, "") for i in range(9)]
    long = ("A very long title " * 9, tiles, tiles, tiles, "and a subtitle " * 30, "foot " * 90)
    sheet = np.asarray(contact_sheet(*long))
    paper = sheet[0, 0]
    assert (sheet[:, : MARGIN - 2] == paper).all()
    assert (sheet[:, -MARGIN + 2 :] == paper).all()
    assert (sheet[:30] == paper).all()
    assert (sheet[-30:] == paper).all()


def test_sections_without_pictures_are_left_out():
    tile = Tile(flat((1, 2, 3)))
    rows = [([], [], [tile]), ([tile], [], [tile]), ([tile], [tile], [tile])]
    heights = [contact_sheet("Robin", *row).height for row in rows]
    assert heights == sorted(set(heights))


def test_words_are_drawn():
    def ink(tile: Tile) -> float:
        sheet = contact_sheet("Robin", [], [], [Tile(flat((1, 2, 3)), "x", 1.0, 1), tile])
        return float((np.asarray(sheet.convert("L"), dtype=float) < 160).sum())

    bare = ink(Tile(flat((255, 255, 255))))
    assert ink(Tile(flat((255, 255, 255)), caption="Navy suit")) > bare + 50
    assert ink(Tile(flat((255, 255, 255)), percent=88.0)) > bare + 50
    assert ink(Tile(flat((255, 255, 255)), rank=3)) > bare + 10
    assert ink(Tile(flat((255, 255, 255)), reason="no face was found")) > bare + 50


def test_files_and_portrait_pictures_keep_the_upper_part(tmp_path: Path):
    tall = flat((0, 0, 250), (100, 200))
    tall.paste((250, 0, 0), (0, 0, 100, 100))
    tall.save(tmp_path / "tall.png")
    sheet = contact_sheet("Robin", [], [], [Tile(tmp_path / "tall.png")])
    assert share(sheet, (250, 0, 0)) > 1.5 * share(sheet, (0, 0, 250)) > 0
