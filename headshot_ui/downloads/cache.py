"""Files that are on this computer already, in the hub's cache (HF_HOME, HF_HUB_CACHE) or as part of another model:
linked, not fetched again."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.downloads.catalogue import Entry, RemoteFile
from headshot_ui.downloads.records import Basis, recorded_hashes
from headshot_ui.downloads.sources import is_offline
from headshot_ui.downloads.states import Tick, git_sha1_of, path_of
from headshot_ui.store import atomic_file, sha256_of

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

_log = logging.getLogger(__name__)


def cached_files(entry: Entry, file: RemoteFile) -> Iterator[Path]:
    """Where the cache has a file of that name: at the wanted revision, then at the main one. Whole or not is open."""
    if not entry.source.hub:
        return
    from huggingface_hub import constants, try_to_load_from_cache

    seen = set()
    for revision in (entry.source.revision, "main"):
        found = try_to_load_from_cache(entry.source.hub, file.remote, constants.HF_HUB_CACHE, revision)
        if isinstance(found, str) and (path := Path(found).resolve()) not in seen:
            seen.add(path)
            yield path


def files_of_others(file: RemoteFile, settings: Settings) -> Iterator[Path]:
    """Where another entry put a file of the same published hash: two base models may share their text encoders."""
    if file.sha256 is None:
        return
    own = path_of(file.place, settings)
    for path, sha256 in recorded_hashes(settings).items():
        if sha256 == file.sha256 and path != own and path.is_file():
            yield path.resolve()


def check_cached(file: RemoteFile, path: Path, tick: Tick) -> tuple[str, Basis] | None:
    """(sha256, by what it was checked) of a cached file that is what it should be; None for any other.

    The cache names a file by the checksum that the server stated, where it can make links. Raises StoreError and
    Cancelled.
    """
    found = sha256_of(path, tick)
    if file.sha256 is not None:
        good, basis = found == file.sha256, "published"
    elif len(path.name) == 64:
        good, basis = found == path.name, "server"
    elif len(path.name) == 40:
        good, basis = git_sha1_of(path) == path.name, "server"
    else:
        good, basis = is_offline(), "recorded"  # with a network, the server will tell
    if good:
        return found, basis  # type: ignore[return-value]
    _log.warning("%s is damaged or another file; it is not used", path)
    return None


def take_over(source: Path, target: Path) -> str:
    """Put a cached file at ``target``, taking no room where that is possible; "hard link", "link" or "copy".

    A hard link is the file itself, so it stays when the cache is emptied. Raises StoreError.
    """
    with atomic_file(target) as temporary:
        for way, put in (("hard link", os.link), ("link", os.symlink)):
            with suppress(OSError, NotImplementedError):  # another disk; Windows without the right to make links
                put(source, temporary)
                _log.info("%s is a %s to the hub's cache", target, way)
                return way
        shutil.copyfile(source, temporary)
        return "copy"


def share(source: Path, target: Path) -> str:
    """Put a file of another entry at ``target`` too; "hard link" or "copy", so that each can be removed alone.

    Raises StoreError.
    """
    with atomic_file(target) as temporary:
        with suppress(OSError, NotImplementedError):  # another disk, or a file system without links
            os.link(source, temporary)
            _log.info("%s is the same file as %s", target, source)
            return "hard link"
        shutil.copyfile(source, temporary)
        return "copy"
