"""lora: a finished training as a file for other programs, and what is in a LoRA file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.commands.job_runner import Context
from headshot_ui.commands.known_people import check_known
from headshot_ui.commands.output import print_json
from headshot_ui.store import Store, readable_bytes
from headshot_ui.wording import licence_comes_with

if TYPE_CHECKING:
    from headshot_ui.families.protocol import LoraFacts

NAME = "lora"
SUMMARY = "write a LoRA for other programs, or say what is in a LoRA file"
EXAMPLES = """examples:
  lora export --person anna                               for ComfyUI, A1111 and Forge
  lora export --person anna --layout diffusers --to anna.safetensors
  lora show anna.safetensors
  lora show somebodys.safetensors --base demo-sdxl        does it fit this base model?"""

#: Of the header, what is worth a line; the first of each that is there.
_SAID = (
    ("Trained on", ("base_title", "base", "ss_sd_model_name", "ss_base_model_version", "modelspec.architecture")),
    ("Trigger word", ("trigger", "modelspec.trigger_phrase")),
    ("Class word", ("class_word",)),
    ("Steps", ("steps", "ss_steps")),
    ("Date", ("date", "modelspec.date")),
    ("Made with", ("program",)),
    ("Licence", ("licence", "modelspec.license")),
)
_LINE_MOST = 120


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    export = actions.add_parser("export", help="write the LoRA of a finished training for other programs")
    export.add_argument("--person", required=True, metavar="TEXT", help="whose training")
    export.add_argument("--run", metavar="NAME", help="which training (default: the newest that is finished)")
    export.add_argument(
        "--layout", metavar="NAME",
        help="kohya (for ComfyUI, A1111, Forge) or diffusers (default: the first that the base model's family has)",
    )  # fmt: skip
    export.add_argument("--to", type=Path, metavar="FILE", help="where to (default: among the person's exports)")
    export.add_argument("--dtype", metavar="TYPE", help="float16 (half the size) or float32 (default: as trained)")
    show = actions.add_parser("show", help="say what is in a LoRA file")
    show.add_argument("file", type=Path, metavar="FILE")
    show.add_argument("--base", metavar="ID", help="also say whether it fits this base model")
    for one in (export, show):  # the outer parser's own --json would be set back by these
        one.add_argument("--json", action="store_true", default=argparse.SUPPRESS,
                         help="print one JSON object as the last line")  # fmt: skip


def run(args: argparse.Namespace, context: Context) -> int:
    return _export(args, context) if args.action == "export" else _show(args, context)


def _export(args: argparse.Namespace, context: Context) -> int:
    from headshot_ui.export.lora import export_lora

    store = Store(context.settings)
    check_known(args.person, store.people(), must_be=True)
    made = export_lora(store, args.person, args.run, args.layout, args.to, args.dtype)
    if context.as_json:
        print_json(made)
        return 0
    there = "is there already, with the same content" if made.was_there else "is written"
    print(f"{made.path} {there} ({readable_bytes(made.bytes)}), for {made.takers}.")
    print(f"Trigger word: {made.trigger or 'unknown'}; {made.steps} steps on “{made.base}”.")
    print("\n".join(filter(None, [*made.where, licence_comes_with(made.base_title, made.licence)])))
    return 0


def _show(args: argparse.Namespace, context: Context) -> int:
    from headshot_ui import families
    from headshot_ui.errors import ModelError

    path = args.file.expanduser()
    facts = families.lora_facts(path)
    misfit: str | None = None
    if args.base:
        try:
            families.check_lora(path, families.find_base(args.base, context.settings))
        except ModelError as error:
            misfit = str(error)
    if context.as_json:
        fit: dict[str, Any] = {"base": args.base, "fits": misfit is None, "why_not": misfit} if args.base else {}
        print_json({"file": path, "facts": facts, **fit})
    else:
        print("\n".join(_lines(path, facts)))
        if args.base:
            print(misfit or f"It fits the base model “{args.base}”.")
    return 0 if misfit is None else 1


def _lines(path: Path, facts: LoraFacts) -> list[str]:
    alpha = "as the rank" if facts.alpha is None else f"{facts.alpha:g}"
    mostly = "" if facts.one_rank else " (of most layers)"
    layers = ", ".join(f"{count} in the {part}" for part, count in facts.modules.items())
    lines = [
        f"{path.name}: a {facts.kind} of the family {facts.family}, in {facts.layout}'s layout, {facts.dtype}",
        f"  Layers        {layers}",
        f"  Rank          {f'{facts.rank}, alpha {alpha}{mostly}' if facts.rank else 'none: whole matrices'}",
    ]
    for title, names in _SAID:
        text = next((facts.header[name] for name in names if facts.header.get(name)), "")
        if text:
            lines.append(f"  {title:<13} {' '.join(text.split())[:_LINE_MOST]}")
    return lines
