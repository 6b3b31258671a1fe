"""Licences that a person has to accept once, kept in ``models/licences.json`` with date and name."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.errors import ModelError, StoreError
from headshot_ui.store import read_json, write_json_atomic

if TYPE_CHECKING:
    from headshot_ui.restoration.protocol import Restorer
    from headshot_ui.settings import Settings

FILE = "licences.json"


def accepted(settings: Settings, restorer_id: str) -> bool:
    """Whether the licence of this restorer was accepted, under the name it has now."""
    return accepted_as(settings, restorer_id, _licence(restorer_id))


def accept(settings: Settings, restorer_id: str) -> None:
    """Remember that the licence was accepted. Raises ModelError for an unknown restorer, StoreError if not written."""
    accept_as(settings, restorer_id, _licence(restorer_id))


def accepted_as(settings: Settings, name: str, licence: str) -> bool:
    """Whether the licence of something of that name was accepted, under the name the licence has now."""
    entry = _entries(settings).get(name)
    return isinstance(entry, dict) and entry.get("licence") == licence


def accept_as(settings: Settings, name: str, licence: str) -> None:
    """Remember that the licence of something of that name was accepted. Raises StoreError if it is not written."""
    entry = {"licence": licence, "accepted": datetime.now(UTC).isoformat(timespec="seconds")}
    write_json_atomic(_file(settings), {**_entries(settings), name: entry})


def terms(restorer_id: str) -> str:
    """What a person is shown before accepting. Raises ModelError for an unknown restorer."""
    return _restorer(restorer_id).info.terms


def _licence(restorer_id: str) -> str:
    return _restorer(restorer_id).info.licence


def _restorer(restorer_id: str) -> Restorer:
    from headshot_ui.restoration import all_restorers

    restorers = all_restorers()
    if restorer_id not in restorers:
        raise ModelError(f"There is no restorer “{restorer_id}”; choose one of {', '.join(restorers)}.")
    return restorers[restorer_id]


def _file(settings: Settings) -> Path:
    return settings.models_dir / FILE


def _entries(settings: Settings) -> dict[str, Any]:
    """Nothing counts as accepted when the file cannot be read."""
    if not _file(settings).is_file():
        return {}
    try:
        data = read_json(_file(settings))
    except StoreError:
        return {}
    return data if isinstance(data, dict) else {}
