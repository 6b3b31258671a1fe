"""models: what can be downloaded, getting it, checking it, removing it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from getpass import getpass
from typing import TYPE_CHECKING, Any, TextIO

from headshot_ui.commands.job_runner import Context, run_alone
from headshot_ui.commands.licences import show_and_accept
from headshot_ui.commands.output import print_json, print_table
from headshot_ui.commands.shared_options import shared_options
from headshot_ui.errors import SpecError
from headshot_ui.specs import DownloadSpec
from headshot_ui.store import readable_bytes

if TYPE_CHECKING:
    from headshot_ui.downloads.catalogue import Entry
    from headshot_ui.downloads.runner import DownloadResult, GotEntry, Removed
    from headshot_ui.downloads.states import EntryState
    from headshot_ui.settings import Settings

NAME = "models"
SUMMARY = "list, download, check or remove the models of photographs; log in where they ask for an account"
EXAMPLES = """examples:
  models list                                     what there is: size, licence, source, what is here
  models get sdxl arcface retinaface              download; goes on where it stopped, checks every byte
  models get codeformer --accept-licence          accepts a licence that asks for it, once
  models login                                    asks for a token of Hugging Face, for models that need an account
  models get flux-dev --accept-licence            FLUX.1 [dev], for an account that accepted its terms
  models verify                                   read everything that is here and name what is damaged
  models remove sdxl-refiner --yes

Files of Hugging Face's cache are used where it has them (HF_HOME, HF_HUB_CACHE). HF_ENDPOINT names a mirror of the
hub, HEADSHOT_UI_RELEASE_MIRROR one of GitHub's releases, HTTPS_PROXY a proxy; HF_HUB_OFFLINE=1 forbids downloads."""

STATE_WORDS = {
    "missing": "not here",
    "unfinished": "unfinished",
    "there": "here",
    "unchecked": "here, not checked",
    "damaged": "DAMAGED",
}
_ACTIONS: dict[str, tuple[str, str]] = {
    "list": ("say what can be downloaded, and what is here", "models list --json"),
    "get": ("download models, or what is missing or damaged of them", "models get sdxl sdxl-refiner"),
    "verify": ("read every byte of what is here and name what is damaged", "models verify sdxl"),
    "remove": ("remove downloaded models; what was put there by hand stays", "models remove sdxl --yes"),
    "login": ("give Hugging Face's own store a token, typed unseen or on standard input", "models login"),
}
_NAMING_NONE = ("list", "login")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="what to do", metavar="ACTION", dest="action", required=True)
    for name, (summary, example) in _ACTIONS.items():
        one = actions.add_parser(
            name, help=summary, description=summary[0].upper() + summary[1:] + ".",
            epilog=f"example:\n  python3 app.py {example}", parents=[shared_options()],
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        one.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print one JSON object as the last line"
        )
        if name not in _NAMING_NONE:
            nargs = "*" if name == "verify" else "+"
            rest = " (default: all that are here)" if name == "verify" else ""
            one.add_argument(
                "entries", nargs=nargs, metavar="ID", help=f"ids of the models, as “models list” has them{rest}"
            )
        if name == "get":
            one.add_argument("--accept-licence", action="store_true", help="accept the licences that ask for it, once")
        if name == "remove":
            one.add_argument("--yes", action="store_true", help="do not ask")


def run(args: argparse.Namespace, context: Context) -> int:
    return _RUN[args.action](args, context)


# --- list -------------------------------------------------------------------------------------------
def _list(args: argparse.Namespace, context: Context) -> int:
    from headshot_ui.downloads.catalogue import load_catalogue
    from headshot_ui.downloads.states import entry_state
    from headshot_ui.own_models import own_models

    rows = [(entry, entry_state(entry, context.settings)) for entry in load_catalogue().values()]
    own = own_models(context.settings)
    if context.as_json:
        models = [_plain(entry, state) for entry, state in rows]
        print_json({"folder": context.settings.models_dir, "models": models, "own": own})
        return 0
    table = [(entry.id, state.size_words, STATE_WORDS[state.state]) for entry, state in rows]
    print_table([("id", "size", "state"), *table])
    for entry, state in rows:
        print(f"\n{entry.id}: {entry.title}. {entry.note}")
        print(f"  Licence: {entry.licence}, {entry.licence_page}")
        print(f"  Source: {entry.source.page}")
        if state.detail:
            print(f"  {state.detail}")
    if own:
        print("\nPut there by hand:")
    for model in own:
        print(f"\n{model.id}: {model.problem or f'{model.title}. {model.note}'}")
        print(f"  {model.path}")
    print(f"\nThe folder is {context.settings.models_dir}. To get one: python3 app.py models get ID")
    return 0


def _plain(entry: Entry, state: EntryState) -> dict[str, Any]:
    return {
        "id": entry.id, "title": entry.title, "kind": entry.kind, "note": entry.note, "size_bytes": state.total_bytes,
        "licence": entry.licence, "licence_page": entry.licence_page, "non_commercial": entry.non_commercial,
        "source": entry.source.page, "state": state.state, "detail": state.detail, "there_bytes": state.there_bytes,
        "checked_against": state.basis,
    }  # fmt: skip


# --- get and verify ---------------------------------------------------------------------------------
def _get(args: argparse.Namespace, context: Context) -> int:
    entries = _entries(args.entries)
    _licences(entries, context, args.accept_licence)
    result: DownloadResult = run_alone(context, DownloadSpec(tuple(entry.id for entry in entries)))
    return _tell(result, context, got_lines)


