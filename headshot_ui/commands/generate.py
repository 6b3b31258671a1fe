"""generate: presets or a prompt in, ranked pictures out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

from headshot_ui.commands.base_option import Unnamed, name_base
from headshot_ui.commands.job_runner import Context, run_alone
from headshot_ui.commands.known_people import check_known
from headshot_ui.commands.output import print_json
from headshot_ui.commands.spec_options import add_spec_options, build_spec
from headshot_ui.errors import HeadshotError
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import Store

if TYPE_CHECKING:
    from headshot_ui.generation.runner import GenerateResult

NAME = "generate"
SUMMARY = "draw headshots of a person with a trained LoRA"
EXAMPLES = """examples:
  generate --person anna                                  every preset, with the latest LoRA
  generate --person anna --presets navy-suit --count 8 --keep-best 3
  generate --person anna --prompt "portrait of {subject} in a green park"
  generate --person anna --lora none --seed 7 --json      the bare base model"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec_options(parser, GenerateSpec, defaults={"base": Unnamed("that of the training; else "), "lora": "latest"})


def run(args: argparse.Namespace, context: Context) -> int:
    lora = None if args.lora.lower() == "none" else args.lora
    name_base(args, context, _wanted(args.person, lora, Store(context.settings)))
    spec = build_spec(GenerateSpec, args, lora=lora)
    check_known(spec.person, Store(context.settings).people(), must_be=lora is None)
    result = run_alone(context, spec)
    if context.as_json:
        print_json(result)
    else:
        print("\n".join(picture_lines(result)))
    return 0


def _wanted(person: str, lora: str | None, store: Store) -> str:
    """The base model of the training that is drawn with; "" without one, and where it is not known."""
    from headshot_ui.generation.loras import LATEST
    from headshot_ui.runs import find_run
    from headshot_ui.usual_base import trained_base

    if lora is None or lora.lower().endswith(".safetensors"):
        return ""
    with suppress(HeadshotError):  # what is wrong with the request is told by the job
        return trained_base(store, person) if lora == LATEST else find_run(store, person, lora).spec.base
    return ""


def picture_lines(result: GenerateResult) -> Sequence[str]:
    """One line per picture, best first, with its likeness where it was measured."""
    lines = []
    for picture in result.pictures:
        percent = picture.likeness.percent if picture.likeness is not None else None
        lines.append(f"  {'  -  ' if percent is None else f'{percent:4.0f} %'}  {picture.preset:<24} {picture.path}")
    count = f"{len(lines)} picture{'s' * (len(lines) != 1)}"
    if all(picture.likeness is None for picture in result.pictures):
        return [f"{count}, not compared with photos:", *lines]
    return [f"{count}, most alike first:", *lines]
