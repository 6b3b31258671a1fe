"""Getting whole entries: what is here already, what the hub's cache has, room on the disk, and then the rest."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx2

from headshot_ui.downloads import licences, problems, states
from headshot_ui.downloads.cache import cached_files, check_cached, files_of_others, share, take_over
from headshot_ui.downloads.catalogue import Entry, RemoteFile, find_entry
from headshot_ui.downloads.fetch import Errand, fetch, forget_part
from headshot_ui.downloads.records import Basis, FileRecord, Record, forget, read_record, with_file, write_record
from headshot_ui.downloads.sources import Remote, is_offline, locate, open_client
from headshot_ui.downloads.states import EntryState, FileCheck, entry_state, part_of, path_of
from headshot_ui.lock import hold
from headshot_ui.store import free_bytes, told_plainly

if TYPE_CHECKING:
    from headshot_ui.jobs import Reporter
    from headshot_ui.settings import Settings
    from headshot_ui.specs import DownloadSpec

MB = 2**20
CHECKING, FETCHING = "Checking what is here, in MB", "Downloading, in MB"
SPARE_BYTES = 64 * MB  # left free on the disk
REPORTS_PER_S = 20

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class GotEntry:
    """One entry after it was got or checked."""

    id: str
    title: str
    state: EntryState
    checks: tuple[FileCheck, ...]  # every file
    fetched_bytes: int  # over the network
    cached_bytes: int  # that were on this computer: in the hub's cache, or as part of another model
    already: bool  # everything was here


@dataclass(frozen=True)
class DownloadResult:
    """What a download or a check came to."""

    folder: Path  # the models folder
    entries: tuple[GotEntry, ...]

    @property
    def ok(self) -> bool:
        return all(check.ok for entry in self.entries for check in entry.checks)


@dataclass(frozen=True)
class _Need:
    """A file that has to be fetched."""

    entry: Entry
    file: RemoteFile
    remote: Remote

    def errand(self, settings: Settings) -> Errand:
        return Errand(self.entry, self.file, self.remote, path_of(self.file.place, settings))


class _Bar:
    """Bytes of a stage, told a few times a second. Every call may raise Cancelled."""

    def __init__(self, report: Reporter, stage: str, total: int) -> None:
        self._report, self._stage, self._total = report, stage, total
        self._done, self._told_s = 0, 0.0

    def at(self, done: int) -> None:
        self._done = done
        now = time.monotonic()
        if now - self._told_s >= 1 / REPORTS_PER_S or done >= self._total:
            self._told_s = now
            self._report(self._stage, done // MB, max(1, -(-self._total // MB)))

    def add(self, count: int) -> None:
        self.at(self._done + count)


def run_download(spec: DownloadSpec, settings: Settings, report: Reporter) -> DownloadResult:
    """Get or check the entries of ``spec``, one after the other.

    Raises DownloadError, ModelError (a licence is not accepted), StoreError and Cancelled; what came is kept.
    """
    entries = [find_entry(entry_id) for entry_id in spec.entries]
    if spec.check_only:
        with hold(settings.models_dir, "download"):
            return DownloadResult(settings.models_dir, tuple(_checked(entry, settings, report) for entry in entries))
    for entry in entries:
        licences.check(entry, settings)
    with hold(settings.models_dir, "download"), open_client() as client:
        return _get(entries, settings, report, client)


# --- getting ----------------------------------------------------------------------------------------
def _get(entries: list[Entry], settings: Settings, report: Reporter, client: httpx2.Client) -> DownloadResult:
    report("Looking for what is here", 0, 1)
    wanted = {entry.id: _not_here(entry, settings, report) for entry in entries}
    for entry in entries:
        if wanted[entry.id]:
            states.take_down(entry, settings)
    cached = {entry.id: _from_here(entry, wanted[entry.id], settings, report) for entry in entries}
    left = [(entry, file) for entry in entries for file in wanted[entry.id] if file.place not in cached[entry.id]]
    needs = [_need(entry, file, settings, client, report) for entry, file in left]
    _check_room(needs, settings)
    fetched = _fetch_all(needs, cached, settings, report, client)
    for entry in entries:
        states.complete(entry, settings)
    return DownloadResult(
        settings.models_dir,
        tuple(
            _got(entry, settings, fetched.get(entry.id, 0), sum(cached[entry.id].values()), not wanted[entry.id])
            for entry in entries
        ),
    )


def _not_here(entry: Entry, settings: Settings, report: Reporter) -> tuple[RemoteFile, ...]:
    """The files to get. Those of which size or time of change is new are read; others of ours are believed."""
    record = read_record(entry.id, settings)
    doubtful = [
        file for file in entry.files
        if path_of(file.place, settings).is_file()
        and not states.believed(path_of(file.place, settings), record.files.get(file.place))
    ]  # fmt: skip
    bar = _Bar(report, CHECKING, sum(path_of(file.place, settings).stat().st_size for file in doubtful))
    for file in doubtful:
        known = record.files.get(file.place)
        path = path_of(file.place, settings)
        if known is not None and known.damaged and path.stat().st_mtime_ns == known.mtime_ns:
            continue  # ``verify`` has seen it, and it is the same still
        check, now = states.check_file(file, path, known, bar.add)
        record = with_file(record, file.place, now)
        write_record(record, settings)
        if not check.ok:
            _log.warning("%s: %s", path, check.words)
    return tuple(
        file for file in entry.files
        if not states.believed(path_of(file.place, settings), record.files.get(file.place))
    )  # fmt: skip


def _from_here(entry: Entry, wanted: tuple[RemoteFile, ...], settings: Settings, report: Reporter) -> dict[str, int]:
    """Place → bytes of the wanted files that are on this computer already."""
    shared = _from_others(entry, wanted, settings, report)
    left = tuple(file for file in wanted if file.place not in shared)
    return shared | _from_cache(entry, left, settings, report)


def _from_others(entry: Entry, wanted: tuple[RemoteFile, ...], settings: Settings, report: Reporter) -> dict[str, int]:
    """Place → bytes of the wanted files that lie here already as part of another entry: shared, not fetched twice."""
    found = [(file, path) for file in wanted for path in files_of_others(file, settings)]
    bar = _Bar(report, "Checking what other models have of it, in MB", sum(path.stat().st_size for _, path in found))
    taken: dict[str, int] = {}
    for file, path in found:
        if file.place in taken:
            continue
        checked = check_cached(file, path, bar.add)
        if checked is not None:
            _take(entry, file, path, checked, share, settings, report)
            taken[file.place] = path.stat().st_size
    return taken


def _from_cache(entry: Entry, wanted: tuple[RemoteFile, ...], settings: Settings, report: Reporter) -> dict[str, int]:
    """Place → bytes of the wanted files that the hub's cache had."""
    found = [(file, path) for file in wanted for path in cached_files(entry, file)]
    bar = _Bar(report, "Checking what the hub's cache has, in MB", sum(path.stat().st_size for _, path in found))
    taken: dict[str, int] = {}
    for file, path in found:
        if file.place in taken:
            continue
        checked = check_cached(file, path, bar.add)
        if checked is not None:
            _take(entry, file, path, checked, take_over, settings, report)
            taken[file.place] = path.stat().st_size
    return taken


