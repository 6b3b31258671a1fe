"""What was put under the models folder, by whom, and by what it was checked: ``models/.downloads/<id>.json``.

Only files recorded as ours are ever removed. Size and time of change tell quickly whether a file is still the one
that was checked; only ``models verify`` reads all of it again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from headshot_ui.errors import StoreError
from headshot_ui.store import read_json, told_plainly, write_json_atomic

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

FOLDER = ".downloads"
#: By what a file was checked: the hash in the catalogue, the one the server states, or none (its own was noted).
Basis = Literal["published", "server", "recorded"]


@dataclass(frozen=True)
class FileRecord:
    """One file that lies in its place."""

    size: int  # bytes
    sha256: str
    basis: Basis
    ours: bool  # False: it lay there before
    mtime_ns: int
    damaged: bool = False  # noticed by ``models verify``


@dataclass(frozen=True)
class Record:
    """All that is known of one entry."""

    entry: str
    files: Mapping[str, FileRecord] = field(default_factory=dict)  # by place


def read_record(entry_id: str, settings: Settings) -> Record:
    """An empty one where nothing was ever downloaded, or where it cannot be read."""
    path = _file(entry_id, settings)
    if not path.is_file():
        return Record(entry_id)
    try:
        data = read_json(path)
        return Record(entry_id, {place: FileRecord(**each) for place, each in data["files"].items()})
    except (StoreError, KeyError, TypeError, AttributeError):
        return Record(entry_id)


def recorded_hashes(settings: Settings) -> dict[Path, str]:
    """File → SHA-256 with which it came, of everything that was downloaded or checked."""
    folder, known = settings.models_dir / FOLDER, {}
    for path in sorted(folder.glob("*.json")):
        for place, each in read_record(path.stem, settings).files.items():
            known[settings.models_dir / place] = each.sha256
    return known


def write_record(record: Record, settings: Settings) -> None:
    """Raises StoreError."""
    write_json_atomic(_file(record.entry, settings), asdict(record))


def with_file(record: Record, place: str, file: FileRecord | None) -> Record:
    """With another state of one file; None: it is not there."""
    files: dict[str, Any] = {name: each for name, each in record.files.items() if name != place}
    return Record(record.entry, files if file is None else {**files, place: file})


def forget(entry_id: str, settings: Settings) -> None:
    """Raises StoreError."""
    path = _file(entry_id, settings)
    with told_plainly(path, "removed"):
        path.unlink(missing_ok=True)


def installed_mark(settings: Settings) -> tuple[tuple[str, int], ...]:
    """Another value whenever something was downloaded, checked or removed; takes microseconds."""
    folder = settings.models_dir / FOLDER
    try:
        return tuple(sorted((path.name, path.stat().st_mtime_ns) for path in folder.glob("*.json")))
    except OSError:
        return ()


def _file(entry_id: str, settings: Settings) -> Path:
    return settings.models_dir / FOLDER / f"{entry_id}.json"
