"""The upper half of the Generate tab: what to draw, of whom, how often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gradio as gr

from headshot_ui.specs import EXACT, FAST
from headshot_ui.ui import changing_choices
from headshot_ui.ui import studio_templates as templates
from headshot_ui.ui.abilities import abilities_of
from headshot_ui.ui.generate_request import EXPERT, FIELDS, FILE, LOOKS, NO_LORA, RefineChoice
from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.templates import EMPTY, NOTE, PREVIEW, PROBLEM
from headshot_ui.ui.tiles import Tile, tiles_html, tiles_value

if TYPE_CHECKING:
    from headshot_ui.families.protocol import Abilities, BaseInfo

REFINE_CHOICES = [
    ("No", "off"),
    ("Finish with the refiner", "ensemble"),
    ("Draw over lightly with the refiner", "img2img"),
]
REFINE_INFO = (
    "A second model that draws the fine detail at the end. A picture that looks less like you is kept without it."
)
SPEED_CHOICES = [("Exact", EXACT), ("Fast", FAST)]
SPEED_INFO = (
    "Fast takes up to a fifth less time: the last steps are not steered by the guidance. The picture stays the same at "
    "large; fine detail changes a little."
)
REUSE_INFO = (
    "Fast leaves most of the network out of steps that change little. The picture stays the same at large; details "
    "differ."
)
PICTURES_PER_LOOK = 2
MOST_PER_LOOK = 16
LOOKS_AT_FIRST = 4
#: Numbers for which the base model has a value of its own.
USUAL = ("steps", "guidance_scale", "width", "height", "refiner_switch", "refiner_strength")
OF_REFINER = ("refiner_switch", "refiner_strength")
#: Fields of the second pass per step, which steers away from the negative prompt.
GUIDED = ("speed", "negative_prompt")


@dataclass(frozen=True)
class Form:
    """The components; ``fields`` and ``problems`` by the names in ``FIELDS``."""

    nobody: gr.HTML
    nobody_there: gr.Button
    card: gr.Column
    fields: Mapping[str, Any]
    problems: Mapping[str, gr.HTML]
    lora_file: gr.File
    lora_note: gr.HTML
    untrained: gr.HTML
    untrained_there: gr.Button
    refine_note: gr.HTML
    dice: gr.Button
    expert: gr.Accordion
    base_note: gr.HTML
    plan: gr.HTML
    draw: gr.Button
    draw_problem: gr.HTML
    preview: gr.HTML

    @property
    def inputs(self) -> list[Any]:
        return [self.fields[name] for name in FIELDS]

    @property
    def all_problems(self) -> list[Any]:
        return [*(self.problems[name] for name in FIELDS), self.draw_problem, self.expert]


def layout(
    bases: Sequence[BaseInfo], first: BaseInfo | None, tiles: Sequence[Tile], refine: RefineChoice | None
) -> Form:
    """All of it, with ``first`` as the base chosen; ``refine`` says what that one can do."""
    can_refine = refine is not None and not refine.reason
    can = abilities_of(first)
    fields: dict[str, Any] = {}
    problems: dict[str, gr.HTML] = {}
    nobody = safe_html({"title": "Nobody is chosen", "text": "Add a person and their photos first."}, EMPTY,
                       elem_id="generate-nobody", visible=False)  # fmt: skip
    nobody_there = gr.Button("Go to Dataset", elem_id="generate-to-dataset", elem_classes="hs-plain hs-narrow",
                             visible=False)  # fmt: skip
    with gr.Column(elem_classes="hs-card", elem_id="generate-form") as card:
        safe_html({"title": "What should be drawn?", "text": "Choose looks, or describe your own."}, templates.HEADING)
        fields["presets"] = tiles_html(
            tiles_value(LOOKS, tiles, [tile["id"] for tile in tiles[:LOOKS_AT_FIRST]]), "looks"
        )
        problems["presets"] = _problem("presets")
        fields["prompt"] = gr.Textbox(
            label="Your own words (optional)", lines=2, max_lines=6, elem_id="prompt",
            placeholder="portrait of {subject}, wearing a green coat, in front of a park",
            info="{subject} stands for the person: it is replaced by the word the training taught for this face.",
        )  # fmt: skip
        problems["prompt"] = _problem("prompt")
        with gr.Row(elem_classes="hs-fields"):
            with gr.Column(min_width=260):
                fields["lora"] = changing_choices.dropdown(choices=[], value=None, label="Training to use",
                                                           filterable=False, elem_id="lora")  # fmt: skip
                lora_file = gr.File(label="Your LoRA (.safetensors)", file_types=[".safetensors"], height=150,
                                    visible=False, elem_id="lora-file", elem_classes="hs-drop")  # fmt: skip
                problems["lora"] = _problem("lora")
                lora_note = safe_html({"text": ""}, NOTE, elem_id="lora-note", elem_classes="hs-place")
                untrained = safe_html({"text": ""}, NOTE, elem_id="untrained", elem_classes="hs-place")
                untrained_there = gr.Button("Go to Train", elem_id="to-train", elem_classes="hs-plain hs-narrow",
                                            size="sm", visible=False)  # fmt: skip
            with gr.Column(min_width=260):
                fields["count"] = gr.Slider(1, MOST_PER_LOOK, PICTURES_PER_LOOK, step=1, label="Pictures of each look",
                                            elem_id="count")  # fmt: skip
                problems["count"] = _problem("count")
        with gr.Row(elem_classes="hs-fields"):
            with gr.Column(min_width=260):
                fields["refine"] = gr.Radio(REFINE_CHOICES, value=refine.default if refine else "off",
                                            label="Finish with the refiner?", info=REFINE_INFO, elem_id="refine",
                                            interactive=can_refine, visible=can.takes_refiner)  # fmt: skip
                refine_note = safe_html(
                    {"text": refine.reason if refine else ""}, NOTE, elem_id="refine-note", elem_classes="hs-place"
                )
                problems["refine"] = _problem("refine")
            with gr.Column(min_width=260):
                with gr.Row(elem_classes="hs-seed"):
                    fields["seed"] = gr.Textbox("0", label="Seed", max_lines=1, elem_id="seed", min_width=140,
                                               info="The same seed and settings give the same pictures.")  # fmt: skip
                    dice = gr.Button("New seed", elem_id="dice", elem_classes="hs-plain", scale=0, min_width=130)
                problems["seed"] = _problem("seed")
                fields["speed"] = gr.Radio(SPEED_CHOICES, value=EXACT, label="Exact or fast?", info=speed_info(can),
                                           elem_id="speed", visible=bool(speed_info(can)))  # fmt: skip
                problems["speed"] = _problem("speed")
        with gr.Accordion("Expert settings", open=False, elem_id="expert") as expert:
            base_note = _expert(fields, problems, bases, first, can)
        plan = safe_html({"lines": []}, templates.LINES, elem_id="plan")
        draw = gr.Button("Draw headshots", variant="primary", size="lg", elem_id="draw")
        draw_problem = _problem("draw")
        preview = safe_html({"picture": ""}, PREVIEW, elem_id="generate-preview", elem_classes="hs-place")
    return Form(nobody, nobody_there, card, fields, problems, lora_file, lora_note, untrained, untrained_there,
                refine_note, dice, expert, base_note, plan, draw, draw_problem, preview)  # fmt: skip


def _expert(
    fields: dict[str, Any], problems: dict[str, gr.HTML], bases: Sequence[BaseInfo], first: BaseInfo | None,
    can: Abilities,
) -> Any:
    """Fields a beginner never touches; left empty, the base model's own defaults count."""
    with gr.Column():
        fields["base"] = changing_choices.dropdown(
            choices=[(info.title, info.id) for info in bases], value=first.id if first else None,
            label="Base model", filterable=False, elem_id="generate-base",
        )  # fmt: skip
        note = safe_html({"text": first.note if first else ""}, NOTE, elem_id="generate-base-note")
        problems["base"] = _problem("base")
    usual = usual_values(first)
    with gr.Row(elem_classes="hs-fields"):
        _number(fields, problems, "steps", "Steps", "More are finer and slower.", usual)
        _number(fields, problems, "guidance_scale", "Guidance", "How strictly the words are followed.", usual)
        _number(fields, problems, "keep_best", "Keep the best", "How many count as kept; empty keeps all.", usual)
    with gr.Row(elem_classes="hs-fields"):
        _number(fields, problems, "width", "Width in pixels", "A multiple of 64.", usual)
        _number(fields, problems, "height", "Height in pixels", "A multiple of 64.", usual)
        with gr.Column(min_width=170):
            fields["lora_scale"] = gr.Slider(-2, 3, 1, step=0.05, label="Strength of the training",
                                             info="1 is as trained; less is freer.", elem_id="lora_scale")  # fmt: skip
            problems["lora_scale"] = _problem("lora_scale")
    with gr.Row(elem_classes="hs-fields"):
        _number(fields, problems, "refiner_switch", "The refiner takes over at",
                "0.05 to 0.95 of the way; for “Finish”.", usual)  # fmt: skip
        _number(fields, problems, "refiner_strength", "How much it draws over",
                "0.01 to 1; for “Draw over lightly”.", usual)  # fmt: skip
    fields["negative_prompt"] = gr.Textbox(label="What should not be in the picture", lines=2, max_lines=4,
                                           elem_id="negative_prompt", visible=can.reads_negative_prompt)  # fmt: skip
    problems["negative_prompt"] = _problem("negative_prompt")
    return note


