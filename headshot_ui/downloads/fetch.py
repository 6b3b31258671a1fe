"""Fetching one file: into a part beside its place, going on after a break, checked, and only then put in place."""

from __future__ import annotations

import hashlib
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx2

from headshot_ui.downloads import problems
from headshot_ui.downloads.catalogue import Entry, RemoteFile
from headshot_ui.downloads.sources import Remote
from headshot_ui.downloads.states import CHUNK, git_sha1_of, part_of
from headshot_ui.errors import DownloadError, StoreError
from headshot_ui.store import read_json, told_plainly, write_json_atomic

TRIES = 8  # in a row without a single new byte
PIECE = 2**17  # bytes read at once: a cancel is noticed between two, on a slow line too
_TRY_AGAIN = (408, 416, 429, 500, 502, 503, 504)


class Progress(Protocol):
    """How far one file is."""

    def __call__(self, there: int, reading: bool = False) -> None:
        """So many of its bytes are there; ``reading``: of those that came before. Raises Cancelled after a cancel."""


@dataclass(frozen=True)
class Errand:
    """What is fetched, from where, to where."""

    entry: Entry
    file: RemoteFile
    remote: Remote
    place: Path

    @property
    def size(self) -> int | None:
        """Bytes that have to come; None where nobody knows."""
        return self.remote.size or (self.file.size if self.file.size_is_exact else None)

    @property
    def mark(self) -> str:
        """By which a part is known to be of the same file."""
        return self.remote.sha256 or self.file.sha256 or self.remote.mark


@dataclass(frozen=True)
class Fetched:
    """A file that came whole."""

    size: int
    sha256: str


def fetch(client: httpx2.Client, errand: Errand, progress: Progress) -> Fetched:
    """Fetch one file. What came before a cancel or an error stays in the part and is not fetched again.

    Raises DownloadError, StoreError and Cancelled; in the file's place is then what was there before.
    """
    part = _Part(part_of(errand.place), errand.mark, progress)
    went_on = part.size > 0
    _all_of_it(client, errand, part, progress)
    if _as_wanted(errand, part):
        part.put(errand.place)
        return Fetched(part.size, part.sha256)
    part.throw_away()
    if went_on:  # what lay there may have been damaged meanwhile; once from the beginning
        return fetch(client, errand, progress)
    raise problems.wrong_hash(errand.file, errand.remote.url, published=errand.file.sha256 is not None)


def forget_part(place: Path) -> int:
    """Remove what came of a file that is not whole; how many bytes that were. Raises StoreError."""
    part = part_of(place)
    size = part.stat().st_size if part.is_file() else 0
    with told_plainly(part, "removed"):
        part.unlink(missing_ok=True)
        _note_of(part).unlink(missing_ok=True)
    return size


class _Part:
    """The beginning of a file on disk, with its checksum so far. Whose file it is stands in a note beside it."""

    def __init__(self, path: Path, mark: str, progress: Progress) -> None:
        self.path = path
        self.size = 0
        self._sha256 = hashlib.sha256()
        with told_plainly(path, "written"):
            path.parent.mkdir(parents=True, exist_ok=True)
        if path.is_file() and mark and _noted(path) == mark:
            self._read(progress)
        else:
            self.restart()
            write_json_atomic(_note_of(path), {"mark": mark})

    @property
    def sha256(self) -> str:
        return self._sha256.hexdigest()

    def restart(self) -> None:
        """Begin again with nothing."""
        self.size, self._sha256 = 0, hashlib.sha256()
        with told_plainly(self.path, "written"):
            self.path.write_bytes(b"")

    def write(self, answer: httpx2.Response, errand: Errand, progress: Progress) -> None:
        """Append what comes; what was written stays, however it ends."""
        with told_plainly(self.path, "written"), self.path.open("ab") as out:
            for chunk in answer.iter_bytes(PIECE):
                size = self.size + len(chunk)
                if errand.size is not None and size > errand.size:
                    raise problems.another_size(errand.file, errand.remote.url, size, errand.size)
                out.write(chunk)
                self._add(chunk)
                progress(self.size)
            out.flush()
            os.fsync(out.fileno())

    def put(self, place: Path) -> None:
        with told_plainly(place, "written"):
            os.replace(self.path, place)
            _note_of(self.path).unlink(missing_ok=True)

    def throw_away(self) -> None:
        with told_plainly(self.path, "removed"):
            self.path.unlink(missing_ok=True)
            _note_of(self.path).unlink(missing_ok=True)

    def _read(self, progress: Progress) -> None:
        with told_plainly(self.path, "read"), self.path.open("rb") as file:
            while chunk := file.read(CHUNK):
                self._add(chunk)
                progress(self.size, reading=True)

    def _add(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self.size += len(chunk)


def _noted(part: Path) -> str:
    with suppress(StoreError, KeyError, TypeError):
        return str(read_json(_note_of(part))["mark"])
    return ""


def _note_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _as_wanted(errand: Errand, part: _Part) -> bool:
    wanted = errand.file.sha256 or errand.remote.sha256
    if wanted is not None:
        return part.sha256 == wanted
    return errand.remote.git_sha1 is None or git_sha1_of(part.path) == errand.remote.git_sha1


def _all_of_it(client: httpx2.Client, errand: Errand, part: _Part, progress: Progress) -> None:
    """Ask until every byte is there, each time for what is still missing."""
    tries = 0
    progress(part.size)
    while errand.size is None or part.size < errand.size:
        before = part.size
        problem: DownloadError | httpx2.RequestError | None = None
        try:
            problem = _one_answer(client, errand, part, progress)
            if problem is None and errand.size is None:
                return
        except httpx2.RequestError as error:
            problem = error
        tries = 0 if part.size > before else tries + 1
        if tries >= TRIES:
            raise _told(problem, errand, part) from problem
        for _ in range(4 * tries):  # longer every time, and open to a cancel
            progress(part.size)
            time.sleep(0.25)
    if errand.size is not None and part.size > errand.size:
        part.restart()
        _all_of_it(client, errand, part, progress)


def _told(problem: Exception | None, errand: Errand, part: _Part) -> DownloadError:
    if isinstance(problem, DownloadError):
        return problem
    if part.size or not isinstance(problem, httpx2.RequestError):
        return problems.broke_off(errand.file, errand.remote.url, part.size)
    return problems.no_answer(problem, errand.remote.url, errand.entry)


def _one_answer(client: httpx2.Client, errand: Errand, part: _Part, progress: Progress) -> DownloadError | None:
    """Write what one answer brings; a problem that may pass. Raises RequestError when it breaks off, and others."""
    headers = dict(errand.remote.headers)
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
    with client.stream("GET", errand.remote.url, headers=headers) as answer:
        if not answer.is_success:
            refusal = problems.refusal_of(answer.status_code, answer.headers, "Authorization" in headers)
            problem = problems.refused(refusal, errand.file, errand.remote.url, errand.entry)
            if answer.status_code not in _TRY_AGAIN:
                raise problem
            if answer.status_code == 416:
                part.restart()
            return problem
        if part.size and answer.status_code != 206:  # the server does not go on, it begins again
            part.restart()
        part.write(answer, errand, progress)
    return None
