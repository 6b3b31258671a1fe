"""``--base``: which base model is meant where the option is left out, in the help and when a command runs."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from headshot_ui.commands.job_runner import Context
from headshot_ui.settings import Settings

#: What ``demo`` and ``prove`` take; it ships with the program, so it is always there.
DEMO_BASE = "demo-sdxl"


@dataclass(frozen=True)
class Unnamed:
    """The value of ``--base`` where it was left out. As text, which only the help asks for, what that means here."""

    first: str = ""  # what comes before the usual one

    def __str__(self) -> str:
        return self.first + _meant_here(Settings.from_environment())


def name_base(args: argparse.Namespace, context: Context, wanted: str = "") -> None:
    """Fill ``args.base`` in where it was left out, with ``wanted`` or the usual one, and say which that is."""
    if not isinstance(args.base, Unnamed):
        return
    from headshot_ui import families
    from headshot_ui.usual_base import has_card, photographs, usual_base

    bases = families.all_bases(context.settings)
    usual = usual_base(bases, context.settings)
    args.base = wanted or (usual.id if usual else DEMO_BASE)
    title = next((info.title for info in bases if info.id == args.base), "")
    line = f"Base model: {args.base}" + (f", {title}." if title else ".")
    other = next(iter(photographs(bases)), None)
    if not wanted and other is not None and other.id != args.base and not has_card(context.settings):
        line += f" “{other.id}” is here too, but takes many hours without a graphics card: --base {other.id} for it."
    print(line, file=context.progress_stream, flush=True)


def _meant_here(settings: Settings) -> str:
    from headshot_ui import families
    from headshot_ui.usual_base import has_card, photographs, usual_base

    bases = families.all_bases(settings)
    usual, real = usual_base(bases, settings), photographs(bases)
    named = usual.id if usual else DEMO_BASE
    if real and usual is not None and usual.demo and not has_card(settings):
        return f"{named}; {real[0].id} is here too, but takes many hours without a graphics card"
    return named
