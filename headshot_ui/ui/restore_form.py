"""The upper half of the Restore tab: which pictures, how strongly, with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from headshot_ui.ui import studio_templates as templates
from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.restore_request import UPSCALE_CHOICES, RestorerChoice, first_usable
from headshot_ui.ui.templates import CHOSEN, NOTE, PREVIEW, PROBLEM
from headshot_ui.ui.thumbnails import PHOTO_ENDINGS
from headshot_ui.ui.tiles import Tile, tiles_html, tiles_value

FIELDS = ("pictures", "fidelity_weight", "restorer", "faces", "upscale")
HEADSHOTS, FACES = "Headshots", "Faces"
PICKS_TITLE = "Or choose from the headshots"
WEIGHT_INFO = (
    "Left repairs more and may change the face; right keeps more of what is there, flaws too. Begin in the middle."
)
OUTLINE_INFO = "Cleaner at hair and glasses, a little slower."
ACCEPT = "I have read this and accept it: I use it for non-commercial purposes only."


@dataclass(frozen=True)
class Form:
    """The components; ``problems`` by the names in ``FIELDS``."""

    uploads: gr.File
    uploaded: gr.HTML
    picks: gr.HTML
    no_picks: gr.HTML
    faces: gr.HTML
    faces_note: gr.HTML
    faces_shown: gr.State  # tiles of the faces that can be ticked
    weight: gr.Slider
    restorer: gr.Dropdown
    restorer_note: gr.HTML
    restorer_missing: gr.HTML
    terms: gr.HTML
    accept: gr.Checkbox
    upscale: gr.Radio
    upscale_note: gr.HTML
    outline: gr.Checkbox
    plan: gr.HTML
    restore: gr.Button
    problems: Mapping[str, gr.HTML]
    problem: gr.HTML
    preview: gr.HTML

    @property
    def settings(self) -> list[Any]:
        """What a request is made of, besides the person: the inputs of every handler that makes one."""
        return [self.uploads, self.picks, self.faces, self.faces_shown, self.weight, self.restorer, self.upscale,
                self.outline]  # fmt: skip

    @property
    def of_restorer(self) -> list[Any]:
        return [self.restorer_note, self.restorer_missing, self.terms, self.accept, self.restore]

    @property
    def of_faces(self) -> list[Any]:
        return [self.faces, self.faces_note, self.faces_shown]

    @property
    def all_problems(self) -> list[Any]:
        return [*(self.problems[name] for name in FIELDS), self.problem]


def layout(restorers: Sequence[RestorerChoice], outline_missing: str) -> Form:
    """All of it; ``outline_missing`` says why faces cannot be blended along their outline."""
    chosen = first_usable(restorers)
    problems: dict[str, gr.HTML] = {}
    with gr.Column(elem_classes="hs-card", elem_id="restore-form"):
        safe_html({"title": "Which pictures?",
                   "text": "Any picture with a face: your own photos, old ones, or headshots drawn here."},
                  templates.HEADING)  # fmt: skip
        uploads = gr.File(label="Pictures, or a zip of them", file_count="multiple", height=130,
                          file_types=list(PHOTO_ENDINGS), elem_id="restore-files", elem_classes="hs-drop")  # fmt: skip
        uploaded = safe_html({"count": ""}, CHOSEN, elem_id="restore-uploaded", elem_classes="hs-place")
        picks = tiles_html(tiles_value(HEADSHOTS, [], []), "picks", visible=False)
        no_picks = safe_html({"text": ""}, NOTE, elem_id="no-picks", elem_classes="hs-place")
        problems["pictures"] = _problem("pictures")
        faces_note = safe_html({"text": ""}, NOTE, elem_id="faces-note", elem_classes="hs-place")
        faces = tiles_html(tiles_value(FACES, [], []), "faces", visible=False)
        faces_shown = gr.State(())
        problems["faces"] = _problem("faces")
        with gr.Row(elem_classes="hs-fields"):
            with gr.Column(min_width=280):
                weight = gr.Slider(0, 1, 0.5, step=0.05, label="Repair ↔ keep", info=WEIGHT_INFO, elem_id="weight")
                safe_html({"low": "repair", "high": "keep"}, templates.ENDS)
                problems["fidelity_weight"] = _problem("fidelity_weight")
            with gr.Column(min_width=280):
                upscale = gr.Radio(UPSCALE_CHOICES, value=1, label="Enlarge the picture", elem_id="upscale")
                upscale_note = safe_html({"text": ""}, NOTE, elem_id="upscale-note", elem_classes="hs-place")
                problems["upscale"] = _problem("upscale")
        restorer, note, missing, terms, accept, outline = _with_what(restorers, chosen, outline_missing, problems)
        plan = safe_html({"lines": []}, templates.LINES, elem_id="restore-plan", elem_classes="hs-place")
        restore = gr.Button("Restore", variant="primary", size="lg", elem_id="restore",
                            interactive=chosen is not None and not chosen.missing)  # fmt: skip
        problem = _problem("restore")
        preview = safe_html({"picture": ""}, PREVIEW, elem_id="restore-preview", elem_classes="hs-place")
    return Form(uploads, uploaded, picks, no_picks, faces, faces_note, faces_shown, weight, restorer, note, missing,
                terms, accept, upscale, upscale_note, outline, plan, restore, problems, problem, preview)  # fmt: skip


def _with_what(
    restorers: Sequence[RestorerChoice],
    chosen: RestorerChoice | None,
    outline_missing: str,
    problems: dict[str, gr.HTML],
) -> tuple[Any, ...]:
    with gr.Row(elem_classes="hs-fields"):
        with gr.Column(min_width=280):
            restorer = gr.Dropdown(dropdown_choices(restorers), value=chosen.id if chosen else None, label="Restorer",
                                   filterable=False, elem_id="restorer")  # fmt: skip
            note = safe_html({"text": chosen.note if chosen else ""}, NOTE, elem_id="restorer-note",
                             elem_classes="hs-place")  # fmt: skip
            missing = safe_html({"text": chosen.missing if chosen else ""}, PROBLEM, elem_id="restorer-missing",
                                elem_classes="hs-problem-place")  # fmt: skip
            problems["restorer"] = _problem("restorer")
            terms = safe_html({"text": chosen.terms if chosen else ""}, templates.LICENCE, elem_id="licence",
                              elem_classes="hs-place")  # fmt: skip
            accept = gr.Checkbox(False, label=ACCEPT, visible=bool(chosen and chosen.terms), elem_id="accept")
        with gr.Column(min_width=280):
            outline = gr.Checkbox(False, label="Blend in along the outline of the face", elem_id="outline",
                                  interactive=not outline_missing,
                                  info=outline_missing or OUTLINE_INFO)  # fmt: skip
    return restorer, note, missing, terms, accept, outline


def _problem(field: str) -> gr.HTML:
    return safe_html({"text": ""}, PROBLEM, elem_id=f"{field}-problem-r", elem_classes="hs-problem-place")


# --- values ----------------------------------------------------------------------------------------------------------
def dropdown_choices(restorers: Sequence[RestorerChoice]) -> list[tuple[str, str]]:
    """Titles; what cannot be used yet says so."""
    return [(f"{each.title} (not ready)" if each.missing else each.title, each.id) for each in restorers]


def restorer_values(choice: RestorerChoice | None) -> list[Any]:
    """Values of ``Form.of_restorer``."""
    if choice is None:
        return [{"text": ""}, {"text": "No restorer was found: get the program again."}, {"text": ""},
                gr.Checkbox(visible=False), gr.Button(interactive=False)]  # fmt: skip
    accept = gr.Checkbox(value=False, visible=bool(choice.terms))
    button = gr.Button(interactive=not choice.missing)
    return [{"text": choice.note}, {"text": choice.missing}, {"text": choice.terms}, accept, button]


def pick_values(tiles: Sequence[Tile], chosen: Sequence[str] | None) -> list[Any]:
    """Values of the tiles of headshots and the sentence that stands for them; ``chosen`` None leaves what is ticked."""
    note = "" if tiles else "Headshots drawn in Generate can be chosen here too; there are none yet."
    return [gr.HTML(value=tiles_value(HEADSHOTS, tiles, chosen, PICKS_TITLE), visible=bool(tiles)), {"text": note}]


def face_values(tiles: Sequence[Tile], note: str) -> list[Any]:
    """Values of ``Form.of_faces``; all are ticked."""
    ids = [tile["id"] for tile in tiles]
    return [gr.HTML(value=tiles_value(FACES, tiles, ids), visible=bool(tiles)), {"text": note}, tuple(ids)]


def problem_values(field: str = "", sentence: str = "") -> list[Any]:
    """Values of ``Form.all_problems``."""
    texts = [{"text": sentence if name == field else ""} for name in FIELDS]
    return [*texts, {"text": sentence if field not in FIELDS else ""}]
