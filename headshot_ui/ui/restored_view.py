"""Restored pictures of one person, and the values that show one of them beside what it was. No gradio."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.errors import HeadshotError, SpecError, StoreError
from headshot_ui.restoration import all_restorers
from headshot_ui.restoration.records import RECORD, RestoredPicture, read_record
from headshot_ui.specs import RestoreSpec
from headshot_ui.stars import set_star, starred
from headshot_ui.store import Store, read_json
from headshot_ui.ui.export_view import read_picture
from headshot_ui.ui.gallery import LARGE_PX, address, derived, page_of, page_with, small_addresses, small_webp
from headshot_ui.ui.given import as_file, is_there, origin_of
from headshot_ui.ui.headshot_view import page_values
from headshot_ui.ui.picture_sets import counted, moment, picture_id
from headshot_ui.ui.restore_request import face_crop

if TYPE_CHECKING:
    from headshot_ui.likeness import Likeness

VARIANTS_SHOWN = 6
GONE = (
    "The picture this was made from is no longer there, so it cannot be tried with another weight: add it again above."
)


@dataclass(frozen=True)
class View:
    """Which restored picture is seen, and the page it is on."""

    picture: str = ""
    page: int = 0


@dataclass(frozen=True)
class Made:
    """One restored picture and what it was made with."""

    picture: RestoredPicture
    request: RestoreSpec
    restorer: str
    finished_s: float

    @property
    def id(self) -> str:
        return picture_id(self.picture.path)


@dataclass(frozen=True)
class Seen:
    """What is behind a view at this moment."""

    view: View
    made: tuple[Made, ...]  # newest first
    shown: Made | None
    stars: frozenset[Path]


def restored_mark(store: Store, person: str) -> tuple[Any, ...]:
    """Small and comparable; changes when a set of restored pictures comes, goes or grows."""
    marks = []
    for record in store.restored_dir(person).glob(f"*/{RECORD}") if person else ():
        with suppress(OSError):
            marks.append((record.parent.name, record.stat().st_mtime_ns))
    return tuple(sorted(marks))


def find_made(store: Store, person: str) -> tuple[Made, ...]:
    """All restored pictures of a person, newest first; damaged records are left out."""
    found: list[Made] = []
    for record in store.restored_dir(person).glob(f"*/{RECORD}") if person else ():
        with suppress(HeadshotError, OSError, KeyError):
            result = read_record(record.parent)
            request = RestoreSpec.from_json(read_json(record)["request"])
            finished_s = record.stat().st_mtime
            found += [Made(picture, request, result.restorer, finished_s) for picture in result.pictures]
    return tuple(sorted(found, key=lambda made: (made.finished_s, made.picture.path.parent.name), reverse=True))


def look(store: Store, person: str, view: View) -> Seen:
    """Find on disk what the view means; what is gone is replaced by the first there is on its page."""
    made = find_made(store, person)
    stars = frozenset(starred(store, person)) if person else frozenset()
    page = page_of(made, view.page)
    wanted = next((each for each in made if each.id == view.picture), None)
    shown = wanted or (page.items[0] if page.items else None)
    return Seen(View(shown.id if shown else "", page.number), made, shown, stars)


def turned(number: str) -> View:
    """The view after a click on "Next" or "Previous"."""
    return View("", int(number) if number.isdigit() else 0)


def toggle_star(store: Store, person: str, seen: Seen, wanted: str) -> None:
    """Raises StoreError."""
    made = next((each for each in seen.made if each.id == wanted), None)
    if made is not None:
        set_star(store, person, made.picture.path, made.picture.path not in seen.stars)


def neighbour(seen: Seen) -> View:
    """The view once its picture is deleted."""
    if seen.shown is None:
        return seen.view
    at = seen.made.index(seen.shown)
    left = [*seen.made[:at], *seen.made[at + 1 :]]
    if not left:
        return View()
    after = left[min(at, len(left) - 1)]
    return View(after.id, page_with(left, after))


# --- values for templates -------------------------------------------------------------------------------------------
def heading(seen: Seen) -> dict[str, str]:
    if not seen.made:
        return {"title": "Restored pictures", "text": "Nothing was restored yet. Results appear here, newest first."}
    return {"title": "Restored pictures", "text": f"{counted(len(seen.made), 'picture')}, newest first."}


def compare_values(seen: Seen, shown_dir: Path) -> dict[str, str]:
    """Values of the before/after slider."""
    if seen.shown is None:
        return {"before": "", "after": "", "alt": ""}
    picture = seen.shown.picture
    after, before = (_large(path, shown_dir) for path in (picture.path, _before(picture)))
    return {"after": after, "before": before or after, "alt": picture.source.name}


def _before(picture: RestoredPicture) -> Path:
    return picture.before or picture.source


def _large(path: Path, shown_dir: Path) -> str:
    copy = small_webp(path, shown_dir, LARGE_PX)
    return "" if copy is None else address(copy)


def fact_values(seen: Seen) -> dict[str, Any]:
    """Values of the facts beside the slider."""
    if seen.shown is None:
        return {"title": "", "facts": [], "warning": ""}
    made, picture = seen.shown, seen.shown.picture
    size = f"{picture.size[0]} × {picture.size[1]} pixels" if all(picture.size) else ""
    enlarged = f", enlarged ×{made.request.upscale} by {picture.enlarged_by}" if picture.enlarged_by else ""
    facts = [
        ("Likeness", likeness_words(picture)),
        ("Faces", faces_words(picture)),
        ("Weight", f"{made.request.fidelity_weight:g} (0 repairs most, 1 keeps most)"),
        ("Restorer", restorer_title(made.restorer)),
        ("Size", size + enlarged if size else ""),
        ("Made on", moment(made.finished_s)),
        ("Notes", " ".join(picture.notes)),
        ("File", picture.path.name),
    ]
    told = [{"name": name, "value": value} for name, value in facts if value]
    return {"title": picture.source.name, "facts": told, "warning": picture.warning or picture.skipped}


def likeness_words(picture: RestoredPicture) -> str:
    """ "81 % before, 84 % after"; "" where it was not measured."""
    before, after = _percent(picture.likeness_before), _percent(picture.likeness_after)
    return f"{before} before, {after} after" if before and after else ""


def _percent(likeness: Likeness | None) -> str:
    return "" if likeness is None or likeness.reason else f"{likeness.percent:.0f} %"


def restorer_title(restorer: str) -> str:
    known = all_restorers().get(restorer)
    return known.info.title if known is not None else restorer


def faces_words(picture: RestoredPicture) -> str:
    """ "2 of 3 repaired"."""
    return f"{picture.repaired} of {len(picture.faces)} repaired" if picture.faces else "none was found"


def grid_values(seen: Seen, shown_dir: Path) -> dict[str, Any]:
    """Values of the grid of small pictures."""
    page = page_of(seen.made, seen.view.page)
    addresses = small_addresses([made.picture.path for made in page.items], shown_dir)
    shots = [
        {"id": made.id, "picture": where, "alt": f"{made.picture.source.name}, weight {made.request.fidelity_weight:g}",
         "first": f"Weight {made.request.fidelity_weight:g}", "second": made.picture.source.name,
         "starred": made.picture.path in seen.stars, "current": made.id == seen.view.picture}
        for made, where in zip(page.items, addresses, strict=True)
    ]  # fmt: skip
    title = "All results" if shots else ""
    return {"name": "Restored pictures, newest first", "title": title, "shots": shots, "empty": "", **page_values(page)}


def variants_of(seen: Seen) -> tuple[Made, ...]:
    """The shown picture and others made from the same one, by weight; () when there is only one."""
    if seen.shown is None:
        return ()
    origin = origin_of(seen.shown.picture.source)
    same = [made for made in seen.made if origin_of(made.picture.source) == origin]
    kept = same[:VARIANTS_SHOWN] if seen.shown in same[:VARIANTS_SHOWN] else [seen.shown, *same[: VARIANTS_SHOWN - 1]]
    return tuple(sorted(kept, key=lambda made: made.request.fidelity_weight)) if len(same) > 1 else ()


def variant_values(seen: Seen, shown_dir: Path) -> dict[str, Any]:
    """Values of the row of the same picture with other weights, the picture as it was first."""
    variants = variants_of(seen)
    if not variants:
        return {"variants": []}
    paths = [_before(variants[0].picture), *(made.picture.path for made in variants)]
    addresses = small_addresses(paths, shown_dir)
    first = {"id": "", "picture": addresses[0], "alt": "Before", "title": "Before", "text": "", "current": False}
    rest = [
        {"id": made.id, "picture": where, "alt": f"With weight {made.request.fidelity_weight:g}",
         "title": f"Weight {made.request.fidelity_weight:g}", "text": likeness_words(made.picture),
         "current": made.id == seen.view.picture}
        for made, where in zip(variants, addresses[1:], strict=True)
    ]  # fmt: skip
    return {"variants": [first, *rest]}


def face_values(seen: Seen, shown_dir: Path) -> tuple[list[dict[str, str]], list[str]]:
    """(numbered crops of the faces that were found, numbers of the repaired ones); nothing for fewer than two."""
    if seen.shown is None or len(seen.shown.picture.faces) < 2:
        return [], []
    picture = seen.shown.picture
    tiles = []
    for face in picture.faces:
        state = "repaired" if not face.skipped else face.skipped
        try:
            copy = derived(_before(picture), shown_dir, f"face-{face.box}", partial(_crop, seen.shown, face.box))
            where = address(copy)
        except (HeadshotError, OSError):
            where = ""
        tiles.append({"id": str(face.number), "title": f"Face {face.number}: {state}", "group": "",
                      "letter": str(face.number), "picture": where})  # fmt: skip
    return tiles, [str(face.number) for face in picture.faces if not face.skipped]


def _crop(made: Made, box: tuple[float, float, float, float]) -> Any:
    """The face in the picture as it was; the copy of it may be smaller than the picture the box was found in."""
    image = read_picture(_before(made.picture))
    wide = made.picture.size[0] / made.request.upscale
    scale = image.width / wide if wide else 1.0
    left, top, right, bottom = (scale * edge for edge in box)
    return face_crop(image, (left, top, right, bottom))


# --- another request from a picture ----------------------------------------------------------------------------------
def why_not_again(seen: Seen) -> str:
    """Why the picture cannot be restored again; "" when it can."""
    return GONE if seen.shown is not None and not is_there(seen.shown.picture.source) else ""


def again_request(seen: Seen, fidelity_weight: float, faces: tuple[int, ...]) -> RestoreSpec:
    """The same picture with another weight or other faces. Raises SpecError, StoreError or PhotoError."""
    if seen.shown is None:
        raise SpecError("pictures", "No picture is chosen: click one first.")
    if why_not_again(seen):
        raise StoreError(GONE)
    request = seen.shown.request
    restorer = seen.shown.restorer or request.restorer
    return replace(request, pictures=(str(as_file(seen.shown.picture.source)),), restorer=restorer,
                   fidelity_weight=float(fidelity_weight), faces=faces)  # fmt: skip
