"""Small pictures that travel inside the page itself, so that no photo needs an address of its own."""

from __future__ import annotations

import base64
import hashlib
import io
from functools import lru_cache
from pathlib import Path

#: What a browser's file dialog offers; the dataset stage looks inside and decides for itself.
PHOTO_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".heic", ".heif", ".zip")


def data_uri(path: Path, side_px: int) -> str:
    """The picture upright, at most ``side_px`` wide and high, as a data: address; "" when it cannot be read."""
    try:
        return _data_uri(path, path.stat().st_mtime_ns, side_px)
    except OSError:
        return ""


def small_copy(path: Path, folder: Path, side_px: int) -> Path | None:
    """A JPEG of the picture, at most ``side_px`` wide and high, in ``folder``; None when that fails."""
    uri = data_uri(path, side_px)
    if not uri:
        return None
    data = base64.b64decode(uri.partition(",")[2])
    copy = folder / (hashlib.sha256(data).hexdigest()[:16] + ".jpg")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(data)
    except OSError:
        return None
    return copy


@lru_cache(maxsize=512)
def _data_uri(path: Path, changed_ns: int, side_px: int) -> str:
    """``changed_ns`` is part of the key, because live previews are written to one path again and again."""
    from PIL import Image, ImageOps

    _read_heic()
    try:
        with Image.open(path) as opened:
            opened.draft("RGB", (side_px, side_px))  # lets JPEG decode at a fraction of its size
            small = ImageOps.exif_transpose(opened).convert("RGB")
            small.thumbnail((side_px, side_px))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return ""
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


@lru_cache(maxsize=1)
def _read_heic() -> None:
    try:
        from pillow_heif import register_heif_opener
    except ImportError:  # photos of iPhones then have no small picture
        return
    register_heif_opener()