def _number(
    fields: dict[str, Any], problems: dict[str, gr.HTML], name: str, label: str, info: str, usual: Mapping[str, str]
) -> None:
    """A box of text, for gradio shows an empty number as 0."""
    with gr.Column(min_width=170):
        fields[name] = gr.Textbox(label=label, info=info, elem_id=name, max_lines=1, placeholder=usual.get(name, ""))
        problems[name] = _problem(name)


def _problem(field: str) -> gr.HTML:
    """The place for one sentence right under the field it is about."""
    return safe_html({"text": ""}, PROBLEM, elem_id=f"{field}-problem-g", elem_classes="hs-problem-place")


# --- values -----------------------------------------------------------------------------------------------------
def problem_values(field: str = "", sentence: str = "") -> list[Any]:
    """Values of ``Form.all_problems``: one sentence at its field, else under the button; nothing without one."""
    texts = [{"text": sentence if name == field else ""} for name in FIELDS]
    opened = gr.Accordion(open=True) if field in EXPERT and sentence else gr.skip()
    return [*texts, {"text": sentence if field not in FIELDS else ""}, opened]


def refine_values(choice: RefineChoice) -> list[Any]:
    """Values of the refiner's choice and the note under it: what cannot be done is disabled with the reason."""
    free = not choice.reason
    return [gr.Radio(interactive=free, value=choice.default, visible=choice.offered), {"text": choice.reason}]


