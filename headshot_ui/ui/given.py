"""Pictures that were uploaded to be restored, kept beside the results so that they can be restored again another day.

The page's own folder for uploads goes away with the program. What no result needs any more is removed at the next
start. No gradio.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from headshot_ui.errors import StoreError
from headshot_ui.restoration.pictures import collect_pictures
from headshot_ui.store import Store, atomic_file, check_free_space, sha256_of, write_bytes_atomic
from headshot_ui.ui.picture_sets import picture_id

GIVEN = "given"  # folder beside the sets of restored pictures
UNPACKED = ".zip.files"  # end of the folder with single pictures of an archive


def keep_given(store: Store, person: str, uploads: Sequence[Path]) -> tuple[Path, ...]:
    """The same files in the person's own folder; equal files are kept once. Raises StoreError."""
    return tuple(_kept(store, person, path) for path in uploads)


def _kept(store: Store, person: str, path: Path) -> Path:
    kept = store.restored_dir(person) / GIVEN / sha256_of(path)[:16] / path.name
    if not kept.is_file():
        check_free_space(kept, path.stat().st_size)
        with atomic_file(kept) as temporary:
            shutil.copyfile(path, temporary)
    return kept


# --- pictures of an archive -----------------------------------------------------------------------------------
def archive_of(source: Path) -> Path | None:
    """The archive that ``source`` is a member of; None for a file of its own, and where the archive is gone."""
    parents = (parent for parent in source.parents if parent.suffix.lower() == ".zip")
    return next((parent for parent in parents if parent.is_file()), None)


def is_there(source: Path) -> bool:
    """Whether a picture that was restored once can still be read."""
    return source.is_file() or archive_of(source) is not None


def as_file(source: Path) -> Path:
    """``source``, or the copy of an archive's member beside the archive. Raises StoreError and PhotoError."""
    archive = archive_of(source)
    if source.is_file() or archive is None:
        return source
    copy = archive.with_name(archive.stem + UNPACKED) / picture_id(source) / source.name
    if not copy.is_file():
        items, _ = collect_pictures([str(archive)])
        member = next((item for item in items if item.source == source), None)
        if member is None:
            raise StoreError(f"“{source.name}” is no longer in {archive.name}: add it again.")
        write_bytes_atomic(copy, member.read())
    return copy


def origin_of(source: Path) -> str:
    """The same text for a member of an archive and its copy, and for nothing else."""
    return source.parent.name if source.parent.parent.name.endswith(UNPACKED) else picture_id(source)


# --- tidying ---------------------------------------------------------------------------------------------------
def has_given(store: Store, person: str) -> bool:
    """Whether uploads of a person are kept at all."""
    return (store.restored_dir(person) / GIVEN).is_dir()


def forget_given(store: Store, person: str, sources: Sequence[Path]) -> None:
    """Remove what none of ``sources``, those of all results, was made from. Only while nothing is being restored."""
    folder = store.restored_dir(person) / GIVEN
    needed = {_first_part(folder, source) for source in sources}
    try:
        there = [entry for entry in os.scandir(folder) if entry.name not in needed]
    except OSError:
        return
    for entry in there:
        shutil.rmtree(entry.path, ignore_errors=True)


def _first_part(folder: Path, source: Path) -> str:
    return source.relative_to(folder).parts[0] if source.is_relative_to(folder) else ""
