"""The contact sheet of a whole job, for the page and the demo command alike."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.errors import StoreError
from headshot_ui.generation.contact_sheet import Tile, contact_sheet
from headshot_ui.generation.records import RANKING, read_ranking
from headshot_ui.store import read_png_metadata, save_png

if TYPE_CHECKING:
    from headshot_ui.engine import HeadshotsResult
    from headshot_ui.generation.records import Picture

FILE_NAME = "contact-sheet.png"
PICTURES_BEFORE = 8
BEST = 12
SHOWN = "shown"  # names of the best pictures, in what is written into the PNG


def pictures_before(made: HeadshotsResult) -> tuple[Picture, ...]:
    """What the bare base model drew for the same looks; the engine keeps it in the run's folder."""
    rankings = sorted((Path(made.trained.run_dir) / "before").glob(f"*/{RANKING}"))
    return tuple(picture for ranking in rankings for picture in read_ranking(ranking.parent))


def save_contact_sheet(made: HeadshotsResult, title: str, subtitle: str = "") -> Path:
    """Photos given, pictures before training, the best ones after it: ``contact-sheet.png`` beside the headshots.

    Raises StoreError when it cannot be written.
    """
    kept = [photo for photo in made.dataset.photos if photo.crop]
    sheet = contact_sheet(
        title,
        training=[Tile(made.dataset.folder / photo.crop) for photo in kept],
        before=[_tile(picture) for picture in pictures_before(made)[:PICTURES_BEFORE]],
        best=[_tile(picture, rank) for rank, picture in enumerate(made.generated.pictures[:BEST], start=1)],
        subtitle=subtitle,
    )
    path = made.generated.folder / FILE_NAME
    save_png(path, sheet, {"person": made.dataset.person, SHOWN: _names(made.generated.pictures)})
    return path


def save_set_sheet(path: Path, pictures: Sequence[Picture], photos: Sequence[Path], title: str) -> None:
    """The same of a set that was drawn alone: photos given and its best pictures. Raises StoreError and OSError."""
    best = [_tile(picture, rank) for rank, picture in enumerate(pictures[:BEST], start=1)]
    sheet = contact_sheet(title, training=[Tile(photo) for photo in photos], before=(), best=best)
    save_png(path, sheet, {SHOWN: _names(pictures)})


def sheet_shows(path: Path, pictures: Sequence[str]) -> bool:
    """Whether the sheet is there and still shows the best of ``pictures`` (file names, best first)."""
    try:
        return path.is_file() and read_png_metadata(path).get(SHOWN) == list(pictures[:BEST])
    except StoreError:
        return False


def _names(pictures: Sequence[Picture]) -> list[str]:
    return [picture.path.name for picture in pictures[:BEST]]


def _tile(picture: Picture, rank: int | None = None) -> Tile:
    likeness = picture.likeness
    if likeness is None:
        return Tile(picture.path, picture.title, rank=rank)
    return Tile(picture.path, picture.title, likeness.percent, rank, likeness.reason)
