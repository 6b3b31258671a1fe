"""The models that can be downloaded, as the page tells of them. No gradio."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from headshot_ui.downloads import catalogue, licences, runner
from headshot_ui.downloads.catalogue import Entry, find_entry
from headshot_ui.downloads.records import installed_mark
from headshot_ui.downloads.states import EntryState, entry_state
from headshot_ui.errors import HeadshotError, StoreError
from headshot_ui.own_models import folder_mark, own_models
from headshot_ui.specs import DownloadSpec
from headshot_ui.store import readable_bytes

if TYPE_CHECKING:
    from headshot_ui.settings import Settings
    from headshot_ui.ui.live import Live

STATE_WORDS = {
    "missing": "Not here",
    "unfinished": "Unfinished",
    "there": "Here",
    "unchecked": "Here, not checked",
    "damaged": "Damaged",
}
GET_WORDS = {"missing": "Get", "unfinished": "Go on", "unchecked": "Get", "damaged": "Get again"}
BASIS_WORDS = {
    "published": "Checked against the published checksums.",
    "server": "Checked against the checksums that the server states.",
    "recorded": "No checksum was published: its own was recorded when it came.",
}
NOT_NOW = "Wait until “{}” has ended, or cancel it: it may be using this model."


@dataclass(frozen=True)
class Asked:
    """What one browser is asked about one entry, or told of it."""

    entry: str = ""
    question: Literal["", "licence", "remove"] = ""
    problem: str = ""


def press(live: Live, settings: Settings, do: str, entry_id: str) -> Asked:
    """What a button does: start a job, remove, or ask first. What cannot be done is told under the entry."""
    try:
        entry = find_entry(entry_id)
        if do == "accept":
            licences.accept(entry, settings)
        if do in ("get", "accept"):
            if not licences.accepted(entry, settings):
                return Asked(entry.id, "licence")
            live.submit(DownloadSpec((entry.id,)))
        elif do == "check":
            live.submit(DownloadSpec((entry.id,), check_only=True))
        elif do == "remove":
            _check_unused(live)
            return Asked(entry.id, "remove")
        elif do == "remove-really":
            _check_unused(live)
            runner.remove(entry, settings)
    except HeadshotError as error:
        return Asked(entry_id, "", str(error))
    return Asked()


def log_in(token: str) -> dict[str, str]:
    """Give a token of Hugging Face to its own store; values of the note and of the problem beside the field."""
    from headshot_ui.downloads.access import log_in as keep

    try:
        return {"text": keep(token), "problem": ""}
    except HeadshotError as error:
        return {"text": "", "problem": str(error)}


def _check_unused(live: Live) -> None:
    """Raise StoreError while any job is not finished: a model that is in use must not go."""
    unfinished = live.unfinished()
    if unfinished:
        raise StoreError(NOT_NOW.format(unfinished[0].snapshot.title))


def panel_mark(live: Live, settings: Settings) -> tuple[Any, ...]:
    """Changes whenever the rows do, but for what is asked."""
    return (models_mark(settings), tuple(sorted(_busy(live).items())))


def models_mark(settings: Settings) -> tuple[Any, ...]:
    """Changes when there are other models to choose from: downloaded, removed, or put into the folder by hand."""
    return (installed_mark(settings), folder_mark(settings))


def panel_value(live: Live, settings: Settings, asked: Asked | None = None) -> dict[str, Any]:
    """Values of the template: a row for every entry."""
    busy, told = _busy(live), asked or Asked()
    rows = [_row(entry, settings, busy.get(entry.id, ""), told) for entry in catalogue.load_catalogue().values()]
    own = [{"id": model.id, "title": model.title, "text": model.problem or model.note, "wrong": bool(model.problem)}
           for model in own_models(settings)]  # fmt: skip
    return {"rows": rows, "own": own or None, "folder": str(settings.models_dir)}


def _busy(live: Live) -> dict[str, str]:
    """Entry → what is being done with it."""
    busy: dict[str, str] = {}
    for job in live.unfinished():
        spec = live.spec_of(job)
        if isinstance(spec, DownloadSpec):
            waiting = job.snapshot.state == "queued"
            doing = "Waiting …" if waiting else "Being checked …" if spec.check_only else "Being downloaded …"
            busy |= dict.fromkeys(spec.entries, doing)
    return busy


def _row(entry: Entry, settings: Settings, doing: str, asked: Asked) -> dict[str, Any]:
    state = entry_state(entry, settings)
    mine = asked.entry == entry.id
    question = asked.question if mine and not doing else ""
    free = not doing and not question
    return {
        "id": entry.id,
        "title": entry.title,
        "note": entry.note,
        "size": state.size_words,
        "licence": entry.licence,
        "licence_page": entry.licence_page,
        "source": entry.source.hub or f"{entry.source.release} {entry.source.tag}",
        "source_page": entry.source.page,
        "state": state.state,
        "state_words": doing or STATE_WORDS[state.state],
        "detail": "" if doing else _detail(state),
        "get": GET_WORDS.get(state.state, "") if free else "",
        "check": free and state.state in ("there", "unchecked", "damaged"),
        "remove": free and state.there_bytes > 0,
        "asks_licence": question == "licence",
        "terms": licences.terms(entry) if question == "licence" else "",
        "asks_remove": question == "remove",
        "frees": readable_bytes(state.there_bytes),
        "problem": asked.problem if mine else "",
    }


def _detail(state: EntryState) -> str:
    if state.state == "there" and state.basis:
        return BASIS_WORDS[state.basis]
    return state.detail