def _licences(entries: Sequence[Entry], context: Context, accept: bool) -> None:
    """Ask for what has to be accepted, or accept it. Raises ModelError when it is not accepted."""
    from headshot_ui.downloads import licences

    for entry in entries:
        if licences.accepted(entry, context.settings):
            continue
        show_and_accept(
            entry.id, licences.terms(entry), partial(licences.accept, entry, context.settings), context,
            lambda: accept or _agreed("Accept this licence? [y/N] ", context),
        )  # fmt: skip
        licences.check(entry, context.settings)


def _verify(args: argparse.Namespace, context: Context) -> int:
    from headshot_ui.downloads.states import entry_state

    entries = _entries(args.entries)
    if not args.entries:
        entries = [entry for entry in entries if entry_state(entry, context.settings).state != "missing"]
    if not entries:
        if context.as_json:
            print_json({"ok": True, "models": []})
        else:
            print("None of the models that can be downloaded is here: “models list” shows them.")
        return 0
    result: DownloadResult = run_alone(context, DownloadSpec(tuple(entry.id for entry in entries), check_only=True))
    return _tell(result, context, checked_lines)


def _tell(result: DownloadResult, context: Context, lines: Callable[[GotEntry], Sequence[str]]) -> int:
    if context.as_json:
        print_json({"ok": result.ok, "folder": result.folder, "models": result.entries})
    else:
        print("\n".join(line for entry in result.entries for line in lines(entry)))
        damaged = [entry.id for entry in result.entries if not all(check.ok for check in entry.checks)]
        if damaged:
            print(f"To mend it: python3 app.py models get {' '.join(damaged)}")
    return 0 if result.ok else 1


def got_lines(got: GotEntry) -> Sequence[str]:
    """What came of getting one entry, in a line or two."""
    if got.already:
        return [f"{got.id}: everything is here already ({readable_bytes(got.state.total_bytes)})."]
    parts = [f"{readable_bytes(got.fetched_bytes)} downloaded"] if got.fetched_bytes else []
    parts += [f"{readable_bytes(got.cached_bytes)} were on this computer"] if got.cached_bytes else []
    first = f"{got.id}: complete ({', '.join(parts) or 'what was here was checked'})."
    return [first, *(f"  {words}: {count} file{'s' * (count != 1)}" for words, count in _counted(got).items())]


def _counted(got: GotEntry) -> dict[str, int]:
    counts: dict[str, int] = {}
    for check in got.checks:
        counts[check.words] = counts.get(check.words, 0) + 1
    return counts


def checked_lines(got: GotEntry) -> Sequence[str]:
    """What a check found: each file that is damaged or missing by its name."""
    bad = [check for check in got.checks if not check.ok]
    if not bad:
        return [
            f"{got.id}: good.",
            *(f"  {words}: {count} file{'s' * (count != 1)}" for words, count in _counted(got).items()),
        ]
    return [f"{got.id}: NOT as it should be.", *(f"  {check.path}: {check.words}" for check in bad)]


# --- remove -----------------------------------------------------------------------------------------
def _remove(args: argparse.Namespace, context: Context) -> int:
    from headshot_ui.downloads.runner import remove

    entries = _entries(args.entries)
    sizes = readable_bytes(sum(_there(entry, context.settings) for entry in entries))
    if not args.yes and not _agreed(f"Remove {', '.join(entry.id for entry in entries)} ({sizes})? [y/N] ", context):
        raise SpecError("yes", "Nothing was removed: say yes, or add --yes where there is no terminal.")
    removed = [remove(entry, context.settings) for entry in entries]
    if context.as_json:
        print_json({"removed": removed})
    else:
        print("\n".join(line for each in removed for line in removed_lines(each)))
    return 0


def removed_lines(removed: Removed) -> Sequence[str]:
    """What went, and what was left because it was put there by hand."""
    first = f"{removed.id}: nothing of it was downloaded here."
    if removed.files or removed.freed_bytes:
        first = f"{removed.id}: removed, {readable_bytes(removed.freed_bytes)} are free again."
    return [first, *(f"  {path} was put there by hand and stays." for path in removed.kept)]


# --- login ------------------------------------------------------------------------------------------
def _login(args: argparse.Namespace, context: Context) -> int:
    """The token is never an argument: others see those in the list of programs, and shells remember them."""
    from headshot_ui.downloads.access import TOKENS_PAGE, log_in

    if sys.stdin is not None and sys.stdin.isatty():
        print(f"A token is made at {TOKENS_PAGE}; it needs to read only.", file=context.progress_stream)
        token = getpass("Token (it is not shown): ", stream=context.progress_stream)
    else:
        token = "" if sys.stdin is None else sys.stdin.readline()
    told = log_in(token)
    if context.as_json:
        print_json({"logged_in": True})
    else:
        print(told)
    return 0


def _there(entry: Entry, settings: Settings) -> int:
    from headshot_ui.downloads.states import entry_state

    return entry_state(entry, settings).there_bytes


def _entries(ids: Sequence[str]) -> list[Entry]:
    """Those named, or all. Raises SpecError."""
    from headshot_ui.downloads.catalogue import find_entry, load_catalogue

    return [find_entry(entry_id) for entry_id in dict.fromkeys(ids)] or list(load_catalogue().values())


def _agreed(question: str, context: Context) -> bool:
    """A yes typed at a terminal; False where there is none."""
    if sys.stdin is None or not sys.stdin.isatty():
        return False
    stream: TextIO = context.progress_stream
    print(question, end="", file=stream, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


_RUN: dict[str, Callable[[argparse.Namespace, Context], int]] = {
    "list": _list, "get": _get, "verify": _verify, "remove": _remove, "login": _login,
}  # fmt: skip
