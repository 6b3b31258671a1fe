"""Folders as the program leaves them, made at once: photos to prepare, and a person with very many headshots."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.generation.plan import PlannedPicture
from headshot_ui.generation.records import Picture, picture_metadata, write_ranking
from headshot_ui.likeness import Likeness
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import PNG_KEY, Store

if TYPE_CHECKING:
    from PIL import Image

PER_SET = 16
LARGE_PX, SMALL_PX = 1024, 32
PHOTO_PX = 640
FIRST_DAY = 1_700_000_000


def make_photos(folder: Path, source: Path, count: int) -> None:
    """``count`` photos that are no copies of each other: faces at other sizes and places, on other grounds.

    ``source`` is a folder of JPEGs with one face each, which whatever looks at the photos has to find.
    """
    import numpy as np
    from PIL import Image

    faces = [Image.open(path).convert("RGB") for path in sorted(source.glob("*.jpg"))]
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number in range(count):
        photo = _textured(PHOTO_PX, number + 1)
        side = int(draw.integers(PHOTO_PX * 3 // 4, PHOTO_PX))
        at = tuple(int(draw.integers(0, PHOTO_PX - side + 1)) for _ in range(2))
        photo.paste(faces[number % len(faces)].resize((side, side)), (at[0], at[1]))
        photo.save(folder / f"{number:05d}.jpg", quality=92)


def make_library(store: Store, person: str, base: str, pictures: int) -> None:
    """Sets of 16 headshots each, with rankings and metadata as ``generate`` writes them.

    The newest set, of which small copies are made, has pictures of 1024 px; the others are small to spare the disk.
    """
    full, small = _png(LARGE_PX, person, base), _png(SMALL_PX, person, base)
    sets = -(-pictures // PER_SET)
    for number in range(sets):
        folder = store.headshots_dir(person) / f"2024-01-01_{number:06d}"
        folder.mkdir(parents=True)
        count = min(PER_SET, pictures - number * PER_SET)
        made = []
        for index in range(count):
            path = folder / f"{index + 1:03d}_studio_seed{index}.png"
            path.write_bytes(full if number == sets - 1 else small)
            likeness = Likeness(0.5, 90.0 - index, True)
            made.append(Picture(path, "studio", "Studio", "a portrait", index, likeness, index + 1))
        write_ranking(folder, _request(person, base), made, None, 1.0, "done")
        os.utime(folder / "headshots.json", (FIRST_DAY + number,) * 2)


def _request(person: str, base: str) -> GenerateSpec:
    return GenerateSpec(person=person, base=base, presets=("studio",), count=PER_SET)


def _png(side_px: int, person: str, base: str) -> bytes:
    from PIL.PngImagePlugin import PngInfo

    picture = PlannedPicture(0, "studio", "Studio", "a portrait", "", 0, side_px, side_px)
    text = PngInfo()
    text.add_itxt(PNG_KEY, json.dumps(picture_metadata(_request(person, base), picture, None)))
    buffer = io.BytesIO()
    _textured(side_px, 0).save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def _textured(side_px: int, seed: int) -> Image.Image:
    """Soft shapes with a little grain: a PNG of it is about as large as one of a drawn photograph."""
    import numpy as np
    from PIL import Image

    draw = np.random.default_rng(seed)
    shapes = Image.fromarray(draw.integers(0, 256, (8, 8, 3), np.uint8)).resize((side_px, side_px))
    grain = draw.normal(0, 3, (side_px, side_px, 1))
    return Image.fromarray((np.asarray(shapes) + grain).clip(0, 255).astype(np.uint8))
