"""The person picker at the top of the page: choose, add, delete."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from headshot_ui.errors import HeadshotError, SpecError
from headshot_ui.store import Store, readable_bytes
from headshot_ui.ui import changing_choices, templates
from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.outcomes import count_of
from headshot_ui.ui.request import person_name
from headshot_ui.ui.tab import CLICK, QUIET, Shell, problem

if TYPE_CHECKING:
    from headshot_ui.ui.live import EngineLike, Live

#: Folders of a person and what lies in them, in the order in which they are told.
KEPT = {"photos": "photo", "dataset": "prepared photo", "runs": "training run", "headshots": "set of headshots",
        "prompts": "kept prompt", "restored": "set of restored pictures", "exports": "export"}  # fmt: skip
PHOTO_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp"})


@dataclass(frozen=True)
class People:
    """The components."""

    row: gr.Row
    person: gr.Dropdown
    new: gr.Button
    delete: gr.Button
    adding: gr.Column
    hint: gr.HTML
    name: gr.Textbox
    name_problem: gr.HTML
    add: gr.Button
    keep_old: gr.Button
    deleting: gr.Column
    listing: gr.HTML
    delete_problem: gr.HTML
    really: gr.Button
    keep: gr.Button


def picker_layout(people: Sequence[str]) -> tuple[gr.Row, gr.Dropdown, gr.Button, gr.Button]:
    """The row beside the title; hidden where nobody was added yet."""
    with gr.Row(elem_id="who", visible=bool(people)) as row:
        person = changing_choices.dropdown(
            choices=list(people), value=None, label="Person", elem_id="person", filterable=False, scale=1, min_width=180
        )
        new = gr.Button("New person", elem_id="new-person", elem_classes="hs-plain", size="sm", scale=0, min_width=110)
        delete = gr.Button("Delete …", elem_id="delete-person", elem_classes="hs-plain", size="sm", scale=0,
                           min_width=90, interactive=False)  # fmt: skip
    return row, person, new, delete


def layout(people: Sequence[str], picker: tuple[gr.Row, gr.Dropdown, gr.Button, gr.Button]) -> People:
    """Under the title: the name field, open where nobody was added yet, and the question before deleting."""
    with gr.Column(elem_id="adding", elem_classes="hs-card", visible=not people) as adding:
        hint = safe_html({"first": not people}, html_template=templates.NEW_PERSON)
        with gr.Row(elem_classes="hs-field-row"):
            name = gr.Textbox(label="Name of the person", placeholder="anna", max_lines=1, elem_id="name",
                              max_length=80, scale=1, min_width=200)  # fmt: skip
            add = gr.Button("Add", variant="primary", elem_id="add-person", scale=0, min_width=110)
            keep_old = gr.Button("Cancel", elem_id="keep-old", elem_classes="hs-plain", scale=0, min_width=100,
                                 visible=bool(people))  # fmt: skip
        name_problem = problem("name-problem")
    with gr.Column(elem_id="deleting", elem_classes="hs-card", visible=False) as deleting:
        listing = safe_html({"name": "", "kept": []}, html_template=templates.DELETE_PERSON, elem_id="listing")
        delete_problem = problem("delete-problem")
        with gr.Row(elem_classes="hs-actions"):
            keep = gr.Button("Keep everything", elem_id="keep-person", elem_classes="hs-plain", scale=0, min_width=160)
            really = gr.Button("Delete for good", variant="stop", elem_id="really-delete", scale=0, min_width=160)
    row, person, new, delete = picker
    return People(row, person, new, delete, adding, hint, name, name_problem, add, keep_old, deleting, listing,
                  delete_problem, really, keep)  # fmt: skip


def chosen_values(live: Live, person: str) -> list[Any]:
    """Values of ``chosen_outputs`` when ``person`` ("" for nobody) is chosen."""
    names = live.people(person)
    if person not in names:  # deleted meanwhile, on another page
        person = names[0] if names and person else ""
    return [
        gr.Row(visible=bool(names)),
        # With nobody to choose from the list is hidden, and a name that is added meanwhile must not be lost.
        gr.Dropdown(choices=names, value=person or None) if names else gr.skip(),
        gr.Button(interactive=bool(person)),
        gr.Column(visible=not person),
        {"first": not names},
        gr.Textbox(value="") if person else gr.skip(),
        {"text": ""},
        gr.Button(visible=bool(names)),
        gr.Column(visible=False),
    ]


def chosen_outputs(people: People) -> list[Any]:
    return [people.row, people.person, people.delete, people.adding, people.hint, people.name, people.name_problem,
            people.keep_old, people.deleting]  # fmt: skip


def wire(people: People, shell: Shell, store: Store) -> None:
    """Adding and deleting. What follows from another choice is wired where the page is put together."""

    def add(name: str) -> list[Any]:
        try:
            person = person_name(name or "")
        except SpecError as error:
            return [*[gr.skip()] * 6, {"text": str(error)}, gr.skip(), gr.skip()]
        shell.live.welcome(person)
        return chosen_values(shell.live, person)

    def ask(person: str | None) -> list[Any]:
        refused = refusal(shell.live, person or "")
        return [gr.Column(visible=True), kept_of(store, person or ""), {"text": refused},
                gr.Button(interactive=not refused), gr.Column(visible=False)]  # fmt: skip

    def delete(person: str | None) -> list[Any]:
        try:
            remove(shell.engine, store, person or "")
        except HeadshotError as error:
            return [*[gr.skip()] * 9, {"text": str(error)}]
        shell.live.forget(person or "")
        left = shell.live.people()
        values = chosen_values(shell.live, left[0] if left else "")
        values[1] = gr.Dropdown(choices=left, value=left[0] if left else None)
        return [*values, {"text": ""}]

    outputs = chosen_outputs(people)
    gr.on([people.add.click, people.name.submit], add, people.name, outputs, **CLICK)
    people.name.change(lambda: {"text": ""}, None, people.name_problem, **QUIET)
    opened = [people.adding, people.keep_old, people.deleting, people.hint]
    people.new.click(
        lambda: [gr.Column(visible=True), gr.Button(visible=True), gr.Column(visible=False), {"first": False}],
        None, opened, **QUIET,
    )  # fmt: skip
    people.keep_old.click(lambda person: chosen_values(shell.live, person or ""), people.person, outputs, **QUIET)
    people.delete.click(
        ask, people.person, [people.deleting, people.listing, people.delete_problem, people.really, people.adding],
        **QUIET,
    )  # fmt: skip
    people.keep.click(lambda: gr.Column(visible=False), None, people.deleting, **QUIET)
    people.really.click(delete, people.person, [*outputs, people.delete_problem], **CLICK)


def refusal(live: Live, person: str) -> str:
    """Why a person cannot be deleted now; "" when nothing speaks against it."""
    unfinished = live.unfinished(person) if person else ()
    if not unfinished:
        return ""
    return f"“{unfinished[0].snapshot.title}” is not finished: cancel it first, then delete."


def remove(engine: EngineLike, store: Store, person: str) -> None:
    """Delete what is kept of a person, if anything is. Raises StoreError."""
    if person and store.person_dir(person).is_dir():
        engine.delete_person(person)


def kept_of(store: Store, person: str) -> dict[str, Any]:
    """What deleting a person removes, for the template: one line per folder, with its count, and the total size."""
    if not person:
        return {"name": "", "kept": [], "size": ""}
    folder = store.person_dir(person)
    counts = [(what, _count(folder / name)) for name, what in KEPT.items()]
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return {"name": person, "kept": [_plural(number, what) for what, number in counts if number],
            "size": readable_bytes(size)}  # fmt: skip


def _plural(number: int, what: str) -> str:
    first, _, rest = what.partition(" of ")
    return count_of(number, first) + (f" of {rest}" if rest else "")


def _count(folder: Path) -> int:
    if not folder.is_dir():
        return 0
    entries = [entry for entry in folder.iterdir() if not entry.name.startswith(".")]
    if folder.name in ("photos", "dataset"):
        return sum(entry.suffix.lower() in PHOTO_SUFFIXES for entry in entries)
    if folder.name == "prompts":
        return len(entries)
    return sum(entry.is_dir() for entry in entries)