def _take(
    entry: Entry, file: RemoteFile, path: Path, checked: tuple[str, Basis], way: Callable[[Path, Path], str],
    settings: Settings, report: Reporter,
) -> None:  # fmt: skip
    """Put a checked file that lies elsewhere on this computer in its place."""
    place = path_of(file.place, settings)
    states.claim(entry, settings)
    _set_aside(entry, file, settings, report)
    way(path, place)
    forget_part(place)
    _remember(entry, file, place, *checked, settings)


def _need(entry: Entry, file: RemoteFile, settings: Settings, client: httpx2.Client, report: Reporter) -> _Need:
    if is_offline():
        from huggingface_hub import constants

        raise problems.offline(entry, f"the hub's cache is {constants.HF_HUB_CACHE}")
    report(f"Asking for {entry.title}", 0, 1)
    return _Need(entry, file, locate(entry, file, settings, client))


def _check_room(needs: list[_Need], settings: Settings) -> None:
    """Raise DownloadError, before anything is fetched, when the disk has too little room for all of it."""
    there = sum(_part_bytes(need, settings) for need in needs)
    needed = sum(need.remote.size or need.file.size for need in needs) - there + SPARE_BYTES
    free = free_bytes(settings.models_dir)
    if needs and needed > free:
        raise problems.too_little_room(needed, free, str(settings.models_dir))


def _part_bytes(need: _Need, settings: Settings) -> int:
    part = part_of(path_of(need.file.place, settings))
    return part.stat().st_size if part.is_file() else 0


