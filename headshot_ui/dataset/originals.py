"""Copies of the photos for the person's own folder, without place, camera, time or other hidden notes.

A JPEG keeps its picture data byte for byte: only its notes are cut out, and the turn the camera noted is put back.
Other formats are saved anew from the upright picture.
"""

from __future__ import annotations

import io
import re
import struct
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from headshot_ui.dataset.decode import is_heif

if TYPE_CHECKING:
    from PIL import Image

_START, _END, _SCAN = 0xD8, 0xD9, 0xDA
_RESTARTS = range(0xD0, 0xD8)
_COMMENT = 0xFE
_WINDOWS_NAMES = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)", re.IGNORECASE)


def clean_copy(data: bytes, image: Image.Image) -> tuple[str, bytes]:
    """(suffix, bytes) of a copy without metadata. ``image`` is the same photo, upright RGB."""
    if data.startswith(b"\xff\xd8\xff"):
        try:
            return ".jpg", bare_jpeg(data)
        except (ValueError, IndexError, struct.error):
            return ".jpg", _saved(image, "JPEG")
    if is_heif(data) or data[4:12] in (b"ftypavif", b"ftypavis"):
        return ".jpg", _saved(image, "JPEG")
    return ".png", _saved(image, "PNG")


def _saved(image: Image.Image, kind: str) -> bytes:
    stream = io.BytesIO()
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {"compress_level": 4}
    image.save(stream, kind, **options)
    return stream.getvalue()


def bare_jpeg(data: bytes) -> bytes:
    """The JPEG without notes; colour profile and orientation stay. Raises ValueError when it has no clear structure.

    What lies behind the picture's end (a second picture, a film, a maker's notes) goes too.
    """
    kept: list[bytes] = []
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ValueError("no marker where one must be")
        marker = data[at + 1]
        if marker == 0xFF:  # padding before a marker
            at += 1
            continue
        if marker == _END:
            break
        size = struct.unpack_from(">H", data, at + 2)[0]
        segment = data[at : at + 2 + size]
        at += 2 + size
        if marker == _SCAN:
            end = _end_of_scan(data, at)
            kept.append(segment + data[at:end])
            at = end
        elif not _is_note(marker, segment[4:]):
            kept.append(segment)
    return b"\xff\xd8" + _orientation_note(data) + b"".join(kept) + b"\xff\xd9"


def _end_of_scan(data: bytes, at: int) -> int:
    """Where the next marker follows the compressed data; 0xFF is stuffed there, and restarts belong to it."""
    while True:
        at = data.index(b"\xff", at)
        following = data[at + 1]
        if following == 0 or following in _RESTARTS:
            at += 2
        elif following == 0xFF:
            at += 1
        else:
            return at


def _is_note(marker: int, content: bytes) -> bool:
    """Whether a segment tells about the photo rather than holding it: all but JFIF, colour profile and Adobe's."""
    if marker == _COMMENT:
        return True
    if not 0xE0 <= marker <= 0xEF:
        return False
    if marker == 0xE0:
        return not content.startswith(b"JFIF\0")
    return not (content.startswith(b"ICC_PROFILE\0") or (marker == 0xEE and content.startswith(b"Adobe")))


def _orientation_note(data: bytes) -> bytes:
    """An EXIF segment with nothing in it but how the camera was held; empty for upright photos."""
    from PIL.Image import Exif
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        orientation = JpegImageFile(io.BytesIO(data)).getexif().get(0x0112, 1)
    except Exception:  # a damaged EXIF block: the photo was read without it, too
        return b""
    if orientation not in range(2, 9):
        return b""
    exif = Exif()
    exif[0x0112] = orientation
    content = exif.tobytes()
    content = content if content.startswith(b"Exif\0\0") else b"Exif\0\0" + content
    return b"\xff\xe1" + struct.pack(">H", len(content) + 2) + content


def safe_stem(name: str) -> str:
    """A file name without suffix, made of a label, that every system can hold; scripts of all languages stay."""
    stem = PurePosixPath(name.replace("\\", "/")).stem
    stem = re.sub(r'[<>:"/\\|?*\x00-\x1f\ufffd]', "_", stem).strip(" .") or "photo"
    stem = stem.encode()[:80].decode("utf-8", "ignore").strip(" .")
    return f"_{stem}" if _WINDOWS_NAMES.fullmatch(stem) else stem
