"""No command: open the page."""

from __future__ import annotations

import argparse

from headshot_ui.commands.job_runner import Context

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")
DEFAULT_PORT = 7860


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the page")
    group.add_argument("--host", choices=LOCAL_HOSTS, default="127.0.0.1", help="address (default: 127.0.0.1)")
    group.add_argument("--port", type=port_number, help=f"port (default: the first free one from {DEFAULT_PORT} on)")
    group.add_argument("--no-browser", action="store_true", help="do not open a browser window")


def run(args: argparse.Namespace, context: Context) -> int:
    print("Starting the page …", flush=True)
    from headshot_ui.ui.serve import serve

    with context.engine() as engine:
        serve(engine, context.settings, args.host, args.port, open_browser=not args.no_browser)
    return 0


def port_number(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65535:
        raise argparse.ArgumentTypeError("must be from 1 to 65535")
    return port
