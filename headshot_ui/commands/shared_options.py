"""Options that every command takes."""

from __future__ import annotations

import argparse

from headshot_ui.settings import COMPILE, DEVICES

_COMPILE = (
    "compile blocks of networks on an NVIDIA card, which takes a while and makes steps quicker (default: auto, a "
    "training where the steps to come save more than compiling takes; always: drawing too; bench takes auto as never)"
)


def shared_options() -> argparse.ArgumentParser:
    """Options that may stand before or after the command; SUPPRESS keeps the second parser from undoing the first."""
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = shared.add_argument_group("this computer")
    group.add_argument("--device", choices=DEVICES, help="what to compute on (default: auto, the best there is)")
    group.add_argument("--vram-limit", metavar="SIZE", help="most GPU memory to use, such as 8GB (default: all)")
    group.add_argument("--ram-limit", metavar="SIZE", help="most main memory to use, such as 12GB (default: all)")
    group.add_argument("--compile", choices=COMPILE, help=_COMPILE)
    group.add_argument("--models", metavar="FOLDER", help="folder of the base models (default: models)")
    group.add_argument("--outputs", metavar="FOLDER", help="folder for everything made (default: outputs)")
    return shared
