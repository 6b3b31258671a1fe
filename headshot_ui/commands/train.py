"""train: a prepared dataset in, a LoRA out."""

from __future__ import annotations

import argparse

from headshot_ui.commands.job_runner import Context, run_alone, telling_how_to_go_on
from headshot_ui.commands.output import print_json
from headshot_ui.commands.spec_options import DEFAULT_BASE, add_spec_options, build_spec
from headshot_ui.specs import TrainSpec

NAME = "train"
SUMMARY = "train a LoRA on the prepared photos of a person"
EXAMPLES = """examples:
  train --person anna
  train --person anna --run 2026-01-31-1            continue an unfinished run
  train --person anna --steps 400 --rank 16 --json
  train --person anna --base sdxl --recipe original --size-px 1024     as headshots were first made, but sharper"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_spec_options(parser, TrainSpec, defaults={"base": DEFAULT_BASE})


def run(args: argparse.Namespace, context: Context) -> int:
    spec = build_spec(TrainSpec, args)
    with telling_how_to_go_on(context, spec.person):
        result = run_alone(context, spec)
    if context.as_json:
        print_json(result)
    else:
        print(f"Trained {result.steps} steps. LoRA: {result.lora_path}")
    return 0
