"""Pictures for the page: small and large copies in the private folder, their addresses, and pages of many."""

from __future__ import annotations

import hashlib
import os
import shutil
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import quote

from headshot_ui.errors import PhotoError, StoreError
from headshot_ui.store import told_plainly

if TYPE_CHECKING:
    from PIL import Image

PER_PAGE = 48  # a page of so many small pictures opens in under a second
SMALL_PX = 384
LARGE_PX = 2048
MOST_AT_A_TIME = 4  # small copies; each has one whole picture in memory
WEBP_EFFORT = 1  # of 6; the usual 4 takes three times as long for files that are a twelfth smaller
LARGE_KEPT = 32  # copies of originals; older ones are removed
_SMALL, _LARGE = "small", "large"

T = TypeVar("T")


@dataclass(frozen=True)
class Page(Generic[T]):
    """One page of a longer list; ``number`` counts from 0 and is always one there is."""

    items: tuple[T, ...]
    number: int
    count: int
    total: int


def page_of(items: Sequence[T], number: int, per_page: int = PER_PAGE) -> Page[T]:
    """The page of that number, or the nearest one there is."""
    count = max(1, -(-len(items) // per_page))
    number = min(max(number, 0), count - 1)
    return Page(tuple(items[number * per_page : (number + 1) * per_page]), number, count, len(items))


def page_with(items: Sequence[T], wanted: T, per_page: int = PER_PAGE) -> int:
    """The number of the page that holds ``wanted``; 0 when none does."""
    return items.index(wanted) // per_page if wanted in items else 0


def address(path: Path) -> str:
    """The address under which the page hands out a file of the private folder."""
    return "/gradio_api/file=" + quote(path.as_posix(), safe="/:")


def small_addresses(paths: Sequence[Path], shown_dir: Path, side_px: int = SMALL_PX) -> list[str]:
    """Addresses of small copies, made several at a time where they are not there yet; "" for what cannot be read."""
    with ThreadPoolExecutor(min(MOST_AT_A_TIME, os.cpu_count() or 1)) as pool:
        copies = list(pool.map(lambda path: small_webp(path, shown_dir, side_px), paths))
    return ["" if copy is None else address(copy) for copy in copies]


def small_webp(path: Path, shown_dir: Path, side_px: int = SMALL_PX) -> Path | None:
    """A WebP of the picture, upright and at most ``side_px`` wide and high, in the private folder; None on failure.

    Whatever the intake of photos can read, HEIC and 16-bit pictures too, can be seen this way.
    """
    from headshot_ui.dataset.decode import decode

    def make() -> Image.Image:
        small = decode(_smallest_source(path, shown_dir, side_px).read_bytes())
        small.thumbnail((side_px, side_px), reducing_gap=1.0)
        return small

    try:
        return derived(path, shown_dir, f"{side_px}", make)
    except (OSError, PhotoError):
        return None


def _smallest_source(path: Path, shown_dir: Path, side_px: int) -> Path:
    """The usual small copy where it is there and large enough, for it is read five times as fast. Raises OSError."""
    if side_px < SMALL_PX and (copy := _copy_of(path, shown_dir, f"{SMALL_PX}")).is_file():
        return copy
    return path


def copied(path: Path, shown_dir: Path, name: str = "") -> Path:
    """The file itself in the private folder, under its own or another name. Raises StoreError."""
    with told_plainly(path, "read"):
        copy = shown_dir / _LARGE / _key(path) / (name or path.name)
        if not copy.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            _forget_old(copy.parent.parent)
            unfinished = copy.with_name(uuid.uuid4().hex)
            shutil.copyfile(path, unfinished)
            os.replace(unfinished, copy)
    return copy


def derived(path: Path, shown_dir: Path, what: str, make: Callable[[], Image.Image]) -> Path:
    """A WebP made from the picture ``path`` by ``make``, kept in the private folder. Raises OSError."""
    copy = _copy_of(path, shown_dir, what)
    if not copy.is_file():
        copy.parent.mkdir(parents=True, exist_ok=True)
        unfinished = copy.with_name(uuid.uuid4().hex)
        make().save(unfinished, "WEBP", quality=88, method=WEBP_EFFORT)
        os.replace(unfinished, copy)
    return copy


def _copy_of(path: Path, shown_dir: Path, what: str) -> Path:
    """Where ``derived`` keeps it. Raises OSError when the picture is gone."""
    key = hashlib.sha256(f"{_key(path)} {what}".encode()).hexdigest()[:24]
    return shown_dir / _SMALL / f"{key}.webp"


def large_address(path: Path, shown_dir: Path) -> str:
    """The address of a picture to look at closely; "" when it cannot be read.

    PNGs are shown as they are. Others may be turned by their metadata or unknown to browsers, so they are converted.
    """
    if path.suffix.lower() != ".png":
        copy = small_webp(path, shown_dir, LARGE_PX)
        return "" if copy is None else address(copy)
    try:
        return address(copied(path, shown_dir))
    except StoreError:
        return ""


def _key(path: Path) -> str:
    """Changes when the file does. Raises OSError when it is gone."""
    facts = path.stat()
    text = f"{path}\n{facts.st_mtime_ns}\n{facts.st_size}"
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _forget_old(folder: Path) -> None:
    with suppress(OSError):
        copies = sorted(folder.iterdir(), key=lambda each: each.stat().st_mtime)
        for old in copies[: max(0, len(copies) - LARGE_KEPT)]:
            shutil.rmtree(old, ignore_errors=True)
