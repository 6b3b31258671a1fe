"""Train: the plan, a few simple choices, expert settings, what is being learned, and earlier trainings."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from headshot_ui import families
from headshot_ui.dataset.saved import prepared_base
from headshot_ui.errors import HeadshotError, SpecError
from headshot_ui.families.protocol import Abilities, BaseDefaults, BaseInfo
from headshot_ui.recipes import DEFAULT, Recipe, load_recipes
from headshot_ui.store import Store
from headshot_ui.ui import changing_choices, templates
from headshot_ui.ui.abilities import abilities_of
from headshot_ui.ui.export_box import LATEST_WINS
from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.models_panel import base_dropdown
from headshot_ui.ui.page_js import SHOW_TRAINING
from headshot_ui.ui.photos import photos_of, state_of
from headshot_ui.ui.tab import CLICK, QUIET, Shell, Tab, nudged, problem
from headshot_ui.ui.tabs.train_runs import Runs, runs_layout, runs_mark, runs_values, wire_runs
from headshot_ui.ui.train_values import (
    Field,
    fields,
    filled_by,
    is_typed,
    length_choices,
    means_anything,
    placeholder,
    plan_lines,
    recipe_choices,
    train_request,
)
from headshot_ui.usual_base import usual_base
from headshot_ui.wording import licence_comes_with

NO_PHOTOS = {"title": "No checked photos yet",
             "text": "Training learns from checked photos. Add and check them on the first tab."}  # fmt: skip
#: A second press within this time is the same one.
DOUBLE_CLICK_S = 3.0
RUNS_ALREADY = "This very training was started before and is not finished: see the bar above."


@dataclass(frozen=True)
class _Parts:
    empty: gr.Column
    to_dataset: gr.Button
    settings: gr.Column
    plan: gr.HTML
    base: gr.Dropdown
    base_problem: gr.HTML
    recipe: gr.Dropdown
    recipe_note: gr.HTML
    filled_by: gr.State  # id of the recipe whose settings are in the fields
    length: gr.Radio
    inputs: tuple[Any, ...]  # one per ``fields()``
    problems: tuple[gr.HTML, ...]  # under each of them
    start: gr.Button
    start_problem: gr.HTML
    start_note: gr.HTML
    runs: Runs


def build(shell: Shell) -> Tab:
    """The tab; see ``ui/tab.py``."""
    bases = {info.id: info for info in families.all_bases(shell.settings)}
    store = Store(shell.settings)
    recipes = _recipes(shell)
    parts = _layout(bases, recipes, usual_base(tuple(bases.values()), shell.settings))
    _wire(parts, shell, store, bases, recipes)
    steps = {base: info.defaults.train_steps for base, info in bases.items()}
    wire_runs(parts.runs, shell, store, steps)
    _wire_installed(parts, shell, bases, steps)
    outputs = (parts.empty, parts.settings, parts.base, *parts.runs.outputs)
    return Tab(outputs, _refresher(shell, store, bases))


def _wire_installed(parts: _Parts, shell: Shell, bases: dict[str, BaseInfo], steps: dict[str, int]) -> None:
    def other_models(chosen: str | None) -> gr.Dropdown:
        found = {info.id: info for info in families.all_bases(shell.settings)}
        steps.update({base: info.defaults.train_steps for base, info in found.items()})
        bases.update(found)
        for gone in set(bases) - set(found):
            del bases[gone]
        every = tuple(found.values())
        return base_dropdown(every, chosen, usual_base(every, shell.settings), visible=len(found) > 1)

    shell.installed.change(other_models, parts.base, parts.base, **QUIET)


def _recipes(shell: Shell) -> dict[str, Recipe]:
    try:
        return load_recipes(shell.settings)
    except HeadshotError as error:  # one of the person's own is damaged; the sentence names the file
        gr.Warning(str(error))
        return load_recipes()


# --- layout -----------------------------------------------------------------------------------------
def _layout(bases: dict[str, BaseInfo], recipes: dict[str, Recipe], first: BaseInfo | None) -> _Parts:
    defaults, can = first.defaults if first else None, abilities_of(first)
    with gr.Column(elem_classes="hs-card", elem_id="train-empty") as empty:
        safe_html(NO_PHOTOS, html_template=templates.EMPTY)
        to_dataset = gr.Button("Go to Dataset", variant="primary", elem_id="to-dataset", scale=0, min_width=160,
                               elem_classes="hs-onward")  # fmt: skip
    with gr.Column(elem_classes="hs-card", elem_id="train-settings", visible=False) as settings:
        plan = safe_html({"lines": []}, html_template=templates.PLAN, elem_id="plan")
        base = changing_choices.dropdown(
            choices=[(info.title, info.id) for info in bases.values()], value=first.id if first else None,
            label="Base model", elem_id="train-base", filterable=False, visible=len(bases) > 1,
        )  # fmt: skip
        base_problem = problem("train-base-problem")
        choices = recipe_choices(first, recipes)
        recipe = changing_choices.dropdown(
            choices=choices, value=DEFAULT, label="Recipe", filterable=False, elem_id="recipe",
            visible=len(choices) > 1, info="Settings that belong together.",
        )  # fmt: skip
        recipe_note = safe_html({"text": ""}, html_template=templates.NOTE, elem_id="recipe-note",
                                elem_classes="hs-place")  # fmt: skip
        length = gr.Radio(length_choices(defaults), value="normal", label="How long to learn", elem_id="length")
        with gr.Accordion("Expert settings", open=False, elem_id="expert"):
            safe_html({}, html_template='<p class="hs-soft">Empty fields are as the recipe says, else as the base '
                      'model was made for.</p>')  # fmt: skip
            with gr.Row(elem_classes="hs-fields"):
                made = [_field(field, defaults, can) for field in fields()]
        start = gr.Button("Start training", variant="primary", size="lg", elem_id="start", scale=0, min_width=220)
        start_problem = problem("train-problem")
        start_note = safe_html({"text": ""}, html_template=templates.NOTE, elem_id="start-note",
                               elem_classes="hs-problem-place")  # fmt: skip
    runs = runs_layout()
    return _Parts(empty, to_dataset, settings, plan, base, base_problem, recipe, recipe_note, gr.State(DEFAULT), length,
                  tuple(each for each, _ in made),
                  tuple(place for _, place in made), start, start_problem, start_note, runs)  # fmt: skip


def _field(field: Field, defaults: BaseDefaults | None, can: Abilities) -> tuple[Any, gr.HTML]:
    """A control with the place for its problem."""
    elem_id = f"train-{field.name}"
    with gr.Column(min_width=220, elem_classes="hs-field"):
        control: Any
        if field.kind is bool:
            control = gr.Checkbox(bool(field.default), label=field.label, info=field.help, elem_id=elem_id)
        elif field.choices:
            choices = [(field.otherwise, ""), *field.choices]
            control = gr.Dropdown(choices, value="", label=field.label, info=field.help, filterable=False,
                                  elem_id=elem_id)  # fmt: skip
        else:
            control = gr.Textbox(
                "" if field.default is None else f"{field.default:g}", label=field.label, info=field.help, max_lines=1,
                placeholder=placeholder(field, defaults), elem_id=elem_id, max_length=20,
                visible=means_anything(field, can),
            )  # fmt: skip
        return control, problem(f"{elem_id}-problem")


def _typed(field: Field, defaults: BaseDefaults | None, can: Abilities) -> gr.Textbox:
    """A field of text after another base was chosen: what means nothing to it is emptied and not seen."""
    text = placeholder(field, defaults)
    if means_anything(field, can):
        return gr.Textbox(placeholder=text, visible=True)
    return gr.Textbox(placeholder=text, visible=False, value="")


# --- events -----------------------------------------------------------------------------------------
def _wire(
    parts: _Parts, shell: Shell, store: Store, bases: dict[str, BaseInfo], recipes: dict[str, Recipe]
) -> None:
    names = [field.name for field in fields()]

    def problems(error: HeadshotError | None) -> list[dict[str, str]]:
        """Sentences for the base, every field, and the button: at most one of them has text."""
        at = error.field if isinstance(error, SpecError) else ""
        places = ["base", *names]
        told = [str(error) if error is not None and name == at else "" for name in places]
        return [{"text": text} for text in (*told, str(error) if error is not None and at not in places else "")]

    def plan(person: str | None, base: str | None, recipe: str | None, length: str, *values: Any) -> list[Any]:
        if not person or not state_of(store, person)[0]:
            return [gr.skip()] * (len(places) + 1)
        info = bases.get(base or "")
        defaults = info.defaults if info else None
        try:
            chosen = recipes.get(recipe or DEFAULT)
            spec = train_request(person, base or "", defaults, length, values, chosen)
            photos = sum(photo.verdict == "train" for photo in photos_of(store, person))
        except HeadshotError as error:
            return [gr.skip(), *problems(error)]
        lines = plan_lines(shell.engine, spec, defaults, photos, chosen)
        told = licence_comes_with(info.title, info.licence) if info else ""
        return [{**lines, "lines": [*lines["lines"], *filter(None, [told])]}, *problems(None)]

    def start(person: str | None, base: str | None, recipe: str | None, length: str, *values: Any) -> list[Any]:
        info = bases.get(base or "")
        try:
            if info is None:
                raise SpecError("base", "This base model is not installed: choose another.")
            chosen = recipes.get(recipe or DEFAULT)
            job = shell.live.submit(train_request(person or "", info.id, info.defaults, length, values, chosen))
        except HeadshotError as error:
            return [*problems(error), {"text": ""}, gr.skip()]
        known = time.time() - shell.live.started_s(job) > DOUBLE_CLICK_S
        return [*problems(None), {"text": RUNS_ALREADY if known else ""}, nudged()]

    def chosen_base(base: str | None, recipe: str | None) -> list[Any]:
        info = bases.get(base or "")
        defaults, can = info.defaults if info else None, abilities_of(info)
        choices = recipe_choices(info, recipes)
        kept = recipe if recipe in [name for _, name in choices] else DEFAULT
        numbers = [_typed(field, defaults, can) if is_typed(field) else gr.skip() for field in fields()]
        return [gr.Dropdown(choices=choices, value=kept, visible=len(choices) > 1),
                gr.Radio(choices=length_choices(defaults, recipes.get(kept))), *numbers]  # fmt: skip

    def chosen_recipe(recipe: str | None, before: str | None, base: str | None, *values: Any) -> list[Any]:
        chosen, info = recipes.get(recipe or DEFAULT), bases.get(base or "")
        note = chosen.note if chosen is not None and chosen.id != DEFAULT else ""
        lengths = gr.Radio(choices=length_choices(info.defaults if info else None, chosen))
        filled = filled_by(chosen, recipes.get(before or DEFAULT), values)
        # A field that stays as it was is not sent back: meanwhile somebody may have typed into it.
        sent = [gr.skip() if new == old or not (new or old) else new for new, old in zip(filled, values, strict=True)]
        return [{"text": note}, recipe or DEFAULT, lengths, *sent]

    places = [parts.base_problem, *parts.problems, parts.start_problem]
    given = [shell.person, parts.base, parts.recipe, parts.length, *parts.inputs]
    changes = [parts.length.change, parts.base.change, shell.tabs.change, shell.person.change]
    changes += [
        control.blur if is_typed(field) else control.change
        for field, control in zip(fields(), parts.inputs, strict=True)
    ]
    changes += [control.submit for field, control in zip(fields(), parts.inputs, strict=True) if is_typed(field)]
    # The last change is asked about too, or the answer to an earlier one would take away a sentence that is still true.
    gr.on(changes, plan, given, [parts.plan, *places], **LATEST_WINS)
    parts.recipe.change(
        chosen_recipe,
        [parts.recipe, parts.filled_by, parts.base, *parts.inputs],
        [parts.recipe_note, parts.filled_by, parts.length, *parts.inputs],
        **QUIET,
    ).then(plan, given, [parts.plan, *places], **QUIET)
    parts.length.change(lambda: {"text": ""}, None, parts.start_note, **QUIET)
    parts.base.change(
        chosen_base, [parts.base, parts.recipe], [parts.recipe, parts.length, *parts.inputs], **QUIET
    )  # fmt: skip
    parts.start.click(start, given, [*places, parts.start_note, shell.nudge], **CLICK).then(None, js=SHOW_TRAINING)
    parts.to_dataset.click(lambda: gr.Tabs(selected="dataset"), None, shell.tabs, **QUIET)


# --- what is new ------------------------------------------------------------------------------------
def _refresher(
    shell: Shell, store: Store, bases: dict[str, BaseInfo]
) -> Callable[[str, Any], tuple[list[Any], Any] | None]:
    def refresh(person: str, mark: Any) -> tuple[list[Any], Any] | None:
        number = state_of(store, person)[0] if person else 0
        now = (person, number, runs_mark(shell.live, store, person))
        if now == mark:
            return None
        head: Sequence[Any] = [gr.skip()] * 3
        if mark is None or mark[:2] != now[:2]:
            base = prepared_base(store, person) if number else ""
            head = [gr.Column(visible=not number), gr.Column(visible=bool(number)),
                    gr.Dropdown(value=base) if base in bases else gr.skip()]  # fmt: skip
        runs = runs_values(shell.live, store, person, mark[2] if mark is not None and mark[0] == person else None)
        return [*head, *runs], now

    return refresh
