"""What lies under the models folder of each entry: told quickly from sizes, or surely from every byte."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from headshot_ui.downloads.catalogue import Entry, RemoteFile
from headshot_ui.downloads.records import Basis, FileRecord, read_record, with_file, write_record
from headshot_ui.errors import StoreError
from headshot_ui.store import read_json, readable_bytes, sha256_of, told_plainly, write_json_atomic

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

State = Literal["missing", "unfinished", "there", "unchecked", "damaged"]
CHUNK = 2**20
#: In words, for a file whose own hash was noted because none was published.
RECORDED_NOW = "not verified against a published hash; recorded now"

#: Called with the bytes read since the last call; may raise Cancelled.
Tick = Callable[[int], None]


@dataclass(frozen=True)
class EntryState:
    """One entry as people are told of it."""

    id: str
    state: State
    detail: str  # one sentence more; "" where the state says it all
    there_bytes: int  # whole files and parts of files
    total_bytes: int
    basis: Basis | None  # the weakest of its files; None where nothing was checked

    @property
    def size_words(self) -> str:
        """ "6.5 GB", or how much of it is there while it is unfinished."""
        total = readable_bytes(self.total_bytes)
        return f"{readable_bytes(self.there_bytes)} of {total}" if self.state == "unfinished" else total


@dataclass(frozen=True)
class FileCheck:
    """What ``verify`` found of one file."""

    path: Path
    ok: bool
    words: str  # by what it was checked, or what is wrong


def path_of(place: str, settings: Settings) -> Path:
    """Where a file of the catalogue lies, or will lie."""
    return settings.models_dir.joinpath(*place.split("/"))


def part_of(path: Path) -> Path:
    """Where the beginning of a file lies until it is whole; no reader of models takes it for one."""
    return path.with_name(f".{path.name}.part")


def git_sha1_of(path: Path) -> str:
    """As git names a file, and the hub a small one. Raises StoreError."""
    with told_plainly(path, "read"):
        content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def believed(path: Path, record: FileRecord | None) -> bool:
    """Whether it is, by size and time of change, still the file that was checked."""
    if record is None or record.damaged:
        return False
    try:
        now = path.stat()
    except OSError:
        return False
    return (now.st_size, now.st_mtime_ns) == (record.size, record.mtime_ns)


def entry_state(entry: Entry, settings: Settings) -> EntryState:
    """From names, sizes and the record alone. Raises nothing."""
    record = read_record(entry.id, settings)
    found = {file.place: _quick(file, record.files.get(file.place), settings) for file in entry.files}
    there = sum(size for _, size in found.values())
    total = sum(_size(file, record.files.get(file.place)) for file in entry.files)
    bases = {each.basis for place, each in record.files.items() if place in found}
    basis = next((kind for kind in ("recorded", "server", "published") if kind in bases), None)
    states = {state for state, _ in found.values()}
    marked = all(path_of(place, settings).is_file() for place in entry.written)

    def told(state: State, detail: str = "") -> EntryState:
        return EntryState(entry.id, state, detail, there, total, basis)

    if "damaged" in states:
        names = ", ".join(str(path_of(place, settings)) for place, (state, _) in found.items() if state == "damaged")
        return told("damaged", f"{names} is not as it should be: get it again.")
    if "missing" in states or not marked:
        return told("unfinished" if there else "missing", "Get goes on where it stopped." if there else "")
    if "unchecked" in states:
        return told("unchecked", "It was put there by hand; check it to be sure.")
    return told("there", f"Its hash was {RECORDED_NOW}." if basis == "recorded" else "")


def _quick(file: RemoteFile, record: FileRecord | None, settings: Settings) -> tuple[State, int]:
    """State of one file, and how many of its bytes are there."""
    path = path_of(file.place, settings)
    if not path.is_file():
        part = part_of(path)
        return "missing", part.stat().st_size if part.is_file() else 0
    size = path.stat().st_size
    if believed(path, record):
        return "there", size
    wrong_size = size != _size(file, record) and (record is not None or file.size_is_exact)
    if wrong_size or (record is not None and record.damaged):
        return "damaged", 0
    return "unchecked", size


def _size(file: RemoteFile, record: FileRecord | None) -> int:
    return file.size if record is None else record.size


# --- every byte -------------------------------------------------------------------------------------
def verify(entry: Entry, settings: Settings, tick: Tick = lambda count: None) -> tuple[FileCheck, ...]:
    """Read every file of an entry that is there, and remember what was found. Raises StoreError and Cancelled."""
    record = read_record(entry.id, settings)
    checks = []
    for file in entry.files:
        path = path_of(file.place, settings)
        if not path.is_file():
            checks.append(FileCheck(path, False, "missing"))
            continue
        known = record.files.get(file.place)
        check, now = check_file(file, path, known, tick)
        record = with_file(record, file.place, now)
        write_record(record, settings)
        checks.append(check)
    if all(check.ok for check in checks):
        complete(entry, settings)
    return tuple(checks)


def check_file(file: RemoteFile, path: Path, known: FileRecord | None, tick: Tick) -> tuple[FileCheck, FileRecord]:
    """Read one file that is there; what to tell of it, and what to remember. Raises StoreError and Cancelled."""
    found = sha256_of(path, tick)
    wanted = file.sha256 or (known.sha256 if known else None)
    status = path.stat()
    basis: Basis = "published" if file.sha256 else known.basis if known else "recorded"
    now = FileRecord(status.st_size, wanted or found, basis, known is not None and known.ours, status.st_mtime_ns)
    if wanted not in (None, found):
        told = f"its sha256 is {'not the published one' if file.sha256 else 'another than when it was fetched'}"
        size = _size(file, known)
        if status.st_size != size and (known is not None or file.size_is_exact):
            told = f"it has {status.st_size} bytes instead of {size}"
        return FileCheck(path, False, f"damaged: {told}"), replace(now, size=size, damaged=True)
    return FileCheck(path, True, basis_words(basis, new=known is None)), now


def basis_words(basis: Basis, new: bool = False) -> str:
    """By what a file was checked."""
    if basis == "recorded":
        return RECORDED_NOW if new else "as when it was fetched; no hash was published"
    return "as published" if basis == "published" else "as the server stated it"


def complete(entry: Entry, settings: Settings) -> None:
    """Write what makes the folder a model that is offered, or take back what was there of it. Raises StoreError."""
    for place, content in entry.written.items():
        path = path_of(place, settings)
        if path.is_file():
            continue
        if waiting(path).is_file():
            with told_plainly(path, "written"):
                os.replace(waiting(path), path)
        else:
            write_json_atomic(path, content)
    if entry.written:
        write_record(read_record(entry.id, settings), settings)  # so that ``installed_mark`` is another one now


def take_down(entry: Entry, settings: Settings) -> None:
    """While it is not whole, the folder is no model to choose; ``complete`` ends that. Raises StoreError."""
    for place in entry.written:
        path = path_of(place, settings)
        if path.is_file():
            with told_plainly(path, "renamed"):
                os.replace(path, waiting(path))
            write_record(read_record(entry.id, settings), settings)


def claim(entry: Entry, settings: Settings) -> None:
    """Before the first file is put there: the folder is one of this entry, not a damaged one of somebody's.

    Raises StoreError.
    """
    for place, content in entry.written.items():
        path = path_of(place, settings)
        if not path.is_file() and not waiting(path).is_file():
            write_json_atomic(waiting(path), content)


def claims(entry: Entry, settings: Settings) -> tuple[Path, ...]:
    """What ``claim`` wrote, and nobody changed."""
    found = []
    for place, content in entry.written.items():
        path = waiting(path_of(place, settings))
        with suppress(StoreError):
            if path.is_file() and read_json(path) == content:
                found.append(path)
    return tuple(found)


def waiting(path: Path) -> Path:
    """Where such a file is kept, with whatever was changed in it, while the others are not whole."""
    return path.with_name(f"{path.name}.waiting")
