"""What a person dropped in (files, folders, zip archives) → a list of photos, each read when its turn comes.

``collect`` only looks at names and sizes, so 2,000 photos cost nothing until ``read_photo`` is called for one.
Nothing is ever unpacked to disk: a member of an archive is read into memory, and its name is only a label.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from headshot_ui.dataset.decode import MAX_FILE_BYTES, decode_quietly
from headshot_ui.errors import DatasetError, PhotoError

if TYPE_CHECKING:
    from PIL import Image

MAX_PHOTOS = 2000
MAX_ARCHIVE_BYTES = 4 * 2**30  # unpacked photos of one archive
MAX_ARCHIVE_MEMBERS = 10_000
MAX_RATIO = 200  # no photo packs better than this
MAX_NOTE_BYTES = 4096

PHOTO_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".heic", ".heif", ".avif", ".tif", ".tiff", ".bmp", ".gif")
    + (".jp2", ".ppm")
)
RAW_SUFFIXES = frozenset((".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2", ".psd"))
OTHER_ARCHIVES = frozenset((".rar", ".7z", ".tar", ".tgz", ".gz", ".xz"))
_SYSTEM_NAMES = frozenset({"__macosx", "thumbs.db", "desktop.ini", "@eadir"})


@dataclass(frozen=True)
class Source:
    """One file that should be a photo; nothing of it was read yet."""

    name: str  # unique label, as the person gave it
    read: Callable[[], bytes]  # raises PhotoError
    read_caption: Callable[[], str] | None = None  # the text beside it with the same name, if there is one


@dataclass(frozen=True)
class Refusal:
    """Something that cannot be a photo, and what to do about it."""

    name: str
    reason: str


@dataclass(frozen=True)
class Collected:
    """What was found, in the order it was given, names within a folder in natural order."""

    sources: tuple[Source, ...]
    refusals: tuple[Refusal, ...]


@dataclass(frozen=True)
class Photo:
    """One photo in memory."""

    name: str
    image: Image.Image  # upright RGB
    data: bytes  # the file as it was
    digest: str  # SHA-256 of ``data``
    caption: str  # from a text file beside it; "" without one


def collect(paths: Sequence[str]) -> Collected:
    """Look through files, folders (with those inside) and zip archives.

    Raises DatasetError when there are more than ``MAX_PHOTOS`` photos, before any is read.
    """
    found: list[Source | Refusal] = []
    for path in paths:
        found += _look_at(Path(path).expanduser())
    sources = [item for item in found if isinstance(item, Source)]
    if len(sources) > MAX_PHOTOS:
        raise DatasetError(
            f"{len(sources)} photos were given, more than {MAX_PHOTOS}: choose the best; about twelve are enough."
        )
    refusals = tuple(replace(item, name=readable(item.name)) for item in found if isinstance(item, Refusal))
    return Collected(tuple(_with_unique_names(sources)), refusals)


def read_photo(source: Source) -> Photo:
    """Read and decode one photo, in any thread (see ``decode_quietly``).

    Raises PhotoError with one sentence on what is wrong and what to do.
    """
    data = source.read()
    caption = source.read_caption() if source.read_caption else ""
    return Photo(source.name, decode_quietly(data), data, hashlib.sha256(data).hexdigest(), caption)


def readable(name: str) -> str:
    """A file name that can be shown and saved as UTF-8: control characters and broken bytes are replaced."""
    whole = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in whole)


def _with_unique_names(sources: Iterable[Source]) -> Iterator[Source]:
    taken: set[str] = set()
    for source in sources:
        name = label = readable(source.name)
        number = 2
        while label in taken:
            label, number = f"{name} ({number})", number + 1
        taken.add(label)
        yield replace(source, name=label)


def _natural(name: str) -> tuple[tuple[int, str], ...]:
    """Sort key that puts “2.jpg” before “10.jpg”."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part.casefold()) for part in re.split(r"(\d+)", name))


def _is_hidden(parts: Iterable[str]) -> bool:
    return any(part.startswith(".") or part.casefold() in _SYSTEM_NAMES for part in parts)


# --- files and folders ------------------------------------------------------------------------------
def _look_at(path: Path) -> list[Source | Refusal]:
    """A path that the person named: it must be there and be of some use."""
    try:
        if path.is_dir():
            return _in_folder(path)
        if not path.is_file():
            reason = f"There is no file or folder “{readable(str(path))}”: check the name."
            return [Refusal(path.name or str(path), reason)]
    except OSError:
        return [Refusal(path.name, "This may not be read: check its permissions.")]
    suffix = path.suffix.casefold()
    if suffix == ".zip":
        return list(_in_archive(path))
    if suffix in OTHER_ARCHIVES:
        return [Refusal(path.name, "Of archives only .zip can be read: unpack it and add the photos.")]
    if suffix in RAW_SUFFIXES:
        return [_raw(path.name)]
    return [_file_source(path, path.name)]


