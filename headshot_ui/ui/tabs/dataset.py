"""Dataset: drop photos, have them checked, change captions, leave some out."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from headshot_ui import families
from headshot_ui.errors import HeadshotError, SpecError
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.specs import AUTOMATIC, PHRASE, Spec
from headshot_ui.store import Store
from headshot_ui.ui import changing_choices, templates
from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.models_panel import base_dropdown
from headshot_ui.ui.outcomes import count_of
from headshot_ui.ui.photos import grid_values, kept_photos, photos_of, state_of
from headshot_ui.ui.request import headshots_request, person_name, prepare_request
from headshot_ui.ui.tab import CLICK, QUIET, Shell, Tab, nudged, problem
from headshot_ui.ui.tabs.dataset_editor import Editor, editor_layout, wire_editor
from headshot_ui.ui.thumbnails import PHOTO_ENDINGS, data_uri
from headshot_ui.usual_base import about_base, usual_base

CHOSEN_SHOWN, CHOSEN_PX = 24, 96
DEMO_PERSON, DEMO_PHOTOS, DEMO_FOLDER = "demo-robin", "demo/people/robin", "demo-photos"
CHECK, CHECKING = "Check my photos", "Checking …"
CAPTION_CHOICES = [("A fixed phrase", PHRASE), ("Described automatically", AUTOMATIC)]
CAPTIONS_LABEL = "What is said of each photo"
CAPTIONS_HELP = (
    "Described: clothes, light and background in words, never the face; needs Florence-2 from Models. What you changed "
    "by hand stays."
)
WHOLE, MAKING = "Make my headshots", "Making headshots …"


@dataclass(frozen=True)
class _Parts:
    files: gr.File
    chosen: gr.HTML
    photos_problem: gr.HTML
    kept: gr.Checkbox
    demo: gr.Button
    base: gr.Dropdown
    base_note: gr.HTML
    base_problem: gr.HTML
    captions: gr.Radio
    check: gr.Button
    whole: gr.Button
    problem: gr.HTML
    checked: gr.Column
    count: gr.HTML
    grid: gr.HTML
    editor: Editor
    onward: gr.Button


def build(shell: Shell) -> Tab:
    """The tab; see ``ui/tab.py``."""
    bases = list(families.all_bases(shell.settings))
    parts = _layout(bases, shell)
    store = Store(shell.settings)
    _wire_choosing(parts, shell, bases)
    _wire_jobs(parts, shell, store)
    wire_editor(parts.editor, shell, store, parts.grid, parts.count)
    _wire_installed(parts, shell, bases)
    parts.onward.click(lambda: gr.Tabs(selected="train"), None, shell.tabs, **QUIET)
    outputs = (
        parts.files,
        parts.kept,
        parts.check,
        parts.whole,
        parts.checked,
        parts.count,
        parts.grid,
        parts.editor.box,
    )
    return Tab(outputs, _refresher(shell, store))


# --- layout -----------------------------------------------------------------------------------------
def _layout(bases: Sequence[BaseInfo], shell: Shell) -> _Parts:
    usual = usual_base(bases, shell.settings)
    with gr.Column(elem_id="checked", elem_classes="hs-card", visible=False) as checked:
        count = safe_html({"count": ""}, html_template=templates.PHOTO_COUNT, elem_id="photo-count")
        with gr.Row(elem_classes="hs-columns hs-photos-row"):
            grid, editor = editor_layout()
        onward = gr.Button("Next: train", variant="primary", elem_id="to-train", elem_classes="hs-onward", scale=0,
                           min_width=180)  # fmt: skip
    with gr.Row(elem_classes="hs-columns"):
        with gr.Column(scale=3, min_width=300, elem_classes="hs-card", elem_id="give"):
            safe_html({}, html_template="<h2>Add photos</h2>")
            files = gr.File(
                label="Photos, or a zip of them", file_count="multiple", height=150, file_types=list(PHOTO_ENDINGS),
                elem_id="files", elem_classes="hs-drop",
            )  # fmt: skip
            chosen = safe_html({"count": ""}, html_template=templates.CHOSEN, elem_id="chosen")
            photos_problem = problem("photos-problem")
            demo = gr.Button("Use the demo photos", size="sm", elem_id="demo", elem_classes="hs-plain")
            kept = gr.Checkbox(True, label="Also use the photos kept from before", elem_id="kept", visible=False)
            base = changing_choices.dropdown(
                choices=[(info.title, info.id) for info in bases], value=usual.id if usual else None,
                label="Base model", elem_id="base", filterable=False,
            )  # fmt: skip
            base_note = safe_html({"text": about_base(usual, bases, shell.settings)}, html_template=templates.NOTE,
                                elem_id="base-note")  # fmt: skip
            base_problem = problem("base-problem")
            captions = gr.Radio(CAPTION_CHOICES, value=PHRASE, label=CAPTIONS_LABEL, info=CAPTIONS_HELP,
                                elem_id="captions")  # fmt: skip
            with gr.Row(elem_classes="hs-actions"):
                check = gr.Button(CHECK, variant="primary", size="lg", elem_id="check", min_width=200)
                whole = gr.Button(WHOLE, size="lg", elem_id="whole", elem_classes="hs-plain", min_width=200)
            safe_html({}, html_template=templates.TWO_WAYS)
            start_problem = problem("start-problem")
        with gr.Column(scale=2, min_width=260):
            safe_html({}, html_template=templates.HOW)
    return _Parts(files, chosen, photos_problem, kept, demo, base, base_note, base_problem, captions, check, whole,
                  start_problem, checked, count, grid, editor, onward)  # fmt: skip


def _wire_installed(parts: _Parts, shell: Shell, bases: list[BaseInfo]) -> None:
    first = usual_base(bases, shell.settings)
    before = gr.State(first.id if first else "")  # the usual one when this browser was last told

    def other_models(chosen: str | None, before: str) -> list[Any]:
        """Who left the choice at the usual one goes on with what is usual now."""
        bases[:] = families.all_bases(shell.settings)
        usual = usual_base(bases, shell.settings)
        now = usual.id if usual else ""
        return [base_dropdown(bases, chosen, usual, wanted=now if chosen == before else None), now]

    shell.installed.change(other_models, [parts.base, before], [parts.base, before], **QUIET)


# --- choosing photos --------------------------------------------------------------------------------
def _wire_choosing(parts: _Parts, shell: Shell, bases: Sequence[BaseInfo]) -> None:
    files_of = gr.State("")  # whose photos were dropped

    def demo_photos() -> list[Any]:
        found = _demo_photos(shell)
        if not found:
            text = "The demo photos are missing: get a complete copy of the program."
            return [gr.skip(), gr.skip(), gr.skip(), {"text": text}]
        target = shell.shown_dir / DEMO_FOLDER
        target.mkdir(parents=True, exist_ok=True)
        copies = [str(shutil.copy2(path, target / path.name)) for path in found]
        drawn = next((info.id for info in bases if info.demo), gr.skip())
        shell.live.welcome(DEMO_PERSON)
        person = gr.Dropdown(choices=shell.live.people(), value=DEMO_PERSON)
        return [person, copies, drawn, {"text": ""}]

    parts.demo.click(demo_photos, None, [shell.person, parts.files, parts.base, parts.photos_problem], **QUIET)
    parts.files.change(lambda files: _chosen(files or []), parts.files, parts.chosen, **QUIET)
    for field in (parts.files, parts.kept):
        field.change(lambda: {"text": ""}, None, parts.photos_problem, **QUIET)

    def other_person(person: str | None, files: list[str] | None, before: str) -> list[Any]:
        """Photos dropped for one person are not checked as another's; those of nobody yet, and the demo's, stay."""
        demo_names = {path.name for path in _demo_photos(shell)}
        demo = person == DEMO_PERSON and all(Path(path).name in demo_names for path in files or [])
        moved = bool(files) and bool(before) and before != person and not demo
        return [None if moved else gr.skip(), person or ""]

    shell.person.change(other_person, [shell.person, parts.files, files_of], [parts.files, files_of], **QUIET)
    parts.base.change(
        lambda base: [{"text": about_base(next((info for info in bases if info.id == base), None), bases,
                                          shell.settings)}, {"text": ""}],
        parts.base, [parts.base_note, parts.base_problem], **QUIET,
    )  # fmt: skip


def _demo_photos(shell: Shell) -> list[Path]:
    return sorted((shell.settings.models_dir / DEMO_PHOTOS).glob("*.jpg"))


def _chosen(files: Sequence[str]) -> dict[str, Any]:
    """Thumbnails of what was dropped, before anything is judged."""
    pictures = [path for path in map(Path, files) if path.suffix.lower() != ".zip"]
    photos = [{"name": path.name, "picture": data_uri(path, CHOSEN_PX)} for path in pictures[:CHOSEN_SHOWN]]
    archives = len(files) - len(pictures)
    count = [count_of(len(pictures), "photo")] if pictures else []
    count += [count_of(archives, "zip archive")] if archives else []
    more = f", the first {CHOSEN_SHOWN} are shown" if len(pictures) > CHOSEN_SHOWN else ""
    text = " and ".join(count) + more
    return {"photos": [photo for photo in photos if photo["picture"]] or None, "count": text}


# --- starting ---------------------------------------------------------------------------------------
def _wire_jobs(parts: _Parts, shell: Shell, store: Store) -> None:
    places = ("person", "photos", "base", "")

    def start(kind: str, make: Callable[..., Spec], person: str | None, typed: str, files: list[str] | None, kept: bool,
              base: str | None, captions: str | None) -> list[Any]:  # fmt: skip
        problems = dict.fromkeys(places, "")
        chosen: Any = gr.skip()
        try:
            name = person or person_name(typed or "")
            shell.live.welcome(name)
            chosen = gr.Dropdown(choices=shell.live.people(), value=name)
            # While it runs the list of kept photos grows, so a second click would be another request.
            if not any(job.snapshot.kind == kind for job in shell.live.unfinished(name)):
                photos = _photos_of(store, name, files or [], kept)
                shell.live.submit(make(name, photos, base or "", captions or PHRASE))
        except SpecError as error:
            problems[error.field if error.field in places else ""] = str(error)
        except HeadshotError as error:
            problems[""] = str(error)
        return [*({"text": text} for text in problems.values()), chosen, nudged()]

    fields = [shell.person, shell.new_name, parts.files, parts.kept, parts.base, parts.captions]
    outputs = [shell.name_problem, parts.photos_problem, parts.base_problem, parts.problem, shell.person, shell.nudge]
    parts.check.click(partial(start, "prepare", prepare_request), fields, outputs, **CLICK)
    parts.whole.click(partial(start, "headshots", headshots_request), fields, outputs, **CLICK)


def _photos_of(store: Store, person: str, files: Sequence[str], kept: bool) -> list[str]:
    """What is to be checked: the files dropped, and those kept from before where that is wanted."""
    before = [str(store.photos_dir(person))] if kept and kept_photos(store, person) else []
    return [*files, *before]


# --- what is new ------------------------------------------------------------------------------------
@dataclass(frozen=True)
class _Mark:
    """What one browser shows."""

    person: str
    number: int  # of the prepared set; 0: none
    changed_ns: int
    kept: int
    checking: bool
    whole: bool


def _refresher(shell: Shell, store: Store) -> Callable[[str, Any], tuple[list[Any], Any] | None]:
    def refresh(person: str, mark: _Mark | None) -> tuple[list[Any], Any] | None:
        number, changed_ns = state_of(store, person) if person else (0, 0)
        kinds = {job.snapshot.kind for job in shell.live.unfinished(person)} if person else set()
        kept = kept_photos(store, person) if person else 0
        now = _Mark(person, number, changed_ns, kept, "prepare" in kinds, "headshots" in kinds)
        return None if now == mark else (_values(store, now, mark), now)

    return refresh


def _values(store: Store, now: _Mark, before: _Mark | None) -> list[Any]:
    same_set = before is not None and (before.person, before.number) == (now.person, now.number)
    shown: list[Any] = [gr.skip()] * 3
    if before is None or replace(before, kept=now.kept, whole=now.whole) != now:
        shown = _checked_values(store, now) if now.number else [gr.Column(visible=False), gr.skip(), gr.skip()]
    # Photos that were dropped are among the checked ones now.
    used_up = before is not None and before.person == now.person and not same_set and now.number
    return [
        None if used_up else gr.skip(),
        gr.Checkbox(visible=now.kept > 0, label=f"Also use the {count_of(now.kept, 'photo')} kept from before"),
        gr.Button(CHECKING if now.checking else CHECK, interactive=not now.checking),
        gr.Button(MAKING if now.whole else WHOLE, interactive=not now.whole),
        *shown,
        gr.skip() if same_set and not now.checking else gr.Column(visible=False),
    ]


def _checked_values(store: Store, now: _Mark) -> list[Any]:
    """Values of the card of checked photos, its count line and its grid."""
    try:
        values = grid_values(store, now.person, photos_of(store, now.person))
    except HeadshotError as error:
        return [gr.Column(visible=True), {"count": str(error)}, {"photos": []}]
    count = {"count": values["count"], "advice": values["advice"], "busy": now.checking}
    return [gr.Column(visible=True), count, values]
