"""From the fields of the Restore tab to a request; what can be chosen there and what is missing. No gradio."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.errors import HeadshotError, SpecError
from headshot_ui.restoration import all_restorers, licence, parser, upscale
from headshot_ui.specs import RestoreSpec
from headshot_ui.stars import starred
from headshot_ui.ui.export_view import faces_in, read_picture
from headshot_ui.ui.gallery import PER_PAGE, address, derived, small_addresses
from headshot_ui.ui.picture_sets import find_sets, picture_id
from headshot_ui.ui.tiles import Tile, chosen_ids

if TYPE_CHECKING:
    from headshot_ui.dataset.types import Face
    from headshot_ui.generation.records import Picture
    from headshot_ui.settings import Settings
    from headshot_ui.store import Store

UPSCALE_CHOICES = [("As it is", 1), ("×2", 2), ("×4", 4)]
PICK_PX, FACE_PX = 192, 192
FACE_MARGIN = 0.35  # of the face's box, around it in a crop to recognise it by
STARRED, NEWEST, SENT = "Starred", "Newest", "Chosen in Generate"


@dataclass(frozen=True)
class RestorerChoice:
    """One restorer as the page tells of it."""

    id: str
    title: str
    note: str
    missing: str  # one sentence; "" when it can be used
    terms: str  # what has to be accepted first; "" when nothing has to


# --- what can be chosen -------------------------------------------------------------------------------------
def restorer_choices(settings: Settings) -> tuple[RestorerChoice, ...]:
    """Every restorer, installed or not."""
    choices = []
    for name, restorer in all_restorers().items():
        info = restorer.info
        asked = not info.commercial and not licence.accepted(settings, name)
        note = f"{info.note} Licence: {info.licence}."
        choices.append(
            RestorerChoice(name, info.title, note, restorer.missing(settings), licence.terms(name) if asked else "")
        )
    return tuple(choices)


def first_usable(choices: Sequence[RestorerChoice]) -> RestorerChoice | None:
    """The one that is chosen at first: the first that can be used, else the first."""
    return next((choice for choice in choices if not choice.missing), choices[0] if choices else None)


def outline_missing(settings: Settings) -> str:
    """Why faces cannot be blended along their outline; "" when they can."""
    return parser.missing(settings)


def upscale_missing(factor: int, settings: Settings) -> str:
    """What enlarging does without, in one sentence; "" when nothing is missing."""
    return upscale.missing(factor, settings) if factor > 1 else ""


# --- pictures to choose from ----------------------------------------------------------------------------------
def own_pictures(store: Store, person: str) -> dict[str, Picture]:
    """All headshots of a person by what the browser calls them, newest set first."""
    return {picture_id(picture.path): picture for each in find_sets(store, person) for picture in each.pictures}


def pick_tiles(store: Store, person: str, shown_dir: Path, sent: Sequence[Path] = ()) -> list[Tile]:
    """Tiles of headshots: those sent here, starred ones, then the newest, one page of them in all."""
    own = own_pictures(store, person)
    stars = set(starred(store, person)) if person else set()
    groups = {key: _group(picture.path, stars, sent) for key, picture in own.items()}
    order = sorted(own, key=lambda key: (SENT, STARRED, NEWEST).index(groups[key]))[:PER_PAGE]
    pictures = small_addresses([own[key].path for key in order], shown_dir, PICK_PX)
    return [
        {"id": key, "title": own[key].title, "group": groups[key], "letter": own[key].title[:1], "picture": picture}
        for key, picture in zip(order, pictures, strict=True)
    ]


def _group(path: Path, stars: set[Path], sent: Sequence[Path]) -> str:
    return SENT if path in sent else STARRED if path in stars else NEWEST


def chosen_paths(store: Store, person: str, picks: Any, uploads: Sequence[str] | None) -> tuple[Path, ...]:
    """Files to restore. ``picks`` come from the browser and are only compared with what there is."""
    wanted = set(chosen_ids(picks))
    own = own_pictures(store, person) if wanted and person else {}
    return (*(picture.path for key, picture in own.items() if key in wanted), *map(Path, uploads or ()))


# --- faces -----------------------------------------------------------------------------------------------------
def face_tiles(settings: Settings, shown_dir: Path, pictures: Sequence[Path]) -> tuple[list[Tile], str]:
    """(numbered crops of the faces of a single picture, a sentence about them); crops only where there is a choice."""
    if len(pictures) != 1 or pictures[0].suffix.lower() == ".zip":
        return [], ""
    path = pictures[0]
    try:
        faces = faces_in(settings, path, path.stat().st_mtime_ns)
        if faces is None:
            return [], ""
        if not faces:
            return [], "No face was found in this picture, so nothing would be repaired."
        if len(faces) == 1:
            return [], ""
        tiles = [_face_tile(path, shown_dir, number, face) for number, face in enumerate(faces, start=1)]
    except (HeadshotError, OSError):
        return [], ""
    return tiles, f"{len(faces)} faces were found. Leave out those that should stay as they are."


def _face_tile(path: Path, shown_dir: Path, number: int, face: Face) -> Tile:
    copy = derived(path, shown_dir, f"face-{number}-{face.box}", lambda: face_crop(read_picture(path), face.box))
    return {"id": str(number), "title": f"Face {number}", "group": "", "letter": str(number), "picture": address(copy)}


def face_crop(image: Any, box: tuple[float, float, float, float]) -> Any:
    """A square around the face, small."""
    left, top, right, bottom = box
    side = max(right - left, bottom - top) * (1 + 2 * FACE_MARGIN)
    x, y = (left + right - side) / 2, (top + bottom - side) / 2
    crop = image.crop((round(x), round(y), round(x + side), round(y + side)))
    return crop.resize((FACE_PX, FACE_PX))


def chosen_faces(value: Any, tiles: Sequence[str]) -> tuple[int, ...]:
    """Numbers of the ticked ones of ``tiles``; () for all. Raises SpecError when there are some and none is ticked."""
    if not tiles:
        return ()
    ticked = sorted({int(each) for each in chosen_ids(value) if each in tiles})
    if not ticked:
        raise SpecError("faces", "No face is ticked: tick at least one.")
    return () if len(ticked) == len(tiles) else tuple(ticked)


# --- the request --------------------------------------------------------------------------------------------------
def restore_request(
    person: str,
    pictures: Sequence[Path],
    restorer: str | None,
    fidelity_weight: float,
    faces: tuple[int, ...],
    factor: int,
    outline: bool,
    settings: Settings,
) -> RestoreSpec:
    """Raises SpecError whose ``field`` is one of RestoreSpec's."""
    if not person:
        raise SpecError("person", "Choose a person at the top of the page, or add one: results are kept with them.")
    if not pictures:
        raise SpecError("pictures", "No picture was given: add one, or choose from the headshots.")
    known = {choice.id: choice for choice in restorer_choices(settings)}
    if restorer not in known:
        raise SpecError("restorer", "Choose a restorer.")
    if known[restorer].missing:
        raise SpecError("restorer", known[restorer].missing)
    paths = tuple(str(path) for path in pictures)
    return RestoreSpec(person, paths, restorer, float(fidelity_weight), faces, int(factor), bool(outline))
