"""The contact sheet of a whole job, for the page and the demo command alike."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.generation.contact_sheet import Tile, contact_sheet
from headshot_ui.generation.records import RANKING, read_ranking
from headshot_ui.store import save_png

if TYPE_CHECKING:
    from headshot_ui.engine import HeadshotsResult
    from headshot_ui.generation.records import Picture

FILE_NAME = "contact-sheet.png"
PICTURES_BEFORE = 8
BEST = 12


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
    save_png(path, sheet, {"person": made.dataset.person})
    return path


def _tile(picture: Picture, rank: int | None = None) -> Tile:
    likeness = picture.likeness
    if likeness is None:
        return Tile(picture.path, picture.title, rank=rank)
    return Tile(picture.path, picture.title, likeness.percent, rank, likeness.reason)
