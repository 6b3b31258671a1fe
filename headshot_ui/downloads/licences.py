"""The licences of entries that have to be accepted once, before a byte is fetched.

An entry with ``terms`` speaks for itself; one without them is a restorer, whose licence stands with the restorer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headshot_ui.errors import ModelError
from headshot_ui.restoration import licence

if TYPE_CHECKING:
    from headshot_ui.downloads.catalogue import Entry
    from headshot_ui.settings import Settings


def accepted(entry: Entry, settings: Settings) -> bool:
    """Whether it may be fetched: nothing has to be accepted, or it was."""
    if not entry.non_commercial:
        return True
    if entry.terms:
        return licence.accepted_as(settings, entry.id, entry.licence)
    return licence.accepted(settings, entry.id)


def accept(entry: Entry, settings: Settings) -> None:
    """Remember that its licence was accepted. Raises StoreError if it is not written."""
    if entry.terms:
        licence.accept_as(settings, entry.id, entry.licence)
    else:
        licence.accept(settings, entry.id)


def terms(entry: Entry) -> str:
    """What a person is shown before accepting."""
    return entry.terms or licence.terms(entry.id)


def check(entry: Entry, settings: Settings) -> None:
    """Raise ModelError unless a licence that must be accepted was."""
    if not accepted(entry, settings):
        raise ModelError(
            f"{entry.title} is for non-commercial use only ({entry.licence}, {entry.licence_page}): accept its licence "
            f"once, on the page under Models or with “models get {entry.id} --accept-licence”."
        )
