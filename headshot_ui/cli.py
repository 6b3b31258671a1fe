"""The program without a browser, and the way to the page: reads the command line and runs one command.

Exit codes: 0 it worked; 1 it failed (one sentence on standard error); 2 the command line or a setting is
not valid; 130 cancelled with Ctrl-C. Nothing heavy is imported before a command truly needs it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from headshot_ui import __version__
from headshot_ui.commands import (
    bench,
    demo,
    doctor,
    export,
    generate,
    headshots,
    lora,
    models,
    page,
    prepare,
    prove,
    restore,
    train,
)
from headshot_ui.commands.job_runner import Context, PlanShown
from headshot_ui.commands.shared_options import shared_options
from headshot_ui.errors import Cancelled, HeadshotError, SetupError, SpecError
from headshot_ui.logs import explain, start_log
from headshot_ui.settings import Settings

if TYPE_CHECKING:
    from headshot_ui.engine import Engine

COMMANDS = (demo, headshots, prepare, train, generate, restore, export, lora, models, prove, bench, doctor)
LONG_COMMANDS = (demo, headshots, train, generate, restore, prove)  # those with --plan
_ABOUT = "Train a LoRA on about twelve photos of yourself and make professional headshots, on your own computer."
_EPILOG = """Without a command the page opens in your browser.

examples:
  python3 app.py                                   the page
  python3 app.py demo                              see it all work, on drawn demo people
  python3 app.py headshots ~/Pictures/me --person anna
  python3 app.py models get sdxl                   download a model that draws photographs
  python3 app.py doctor                            what this computer can run, what is missing
  python3 app.py test                              the program's own tests
Each command explains itself: python3 app.py headshots --help"""


def main(argv: Sequence[str] | None = None, make_engine: Callable[[Settings], Engine] | None = None) -> int:
    """Run one command line (default: the program's own) and return its exit code.

    ``make_engine`` builds the engine from the settings; tests put a fake one here.
    """
    # Before torch loads. Its threads spin for a while before they sleep: for the default 300,000 rounds, which costs
    # several times the time as soon as the computer has anything else to do. Not at all (OMP_WAIT_POLICY=PASSIVE) is
    # worse: one pass of the demo's UNet took 0.30 s on two idle cores, against 0.18 s with this many rounds.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "50000")
    # Also before torch loads. Parts of many sizes come and go on the card; without this a small one is full of holes
    # that nothing fits into. Windows has no such segments.
    if sys.platform == "linux":
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    for stream in (sys.stdout, sys.stderr):  # a console that cannot show a letter shows "?" instead of failing
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        args = build_parser().parse_args(argv)
    except SystemExit as leaving:  # argparse has already printed its help (0) or what is wrong (2)
        return int(leaving.code or 0)
    try:
        settings = _settings(args)
    except HeadshotError as error:
        return _fail(str(error), 2)
    context = Context(settings, args.json, make_engine or _real_engine, getattr(args, "plan", False))
    try:
        code: int = args.command.run(args, context)
        return code
    except PlanShown:
        return 0
    except (Cancelled, KeyboardInterrupt):
        return _fail("Cancelled; what was finished is kept.", 130)
    except SpecError as error:
        return _fail(str(error), 2)
    except HeadshotError as error:
        return _fail(str(error), 1)
    except Exception as error:
        start_log(settings)
        return _fail(explain(error), 1)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    shared = shared_options()
    parser = argparse.ArgumentParser(
        prog="app.py",
        description=_ABOUT,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[shared],
    )
    parser.set_defaults(command=page, json=False)
    parser.add_argument("--version", action="version", version=f"headshot_ui {__version__}")
    page.add_arguments(parser)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in COMMANDS:
        one = commands.add_parser(
            module.NAME,
            help=module.SUMMARY,
            description=module.SUMMARY[0].upper() + module.SUMMARY[1:] + ".",
            epilog=module.EXAMPLES.replace("\n  ", "\n  python3 app.py "),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=[shared],
        )
        module.add_arguments(one)
        one.add_argument("--json", action="store_true", help="print one JSON object as the last line")
        if module in LONG_COMMANDS:
            one.add_argument("--plan", action="store_true", help="only say what it would take: memory, time, disk")
        one.set_defaults(command=module)
    return parser


def _settings(args: argparse.Namespace) -> Settings:
    given: dict[str, Any] = {
        "device": getattr(args, "device", None),
        "vram_limit": getattr(args, "vram_limit", None),
        "ram_limit": getattr(args, "ram_limit", None),
        "compile": getattr(args, "compile", None),
        "models_dir": getattr(args, "models", None),
        "outputs_dir": getattr(args, "outputs", None),
    }
    return Settings.from_environment(**given)


def _real_engine(settings: Settings) -> Engine:
    try:
        from headshot_ui.engine import Engine
    except ImportError as error:
        raise SetupError(f"A package is missing ({error}): run “python3 app.py” to set everything up.") from error
    return Engine(settings)


def _fail(sentence: str, code: int) -> int:
    print(sentence, file=sys.stderr, flush=True)
    return code