def _in_folder(folder: Path) -> list[Source | Refusal]:
    """Photos and archives of a folder and those inside it; other files are passed over, hidden ones too."""
    found: list[Source | Refusal] = []
    for where, inner, names in os.walk(folder):
        inner[:] = sorted((name for name in inner if not _is_hidden([name])), key=_natural)
        for name in sorted((name for name in names if not _is_hidden([name])), key=_natural):
            path = Path(where) / name
            if not path.is_file():  # a broken link, or a pipe that would never end
                continue
            label, suffix = path.relative_to(folder).as_posix(), path.suffix.casefold()
            if suffix in PHOTO_SUFFIXES:
                found.append(_file_source(path, label))
            elif suffix == ".zip":
                found += _in_archive(path)
            elif suffix in RAW_SUFFIXES:
                found.append(_raw(label))
    return found


def _raw(name: str) -> Refusal:
    return Refusal(name, "Raw camera files cannot be read: export the photo as a JPEG and add that.")


def _file_source(path: Path, label: str) -> Source:
    def read() -> bytes:
        try:
            with path.open("rb") as file:
                return file.read(MAX_FILE_BYTES + 1)
        except OSError as error:
            reason = error.strerror or str(error)
            raise PhotoError(
                f"The file could not be read ({reason}): copy it to this machine and try again."
            ) from error

    def read_caption() -> str:
        try:
            return _caption(note.read_bytes())
        except OSError:
            return ""

    note = path.with_suffix(".txt")
    return Source(label, read, read_caption if path.suffix.casefold() != ".txt" and note.is_file() else None)


def _caption(data: bytes) -> str:
    """One line of plain text; "" for anything that is no caption."""
    if len(data) > MAX_NOTE_BYTES:
        return ""
    try:
        return " ".join(data.decode("utf-8-sig").split())
    except UnicodeDecodeError:
        return ""


# --- zip archives -----------------------------------------------------------------------------------
def _in_archive(path: Path) -> Iterator[Source | Refusal]:
    """Photos of a zip archive, and a refusal for every member that is dangerous or locked."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        yield Refusal(path.name, "The archive is damaged or no zip file: make it again, or add the photos themselves.")
        return
    photos = [m for m in members if _wanted(m) and PurePosixPath(_slashes(m)).suffix.casefold() in PHOTO_SUFFIXES]
    if len(members) > MAX_ARCHIVE_MEMBERS or sum(member.file_size for member in photos) > MAX_ARCHIVE_BYTES:
        yield Refusal(path.name, "The archive would unpack to far more than photos of one person: add only the photos.")
        return
    notes = {_stem(m): m for m in members if _slashes(m).casefold().endswith(".txt")}
    for member in sorted((m for m in members if _wanted(m)), key=lambda m: _natural(_slashes(m))):
        name = _slashes(member)
        suffix = PurePosixPath(name).suffix.casefold()
        if suffix in RAW_SUFFIXES:
            yield _raw(name)
        elif suffix == ".zip" or suffix in OTHER_ARCHIVES:
            yield Refusal(name, "An archive inside an archive is not opened: unpack it and add its photos.")
        elif suffix in PHOTO_SUFFIXES:
            reason = _danger(member)
            yield Refusal(name, reason) if reason else _member_source(path, member, notes.get(_stem(member)))


def _slashes(member: zipfile.ZipInfo) -> str:
    return member.filename.replace("\\", "/")


def _stem(member: zipfile.ZipInfo) -> str:
    return str(PurePosixPath(_slashes(member)).with_suffix("")) if PurePosixPath(_slashes(member)).name else ""


def _wanted(member: zipfile.ZipInfo) -> bool:
    # “..” begins with a dot but is no hidden file: it gets a refusal of its own.
    return not _is_hidden(part for part in PurePosixPath(_slashes(member)).parts if part != "..")


def _danger(member: zipfile.ZipInfo) -> str:
    """Why a member is not even opened; "" when it may be."""
    name = _slashes(member)
    if name.startswith("/") or ".." in PurePosixPath(name).parts or re.match(r"[A-Za-z]:", name):
        return "Its name points outside the archive, which is not safe: add this photo itself."
    if member.flag_bits & 0x1:
        return "It is locked with a password: unpack the archive and add the photos."
    if member.file_size > MAX_FILE_BYTES:
        return f"It unpacks to more than {MAX_FILE_BYTES // 2**20} MB: save the photo as a JPEG and add that."
    if member.file_size > 2**20 and member.file_size > MAX_RATIO * max(member.compress_size, 1):
        return "It unpacks to many times its size, as no photo does: add this photo itself."
    return ""


def _member_source(path: Path, member: zipfile.ZipInfo, note: zipfile.ZipInfo | None) -> Source:
    def read() -> bytes:
        return _read_member(path, member, MAX_FILE_BYTES)

    def read_caption() -> str:
        assert note is not None
        try:
            return _caption(_read_member(path, note, MAX_NOTE_BYTES))
        except PhotoError:
            return ""

    readable_note = note is not None and not _danger(note) and _wanted(note)
    return Source(_slashes(member), read, read_caption if readable_note else None)


def _read_member(path: Path, member: zipfile.ZipInfo, limit: int) -> bytes:
    """At most ``limit + 1`` bytes, whatever size the archive claims."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as file:
            return file.read(limit + 1)
    except Exception as error:  # zipfile, zlib, lzma and bz2 each have their own errors
        raise PhotoError("It cannot be unpacked: make the archive again, or add this photo itself.") from error
