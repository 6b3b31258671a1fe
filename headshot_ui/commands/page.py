"""No command: open the page."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from headshot_ui.card_state import unused_card
from headshot_ui.card_words import MEANWHILE
from headshot_ui.commands.job_runner import Context
from headshot_ui.lock import PAGE, check_free, hold

DEFAULT_PORT = 7860
_REFUSED = (
    "A password on the command line can be read by every program on this computer and stays in the shell's history: "
    "leave it out, it is asked for, or taken from the variable HEADSHOT_UI_PASSWORD."
)


class _Refuse(argparse.Action):
    """An option that exists only to say why it must not be used."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        parser.error(_REFUSED)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the page")
    group.add_argument("--port", type=port_number, help=f"port (default: the first free one from {DEFAULT_PORT} on)")
    group.add_argument("--no-browser", action="store_true", help="do not open a browser window")
    group = parser.add_argument_group("the page, beyond this computer (each needs --user; the password is asked for)")
    group.add_argument("--share", action="store_true", help="make a public link, which lasts up to a week")
    group.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS",
        help="open the page to a network: 0.0.0.0 for all, or one address of this computer (default: 127.0.0.1)",
    )  # fmt: skip
    group.add_argument("--allow-host", action="append", metavar="NAME", help="name a reverse proxy gives the page")
    group.add_argument("--user", metavar="NAME", help="protect the page: who may log in")
    group.add_argument("--password", nargs="?", action=_Refuse, help=argparse.SUPPRESS)


def run(args: argparse.Namespace, context: Context) -> int:
    from headshot_ui.ui.door import Wish, ask_password, warnings
    from headshot_ui.ui.login import Credentials, check_user

    wish = Wish(args.host.strip("[]").lower(), args.port, args.share, args.user or "", _names(args.allow_host))
    if args.user is not None:
        check_user(wish.user)
    check_free(context.settings.outputs_dir, PAGE)
    for sentence in warnings(wish):
        print(sentence, flush=True)
    credentials = None
    if wish.user:
        credentials = Credentials(wish.user, ask_password(check=lambda password: Credentials(wish.user, password)))
    print("Starting the page …", flush=True)
    unused = unused_card(context.settings)
    if unused:
        print(f"{unused} {MEANWHILE}", flush=True)
    from headshot_ui.ui.serve import serve

    with hold(context.settings.outputs_dir, PAGE) as note, context.engine() as engine:
        serve(engine, context.settings, wish, credentials, open_browser=not args.no_browser, note=note)
    return 0


def _names(given: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(name.strip("[]").lower() for name in given or ())


def port_number(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError("must be from 1 to 65535")
    return port
