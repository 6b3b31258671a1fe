"""What one browser looks at among the headshots of a person, and the values that show it. No gradio."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from headshot_ui.errors import StoreError
from headshot_ui.generation.records import Picture
from headshot_ui.specs import GenerateSpec
from headshot_ui.stars import set_star, starred
from headshot_ui.store import Store
from headshot_ui.ui.gallery import large_address, page_of, page_with, small_addresses
from headshot_ui.ui.picture_sets import (
    ALL,
    BEST,
    STARRED,
    WHICH,
    PictureSet,
    facts_of,
    find_picture,
    find_set,
    find_sets,
    likeness_words,
    narrowed,
    picture_id,
    settings_of,
)
from headshot_ui.ui.results import matched

AGAIN_COUNT = 4  # pictures of "Draw this again with other seeds"
SEEDS = 2**63


@dataclass(frozen=True)
class View:
    """Which set, which of its pictures, which page of them, and which one is seen large; "" means the first."""

    set_id: str = ""
    which: str = ALL
    page: int = 0
    picture: str = ""


@dataclass(frozen=True)
class Seen:
    """What is behind a view at this moment; ``shown`` and ``picture`` are None where there is nothing."""

    view: View  # with everything filled in that there is
    sets: tuple[PictureSet, ...]
    shown: PictureSet | None
    pictures: tuple[Picture, ...]  # narrowed down, all pages
    picture: Picture | None
    stars: frozenset[Path]


def look(store: Store, person: str, view: View) -> Seen:
    """Find on disk what the view means. What is gone is replaced by the nearest thing there is."""
    sets = find_sets(store, person)
    shown = find_set(sets, view.set_id)
    stars = frozenset(starred(store, person)) if person else frozenset()
    if shown is None:
        return Seen(View(), (), None, (), None, stars)
    which = view.which if view.which in WHICH else ALL
    pictures = narrowed(shown.pictures, which, stars)
    page = page_of(pictures, view.page)
    wanted = find_picture(pictures, view.picture) if view.picture else None
    on_page = page.items[0] if page.items else None
    picture = wanted if wanted is not None and picture_id(wanted.path) == view.picture else on_page
    filled = View(shown.id, which, page.number, "" if picture is None else picture_id(picture.path))
    return Seen(filled, sets, shown, pictures, picture, stars)


def opened(seen: Seen, wanted: str) -> View:
    """The view after a click on a small picture."""
    return replace(seen.view, picture=wanted)


def turned(seen: Seen, number: str) -> View:
    """The view after a click on "Next" or "Previous": the first picture of that page."""
    return replace(seen.view, page=int(number) if number.isdigit() else 0, picture="")


def toggle_star(store: Store, person: str, seen: Seen, wanted: str) -> None:
    """Give that picture of the set a star, or take it. Raises StoreError."""
    if seen.shown is None:
        return
    picture = find_picture(seen.shown.pictures, wanted)
    if picture is not None and picture_id(picture.path) == wanted:
        set_star(store, person, picture.path, picture.path not in seen.stars)


def neighbour(seen: Seen) -> View:
    """The view once its picture is deleted: the next one, or the one before."""
    if seen.picture is None:
        return seen.view
    at = seen.pictures.index(seen.picture)
    left = [*seen.pictures[:at], *seen.pictures[at + 1 :]]
    after = left[min(at, len(left) - 1)] if left else None
    page = page_with(left, after) if after else 0
    return replace(seen.view, page=page, picture=picture_id(after.path) if after else "")


# --- values for templates ------------------------------------------------------------------------------------
def set_choices(seen: Seen) -> list[tuple[str, str]]:
    return [(each.caption, each.id) for each in seen.sets]


def which_choices(seen: Seen) -> list[tuple[str, str]]:
    """ "All (16)", "Starred (2)", "Best (4)"."""
    pictures = seen.shown.pictures if seen.shown else ()
    names = {ALL: "All", STARRED: "Starred", BEST: "Best"}
    return [(f"{name} ({len(narrowed(pictures, which, seen.stars))})", which) for which, name in names.items()]


def heading(seen: Seen, person: str) -> dict[str, str]:
    if seen.shown is None:
        return {"title": "Drawn headshots", "text": "Nothing was drawn yet. What you draw appears here, best first."}
    text = matched(seen.shown.pictures, person)
    measured = any(picture.likeness is not None for picture in seen.shown.pictures)
    scale = " 100 % likeness means: as alike as the person's own photos are to each other." if measured else ""
    return {"title": "Drawn headshots", "text": text + scale + " Made with AI; say so where it matters."}


def grid_values(seen: Seen, shown_dir: Path) -> dict[str, Any]:
    """Values of the grid of small pictures."""
    page = page_of(seen.pictures, seen.view.page)
    addresses = small_addresses([picture.path for picture in page.items], shown_dir)
    shots = [_shot(picture, address, seen) for picture, address in zip(page.items, addresses, strict=True)]
    return {"name": "Headshots, best first", "shots": shots, "empty": _why_empty(seen), **page_values(page)}


def page_values(page: Any) -> dict[str, Any]:
    """Values of the buttons under a grid; none for a single page."""
    if page.count < 2:
        return {"pages": "", "before": "", "after": "", "has_before": False, "has_after": False}
    return {
        "pages": f"Page {page.number + 1} of {page.count}",
        "before": str(page.number - 1),
        "after": str(page.number + 1),
        "has_before": page.number > 0,
        "has_after": page.number + 1 < page.count,
    }


def _shot(picture: Picture, address: str, seen: Seen) -> dict[str, Any]:
    likeness = likeness_words(picture)
    rank = f"{picture.rank}. " if picture.rank else ""
    first = f"{rank}{likeness}" if picture.likeness is not None and not picture.likeness.reason else rank.strip(". ")
    about = f"{picture.title}, likeness {likeness}" if likeness.endswith("%") else picture.title
    return {
        "id": picture_id(picture.path),
        "picture": address,
        "alt": f"{about}, seed {picture.seed}",
        "first": first,
        "second": picture.title if likeness.endswith("%") or not likeness else f"{picture.title}; {likeness}",
        "starred": picture.path in seen.stars,
        "current": picture_id(picture.path) == seen.view.picture,
    }


def _why_empty(seen: Seen) -> str:
    if seen.pictures:
        return ""
    if seen.view.which == STARRED:
        return "No picture of this set has a star yet. Press ☆ on the ones you like."
    return "No picture of this set could be ranked." if seen.view.which == BEST else ""


def large_values(seen: Seen, shown_dir: Path) -> dict[str, str]:
    """Values of the large picture."""
    if seen.picture is None:
        return {"picture": "", "alt": ""}
    where = large_address(seen.picture.path, shown_dir)
    return {"picture": where, "alt": seen.picture.title if where else "This picture cannot be read any more."}


def fact_values(seen: Seen) -> dict[str, Any]:
    """Values of the facts beside the large picture."""
    if seen.picture is None or seen.shown is None:
        return {"title": "", "facts": [], "warning": ""}
    facts = facts_of(seen.picture, len(seen.shown.pictures))
    return {"title": seen.picture.title, "facts": facts, "warning": ""}


# --- another request from a picture ------------------------------------------------------------------------------
def again_request(seen: Seen) -> GenerateSpec:
    """The same look with seeds nobody used in any set, so that two clicks mean one request. Raises StoreError."""
    if seen.picture is None:
        raise StoreError("No picture is chosen: click one first.")
    used = [picture.seed for each in seen.sets for picture in each.pictures]
    return replace(settings_of(seen.picture), count=AGAIN_COUNT, seed=(max(used) + 1) % SEEDS)
