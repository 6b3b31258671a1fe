"""The Generate tab: choose looks, draw, look at what came of it, export."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from headshot_ui import families
from headshot_ui.errors import HeadshotError, SpecError
from headshot_ui.store import Store
from headshot_ui.ui import export_box, generate_form, generate_request, headshot_results, lora_files, prompt_words
from headshot_ui.ui import headshot_view as views
from headshot_ui.ui.export_box import LATEST_WINS, SENDS
from headshot_ui.ui.generate_form import Form
from headshot_ui.ui.generate_request import FIELDS, FILE, FILE_OF, LATEST
from headshot_ui.ui.headshot_view import View
from headshot_ui.ui.models_panel import base_dropdown
from headshot_ui.ui.picture_sets import empty_bins, sets_mark
from headshot_ui.ui.tab import CLICK, QUIET, Shell, Tab, nudged
from headshot_ui.ui.tiles import Tile
from headshot_ui.usual_base import about_base, usual_base

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo

SEEDS = 2**31
CLEAR = "() => ({text: ''})"
PROMPTS = ("prompt", "negative_prompt")
#: The word, or the placeholder, that is just being typed is left out.
WHOLE_WORDS = (
    "(text, base) => [document.activeElement?.closest('#{id}')"
    " ? (text || '').replace(/([{{][^}}]*|[\\p{{L}}\\p{{N}}'’_-]+)$/u, '') : text, base]"
)
DRAWING_KINDS = ("generate", "headshots")


@dataclass(frozen=True)
class Mark:
    """What one browser already shows of this tab."""

    person: str
    runs: tuple[Any, ...]
    sets: tuple[Any, ...]
    drawing: tuple[Any, ...]  # job, version and picture of what is being drawn
    export: Any


def build(shell: Shell) -> Tab:
    """Lay the tab out and wire it."""
    bases = list(families.all_bases(shell.settings))
    store = Store(shell.settings)
    for person in store.people():
        empty_bins(store, person)
    first = usual_base(bases, shell.settings)
    choice = generate_request.refine_choice(first, shell.settings) if first else None
    tiles = _tiles(shell)
    form = generate_form.layout(bases, first, tiles, choice)
    results = headshot_results.layout()
    _wire_form(form, shell, bases, store)
    _wire_installed(form, shell, bases)
    filled = [*form.inputs, *form.all_problems]
    headshot_results.wire(results, shell, lambda spec: _use(spec, bases, tiles), filled)
    outputs = (form.nobody, form.nobody_there, form.card, results.card, form.fields["base"], *_lora_outputs(form),
               form.preview,
               *results.shown, *results.box.refreshed)  # fmt: skip
    return Tab(outputs, lambda person, mark: _refresh(shell, store, bases, person, mark))


def _wire_installed(form: Form, shell: Shell, bases: list[BaseInfo]) -> None:
    """New base models can be chosen, and a new refiner be used."""

    def other_models(chosen: str | None) -> list[Any]:
        bases[:] = families.all_bases(shell.settings)
        usual = usual_base(bases, shell.settings)
        return [base_dropdown(bases, chosen, usual), *_refine_values(_info(bases, chosen), shell)]

    base = form.fields["base"]
    shell.installed.change(other_models, base, [base, form.fields["refine"], form.refine_note], **QUIET)


def _tiles(shell: Shell) -> list[Tile]:
    try:
        return generate_request.look_tiles(shell.settings, shell.shown_dir)
    except HeadshotError as error:  # one preset of the person's own is damaged; the sentence names the file
        gr.Warning(str(error))
        return []


def _lora_outputs(form: Form) -> list[Any]:
    return [form.fields["lora"], form.untrained, form.untrained_there]


# --- the form ----------------------------------------------------------------------------------------------------
def _wire_form(form: Form, shell: Shell, bases: Sequence[BaseInfo], store: Store) -> None:
    def request(person: str | None, *values: Any) -> Any:
        return generate_request.generate_request(
            person or "", dict(zip(FIELDS, values, strict=True)), shell.settings
        )  # fmt: skip

    def draw(person: str | None, *values: Any) -> list[Any]:
        try:
            spec = request(person, *values)
            prompt_words.check_request_words(_info(bases, spec.base), spec)
            shell.live.submit(spec)
        except SpecError as error:
            return [*generate_form.problem_values(error.field, str(error)), gr.skip()]
        except HeadshotError as error:
            return [*generate_form.problem_values("", str(error)), gr.skip()]
        return [*generate_form.problem_values(), nudged()]

    def plan(person: str | None, *values: Any) -> dict[str, Any]:
        try:
            spec = request(person, *values)
        except HeadshotError:  # said when it is started; a plan of something unfinished helps nobody
            return {"lines": []}
        amount = generate_request.amount_words(spec)
        return {"lines": [amount, *generate_request.plan_words(shell.engine, spec)]}

    def base_chosen(base: str | None, person: str | None) -> list[Any]:
        info = _info(bases, base)
        choices = _lora_choices(store, person or "", base)
        lora = generate_form.lora_values(choices, LATEST, person or "")
        note = {"text": about_base(info, bases, shell.settings)}
        return [note, *_refine_values(info, shell), *lora, *generate_form.placeholder_values(info),
                *generate_form.guided_values(info)]

    def use_run(chosen: tuple[str, str] | None, person: str | None, base: str | None) -> list[Any]:
        if not chosen or chosen[0] != person:
            return [gr.skip()] * 3
        return generate_form.lora_values(_lora_choices(store, person, base), chosen[1], person)

    fields = form.fields
    of_base = [form.base_note, fields["refine"], form.refine_note, *_lora_outputs(form),
               *(fields[name] for name in (*generate_form.USUAL, *generate_form.GUIDED))]  # fmt: skip
    form.draw.click(draw, [shell.person, *form.inputs], [*form.all_problems, shell.nudge], **SENDS)
    gr.on(
        [*(field.change for field in form.inputs), shell.person.change],
        plan,
        [shell.person, *form.inputs],
        form.plan,
        **LATEST_WINS,
    )
    for name in FIELDS:
        if name not in PROMPTS:  # what is said about those changes with every word
            fields[name].change(None, None, form.problems[name], js=CLEAR, **QUIET)
    form.dice.click(lambda: str(random.randrange(SEEDS)), None, fields["seed"], **CLICK)
    fields["base"].change(base_chosen, [fields["base"], shell.person], of_base, **QUIET)
    shell.lora.change(use_run, [shell.lora, shell.person, fields["base"]], _lora_outputs(form), **QUIET)
    _wire_prompts(form, bases)
    _wire_lora_file(form, shell, bases, store)
    form.untrained_there.click(lambda: gr.Tabs(selected="train"), None, shell.tabs, **QUIET)
    form.nobody_there.click(lambda: gr.Tabs(selected="dataset"), None, shell.tabs, **QUIET)


def _wire_prompts(form: Form, bases: Sequence[BaseInfo]) -> None:
    """Words the model does not know are named beside the prompt: while typing, and all of them on leaving it."""
    base = form.fields["base"]
    for name in PROMPTS:
        field = form.fields[name]

        def say(text: str | None, base: str | None, name: str = name) -> dict[str, str]:
            return {"text": prompt_words.said_of(_info(bases, base), name, text)}

        # Not on "change": the plan listens to that, and two that do set each other off again and again.
        gr.on([field.input, field.blur, base.change], say, [field, base], form.problems[name],
              js=WHOLE_WORDS.format(id=name), **CLICK)  # fmt: skip


def _wire_lora_file(form: Form, shell: Shell, bases: Sequence[BaseInfo], store: Store) -> None:
    lora, place = form.fields["lora"], form.problems["lora"]

    def chosen(value: str | None, person: str | None) -> list[Any]:
        wanted = (value or "").removeprefix(FILE_OF)
        kept = next((path for path in lora_files.lora_files(store, person or "") if path.name == wanted), None)
        return [gr.File(visible=value == FILE), {"text": "" if kept is None else lora_files.about_lora(kept)}]

    def add(upload: str | None, person: str | None, base: str | None) -> list[Any]:
        """A file that fits is kept and chosen; of another one only the sentence stays."""
        if not upload:
            return [gr.skip()] * 3
        try:
            kept = lora_files.add_lora(store, person or "", Path(upload), _info(bases, base))
        except HeadshotError as error:
            return [gr.skip(), None, {"text": str(error)}]
        choices = _lora_choices(store, person or "", base)
        return [gr.Dropdown(choices=choices, value=FILE_OF + kept.name), None, {"text": ""}]

    lora.change(chosen, [lora, shell.person], [form.lora_file, form.lora_note], **QUIET)
    form.lora_file.upload(add, [form.lora_file, shell.person, form.fields["base"]], [lora, form.lora_file, place],
                          **QUIET)  # fmt: skip


def _lora_choices(store: Store, person: str, base: str | None) -> list[tuple[str, str]]:
    runs = generate_request.usable_runs(store, person, base)
    return generate_request.lora_choices(runs, lora_files.lora_files(store, person))


def _info(bases: Sequence[BaseInfo], base: str | None) -> BaseInfo | None:
    return next((info for info in bases if info.id == base), None)


def _refine_values(info: BaseInfo | None, shell: Shell) -> list[Any]:
    if info is None:
        return [gr.skip(), gr.skip()]
    return generate_form.refine_values(generate_request.refine_choice(info, shell.settings))


def _use(spec: Any, bases: Sequence[BaseInfo], tiles: Sequence[Tile]) -> list[Any]:
    """The form filled in with a request, and no problem shown."""
    values = generate_request.filled_from(spec, _info(bases, spec.base), tiles)
    return [*(values[name] for name in FIELDS), *generate_form.problem_values()]


# --- what is new ---------------------------------------------------------------------------------------------------
def _refresh(
    shell: Shell, store: Store, bases: Sequence[BaseInfo], person: str, seen: Mark | None
) -> tuple[list[Any], Mark] | None:
    base = generate_request.base_of(store, person, bases)
    runs = generate_request.usable_runs(store, person, base)
    drawing, preview = _drawing(shell, person)
    mark = Mark(person, tuple((run.name, run.state, run.step) for run in runs), sets_mark(store, person), drawing,
                export_box.export_mark(shell.live, person))  # fmt: skip
    if mark == seen:
        return None
    fresh = seen is None or seen.person != person
    values: list[Any] = [gr.skip()] * 4
    if fresh:
        values = [gr.HTML(visible=not person), gr.Button(visible=not person), gr.Column(visible=bool(person)),
                  gr.Column(visible=bool(person))]  # fmt: skip
    if fresh or (seen and seen.runs != mark.runs):
        values += [base, *generate_form.lora_values(_lora_choices(store, person, base), LATEST, person)]
    else:
        values += [gr.skip()] * 4
    values.append(preview if fresh or (seen and seen.drawing != drawing) else gr.skip())
    if fresh or (seen and seen.sets != mark.sets):
        values += headshot_results.values(store, shell.shown_dir, person, views.look(store, person, View()))
    else:
        values += [gr.skip()] * 12
    if fresh or (seen and seen.export != mark.export):
        values += export_box.refreshed_values(shell, store, person)
    else:
        values += [gr.skip()] * 2
    return values, mark


def _drawing(shell: Shell, person: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A mark of the picture that is being drawn, and the values of its preview."""
    nothing = {"picture": "", "text": "", "shaping": False}
    for kind in DRAWING_KINDS:
        job = shell.live.newest(person, kind) if person else None
        if job is not None and not job.snapshot.finished:
            preview = shell.live.preview(job)
            return (job.id, hash(preview["picture"]), preview["text"]), preview
    return (), nothing
