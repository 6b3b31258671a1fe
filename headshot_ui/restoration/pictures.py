"""Any picture, as the restorers need it: upright, 8-bit sRGB, its transparency beside it.

Reading files, folders and archives, and decoding, is done by ``dataset.intake`` and ``dataset.decode``; what those
leave out because a photo to learn from needs none of it (transparency, what was written into a PNG) is added here.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.dataset.decode import FORMATS, decode, is_heif, to_srgb
from headshot_ui.dataset.intake import Refusal, collect
from headshot_ui.errors import DatasetError, PhotoError
from headshot_ui.store import PNG_KEY

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """A file that should be a picture; nothing of it was read yet."""

    source: Path  # where it lies; inside an archive: the archive's path and the name within
    name: str  # as the person gave it
    read: Callable[[], bytes]  # raises PhotoError


@dataclass(frozen=True)
class Opened:
    """One picture in memory. ``pixels`` and ``shown`` differ only where it is transparent."""

    pixels: np.ndarray  # (H, W, 3) uint8 RGB, colours under transparency as they are in the file
    shown: Image.Image  # RGB on white: what detectors and people see
    alpha: Image.Image | None  # "L", same size; None where nothing is transparent
    digest: str  # SHA-256 of the file
    own: Mapping[str, Any] = field(default_factory=dict)  # what this program once wrote into the PNG; {} otherwise
    notes: tuple[str, ...] = ()  # what was left out of the file


def collect_pictures(paths: Sequence[str]) -> tuple[tuple[Item, ...], tuple[Refusal, ...]]:
    """Look through files, folders (with those inside) and zip archives; also what cannot be a picture, and why.

    Raises PhotoError when there are more pictures than one request may have.
    """
    items: list[Item] = []
    refusals: list[Refusal] = []
    for given in paths:
        path = Path(given).expanduser().absolute()
        try:
            found = collect([str(path)])
        except DatasetError as error:
            raise PhotoError(f"{path} holds too many pictures for one go: give some of them at a time.") from error
        named_itself = path.is_file() and path.suffix.casefold() != ".zip"
        items += [Item(path if named_itself else path / s.name, s.name, s.read) for s in found.sources]
        refusals += found.refusals
    return tuple(items), tuple(refusals)


def open_picture(item: Item) -> Opened:
    """Read and decode one picture. Raises PhotoError with one sentence on what is wrong and what to do."""
    import numpy as np

    data = item.read()
    shown = decode(data)
    header = _header(data)
    straight, alpha = _transparent(header, shown.size) if header is not None else (None, None)
    return Opened(
        pixels=np.array(shown if straight is None else straight),
        shown=shown,
        alpha=alpha,
        digest=hashlib.sha256(data).hexdigest(),
        own=_own_notes(header),
        notes=_notes(header, shown.size),
    )


def on_white(pixels: np.ndarray, alpha: Image.Image | None) -> Image.Image:
    """RGB as people see it."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if alpha is None:
        return image
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=alpha)
    return white


def _header(data: bytes) -> Image.Image | None:
    """The picture again, not decoded; None for HEIC, of which only the colours are used."""
    from PIL import Image

    if is_heif(data):
        return None
    Image.init()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Image.open(io.BytesIO(data), formats=["JPEG", *(name for name in FORMATS if name in Image.OPEN)])
    except Exception:  # it was decoded a moment ago; without its header only transparency is lost
        _log.info("The header of a picture could not be read again", exc_info=True)
        return None


def _transparent(image: Image.Image, size: tuple[int, int]) -> tuple[Image.Image | None, Image.Image | None]:
    """(upright sRGB without white underneath, alpha) in ``size``; (None, None) where nothing is transparent."""
    from PIL import Image, ImageOps

    marked = "transparency" in image.info and not image.mode.startswith("I")  # 16-bit grey is opened as opaque
    if image.mode not in ("RGBA", "LA", "PA", "RGBa", "La") and not marked:
        return None, None
    profile = image.info.get("icc_profile")
    rgba = (ImageOps.exif_transpose(image) or image).convert("RGBA")
    alpha = rgba.getchannel("A")
    if alpha.getextrema() == (255, 255):
        return None, None
    colours = rgba.convert("RGB")
    colours.info = {"icc_profile": profile} if profile else {}
    if rgba.size != size:
        alpha = alpha.resize(size, Image.Resampling.LANCZOS)
        colours = colours.resize(size, Image.Resampling.LANCZOS)
    straight = to_srgb(colours)
    straight.info, alpha.info = {}, {}
    return straight, alpha


def _own_notes(image: Image.Image | None) -> dict[str, Any]:
    text = None if image is None else image.info.get(PNG_KEY)
    try:
        data = json.loads(text) if text else {}
    except (ValueError, TypeError):
        return {}
    return data if isinstance(data, dict) else {}


def _notes(image: Image.Image | None, size: tuple[int, int]) -> tuple[str, ...]:
    """What a person should know was left out."""
    notes = []
    if image is not None:
        if getattr(image, "n_frames", 1) > 1:
            notes.append("Only the first picture of a moving one is restored.")
        if sorted(image.size) != sorted(size):
            notes.append(f"It was larger than can be worked on and is now {size[0]} x {size[1]} pixels.")
    return tuple(notes)