def _fetch_all(
    needs: list[_Need], cached: dict[str, dict[str, int]], settings: Settings, report: Reporter, client: httpx2.Client
) -> dict[str, int]:
    """Bytes by entry. What came for one entry just now and belongs to a later one too is added to ``cached``."""
    fetched: dict[str, int] = {}
    total = sum(need.remote.size or need.file.size for need in needs)
    bar, before = _Bar(report, FETCHING, total), _Bar(report, "Reading what came before, in MB", total)
    done = 0
    for need in needs:
        shared = _from_others(need.entry, (need.file,), settings, report)
        if shared:
            cached[need.entry.id] |= shared
            done += sum(shared.values())
            continue
        errand = need.errand(settings)
        begun = done

        def progress(there: int, reading: bool = False, begun: int = begun) -> None:
            (before if reading else bar).at(begun + there)

        states.claim(need.entry, settings)
        _set_aside(need.entry, need.file, settings, report)
        came = fetch(client, errand, progress)
        done += came.size
        fetched[need.entry.id] = fetched.get(need.entry.id, 0) + came.size
        stated = need.remote.sha256 or need.remote.git_sha1
        basis: Basis = "published" if need.file.sha256 else "server" if stated else "recorded"
        _remember(need.entry, need.file, errand.place, came.sha256, basis, settings)
        if basis == "recorded":
            report(FETCHING, done // MB, max(1, done // MB), note=f"{errand.place}: {states.RECORDED_NOW}.")
    return fetched


def _set_aside(entry: Entry, file: RemoteFile, settings: Settings, report: Reporter) -> None:
    """A file that somebody put there by hand, and that is not the right one, is kept under another name."""
    place = path_of(file.place, settings)
    known = read_record(entry.id, settings).files.get(file.place)
    if not place.is_file() or (known is not None and known.ours):
        return
    aside = place.with_name(f"{place.name}.replaced")
    with told_plainly(place, "renamed"):
        os.replace(place, aside)
    report(FETCHING, 0, 1, note=f"{place} was not the right file; it is kept as {aside.name}.")


def _remember(entry: Entry, file: RemoteFile, place: Path, sha256: str, basis: Basis, settings: Settings) -> None:
    status = place.stat()
    now = FileRecord(status.st_size, sha256, basis, True, status.st_mtime_ns)
    write_record(with_file(read_record(entry.id, settings), file.place, now), settings)


def _got(entry: Entry, settings: Settings, fetched: int, cached: int, already: bool) -> GotEntry:
    record = read_record(entry.id, settings)
    checks = tuple(
        FileCheck(path_of(place, settings), True, states.basis_words(each.basis, new=not already))
        for place, each in record.files.items()
    )
    return GotEntry(entry.id, entry.title, entry_state(entry, settings), checks, fetched, cached, already)


# --- checking and removing --------------------------------------------------------------------------
def _checked(entry: Entry, settings: Settings, report: Reporter) -> GotEntry:
    total = sum(path_of(file.place, settings).stat().st_size for file in entry.files
                if path_of(file.place, settings).is_file())  # fmt: skip
    bar = _Bar(report, f"Checking {entry.title}, in MB", total)
    bar.at(0)
    checks = states.verify(entry, settings, bar.add)
    return GotEntry(entry.id, entry.title, entry_state(entry, settings), checks, 0, 0, False)


@dataclass(frozen=True)
class Removed:
    """What removing an entry did."""

    id: str
    files: tuple[Path, ...]
    freed_bytes: int
    kept: tuple[Path, ...]  # put there by hand, so not removed


def remove(entry: Entry, settings: Settings) -> Removed:
    """Remove the files this program put there, and what came of unfinished ones. Raises StoreError.

    What was put there by hand stays, and so does everything that belongs to no entry.
    """
    with hold(settings.models_dir, "download"):
        record = read_record(entry.id, settings)
        ours = [place for place, each in record.files.items() if each.ours]
        freed = sum(forget_part(path_of(file.place, settings)) for file in entry.files)
        gone = []
        written = [path_of(place, settings) for place in entry.written] if ours else []
        written += [*map(states.waiting, written), *states.claims(entry, settings)]
        for path in [*dict.fromkeys(written), *(path_of(place, settings) for place in ours)]:
            if path.is_file() or path.is_symlink():
                freed += path.lstat().st_size
                with told_plainly(path, "removed"):
                    path.unlink()
                gone.append(path)
        kept = tuple(path_of(file.place, settings) for file in entry.files if path_of(file.place, settings).is_file())
        _remember_kept(record, ours, settings)
        _remove_empty_folders(entry, settings)
        return Removed(entry.id, tuple(gone), freed, kept)


def _remember_kept(record: Record, ours: list[str], settings: Settings) -> None:
    left = {place: each for place, each in record.files.items() if place not in ours}
    if left:
        write_record(Record(record.entry, left), settings)
    else:
        forget(record.entry, settings)


def _remove_empty_folders(entry: Entry, settings: Settings) -> None:
    folders = {path_of(file.place, settings).parent for file in entry.files}
    folders |= {settings.models_dir / file.place.split("/")[0] for file in entry.files}
    for folder in sorted(folders, key=lambda path: -len(path.parts)):
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