def lora_values(choices: list[tuple[str, str]], wanted: str | None, person: str) -> list[Any]:
    """Values of the training's choice, the note and the button under it."""
    known = [value for _, value in choices]
    trained = bool({*known} - {NO_LORA, FILE})
    chosen = wanted if wanted in known else (known[0] if trained else None)
    note = "" if trained or not person else (
        f"“{person}” has no finished training yet. Train first, so that the pictures look like the person."
    )  # fmt: skip
    return [gr.Dropdown(choices=choices, value=chosen), {"text": note}, gr.Button(visible=bool(note))]


def usual_values(info: BaseInfo | None) -> dict[str, str]:
    """What counts where a number is left empty, by field."""
    if info is None:
        return {}
    defaults = info.defaults
    usual = {"steps": defaults.sampling_steps, "guidance_scale": defaults.guidance_scale, "width": info.size_px,
             "height": info.size_px, "refiner_switch": defaults.refiner_switch,
             "refiner_strength": defaults.refiner_strength}  # fmt: skip
    return {name: f"{value:g}" for name, value in usual.items()}


def placeholder_values(info: BaseInfo | None) -> list[Any]:
    """Updates of the fields in ``USUAL``."""
    usual, refined = usual_values(info), abilities_of(info).takes_refiner
    return [gr.Textbox(placeholder=usual.get(name, ""), visible=refined or name not in OF_REFINER) for name in USUAL]


def guided_values(info: BaseInfo | None) -> list[Any]:
    """Updates of the fields in ``GUIDED``: what means nothing to a base is not shown, and what was set goes."""
    can = abilities_of(info)
    told = speed_info(can)
    return [
        gr.Radio(visible=True, info=told) if told else gr.Radio(visible=False, value=EXACT),
        gr.Textbox(visible=True) if can.reads_negative_prompt else gr.Textbox(visible=False, value=""),
    ]


def speed_info(can: Abilities) -> str:
    """What “fast” means to a base; "" where it would mean nothing."""
    if can.reads_negative_prompt:
        return SPEED_INFO
    return REUSE_INFO if can.reuses_blocks else ""
