"""doctor: what this computer can run, and what is missing."""

from __future__ import annotations

import argparse

from headshot_ui.commands.job_runner import Context
from headshot_ui.commands.output import print_json

NAME = "doctor"
SUMMARY = "say what this computer can run and what is missing"
EXAMPLES = """examples:
  doctor
  doctor --json"""

_MARKS = {True: "ok", None: "note", False: "MISSING"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """It has no options of its own."""


def run(args: argparse.Namespace, context: Context) -> int:
    from headshot_ui.doctor import examine

    checks = examine(context.settings)
    ok = all(check.ok is not False for check in checks)
    if context.as_json:
        print_json({"ok": ok, "checks": checks})
        return 0 if ok else 1
    width = max(len(check.name) for check in checks)
    for check in checks:
        print(f"{_MARKS[check.ok]:<7}  {check.name:<{width}}  {check.detail}")
        if check.advice:
            print(f"{'':{9 + width + 2}}{check.advice}")
    print("All is there." if ok else "Something is missing: see the lines marked MISSING.")
    return 0 if ok else 1
