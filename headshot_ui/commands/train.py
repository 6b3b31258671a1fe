"""train: a prepared dataset in, a LoRA out."""

from __future__ import annotations

import argparse
from contextlib import suppress

from headshot_ui.commands.base_option import Unnamed, name_base
from headshot_ui.commands.job_runner import Context, run_alone, telling_how_to_go_on
from headshot_ui.commands.output import print_json
from headshot_ui.commands.spec_options import add_spec_options, build_spec
from headshot_ui.errors import HeadshotError
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store
from headshot_ui.wording import licence_comes_with

NAME = "train"
SUMMARY = "train a LoRA on the prepared photos of a person"
EXAMPLES = """examples:
  train --person anna
  train --person anna --run 2026-01-31-1            continue an unfinished run
  train --person anna --steps 400 --rank 16 --json
  train --person anna --base sdxl --recipe original --size-px 1024     as headshots were first made, but sharper"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    first = "that of the photos, or of the run to continue; else "
    add_spec_options(parser, TrainSpec, defaults={"base": Unnamed(first)})


def run(args: argparse.Namespace, context: Context) -> int:
    name_base(args, context, _wanted(args, Store(context.settings)))
    spec = build_spec(TrainSpec, args)
    with telling_how_to_go_on(context, spec.person):
        result = run_alone(context, spec)
    if context.as_json:
        print_json(result)
    else:
        print(f"Trained {result.steps} steps. LoRA: {result.lora_path}")
        told = _licence(spec.base, context)
        if told:
            print(told)
    return 0


def _licence(base: str, context: Context) -> str:
    """That of the base model, which the LoRA may inherit."""
    from headshot_ui import families

    with suppress(HeadshotError):
        info = families.find_base(base, context.settings)
        return licence_comes_with(info.title, info.licence)
    return ""


def _wanted(args: argparse.Namespace, store: Store) -> str:
    """The base model of the run to continue, or the one the photos were prepared for; "" where neither is known."""
    from headshot_ui.dataset.saved import prepared_base
    from headshot_ui.runs import find_run

    with suppress(HeadshotError):  # what is wrong with the request is told by the job
        return find_run(store, args.person, args.run).spec.base if args.run else prepared_base(store, args.person)
    return ""
