"""The lower half of the Restore tab: before and after, other weights, all results of the person."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from headshot_ui.errors import HeadshotError, StoreError
from headshot_ui.store import Store
from headshot_ui.ui import export_box
from headshot_ui.ui import restored_view as views
from headshot_ui.ui import studio_templates as templates
from headshot_ui.ui.compare import compare
from headshot_ui.ui.export_box import SENDS, ExportBox
from headshot_ui.ui.gallery import copied
from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.page_js import BUTTONS
from headshot_ui.ui.picture_sets import delete_picture, picture_id, undelete_picture
from headshot_ui.ui.restore_form import FACES
from headshot_ui.ui.restore_request import chosen_faces
from headshot_ui.ui.restored_view import Seen, View
from headshot_ui.ui.tab import CLICK, Shell, nudged
from headshot_ui.ui.templates import NOTE, PROBLEM
from headshot_ui.ui.tiles import tiles_html, tiles_value


@dataclass(frozen=True)
class Results:
    """The components."""

    card: gr.Column
    heading: gr.HTML
    closer: gr.Row
    slider: gr.HTML
    facts: gr.HTML
    star: gr.Button
    download: gr.DownloadButton
    delete: gr.Button
    weight: gr.Slider
    again_faces: gr.HTML
    faces_shown: gr.State
    again: gr.Button
    why_not: gr.HTML
    variants: gr.HTML
    undo: gr.Button
    problem: gr.HTML
    grid: gr.HTML
    box: ExportBox
    export_column: gr.Column
    view: gr.State
    aside: gr.State

    @property
    def shown(self) -> list[Any]:
        """What ``values`` has values for."""
        return [self.heading, self.closer, self.slider, self.facts, self.star, self.download, self.weight,
                self.again_faces, self.faces_shown, self.again, self.why_not, self.variants, self.grid,
                self.export_column, self.box.these, self.view]  # fmt: skip


def layout() -> Results:
    """All of it."""
    view, aside, faces_shown = gr.State(View()), gr.State(None), gr.State(())
    with gr.Column(elem_classes="hs-card", elem_id="restored", visible=False) as card:
        heading = safe_html({"title": "", "text": ""}, templates.HEADING, elem_id="restored-heading")
        with gr.Row(elem_classes="hs-closer", visible=False) as closer:
            with gr.Column(scale=3, min_width=280):
                slider = compare("compare")
            with gr.Column(scale=2, min_width=280):
                facts = safe_html({"facts": []}, templates.FACTS, elem_id="restored-facts")
                with gr.Row(elem_classes="hs-picture-actions"):
                    star = gr.Button("☆ Star", elem_id="restored-star")
                    download = gr.DownloadButton("Download", elem_id="restored-download")
                    delete = gr.Button("Delete", elem_id="restored-delete")
                weight = gr.Slider(
                    0, 1, 0.5, step=0.05, label="Try another weight: repair ↔ keep", elem_id="again-weight"
                )
                again_faces = tiles_html(tiles_value(FACES, [], []), "again-faces", visible=False)
                again = gr.Button("Restore again with this weight", elem_id="restore-again", elem_classes="hs-plain")
                why_not = safe_html({"text": ""}, NOTE, elem_id="why-not-again", elem_classes="hs-place")
        variants = safe_html({"variants": []}, templates.VARIANTS, js_on_load=BUTTONS, elem_id="variants",
                             elem_classes="hs-place")  # fmt: skip
        undo = gr.Button("Undo", visible=False, elem_id="undo-restored", elem_classes="hs-plain hs-narrow")
        problem = safe_html({"text": ""}, PROBLEM, elem_id="restored-problem", elem_classes="hs-problem-place")
        grid = safe_html({"shots": []}, templates.GRID, js_on_load=BUTTONS, elem_id="restored-grid")
        with gr.Column(visible=False) as export_column:
            box = export_box.layout("restored")
    return Results(card, heading, closer, slider, facts, star, download, delete, weight, again_faces, faces_shown,
                   again, why_not, variants, undo, problem, grid, box, export_column, view, aside)  # fmt: skip


def values(store: Store, shown_dir: Path, person: str, seen: Seen) -> list[Any]:
    """Values of ``Results.shown``."""
    made = seen.shown
    starred = made is not None and made.picture.path in seen.stars
    tiles, repaired = views.face_values(seen, shown_dir)
    why_not = views.why_not_again(seen)
    return [
        views.heading(seen),
        gr.Row(visible=made is not None),
        views.compare_values(seen, shown_dir),
        views.fact_values(seen),
        gr.Button("★ Starred" if starred else "☆ Star"),
        gr.DownloadButton(value=_download(made, shown_dir)),
        gr.Slider(value=made.request.fidelity_weight if made else 0.5, interactive=not why_not),
        gr.HTML(value=tiles_value(FACES, tiles, repaired), visible=bool(tiles) and not why_not),
        tuple(tile["id"] for tile in tiles),
        gr.Button(interactive=made is not None and not why_not),
        {"text": why_not},
        views.variant_values(seen, shown_dir),
        views.grid_values(seen, shown_dir),
        gr.Column(visible=made is not None),
        export_box.starred_value(store, person),
        seen.view,
    ]


def _download(made: views.Made | None, shown_dir: Path) -> str | None:
    try:
        return None if made is None else str(copied(made.picture.path, shown_dir))
    except StoreError:
        return None


def wire(results: Results, shell: Shell) -> None:
    """Everything that can be done with results."""
    store = Store(shell.settings)

    def answer(person: str | None, view: View) -> list[Any]:
        return values(store, shell.shown_dir, person or "", views.look(store, person or "", view))

    def press(person: str | None, view: View, event: gr.EventData) -> list[Any]:
        wanted, item = str(event.do), str(event.item)
        if wanted == "open":
            view = View(item, view.page)
        elif wanted == "page":
            view = views.turned(item)
        elif wanted == "star":
            return star_one(person, view, item)
        return [{"text": ""}, *answer(person, view)]

    def star_one(person: str | None, view: View, item: str) -> list[Any]:
        try:
            views.toggle_star(store, person or "", views.look(store, person or "", view), item)
        except HeadshotError as error:
            return [{"text": str(error)}, *[gr.skip()] * len(results.shown)]
        return [{"text": ""}, *answer(person, view)]

    def star(person: str | None, view: View) -> list[Any]:
        return star_one(person, view, views.look(store, person or "", view).view.picture)

    def again(person: str | None, view: View, weight: float, faces: Any, shown: tuple[str, ...]) -> list[Any]:
        try:
            seen = views.look(store, person or "", view)
            shell.live.submit(views.again_request(seen, weight, chosen_faces(faces, shown)))
        except HeadshotError as error:
            return [{"text": str(error)}, gr.skip()]
        return [{"text": ""}, nudged()]

    shown = [shell.person, results.view]
    outputs = [results.problem, *results.shown]
    results.grid.click(press, shown, outputs, **CLICK)
    results.variants.click(press, shown, outputs, **CLICK)
    results.star.click(star, shown, outputs, **CLICK)
    results.again.click(again, [*shown, results.weight, results.again_faces, results.faces_shown],
                        [results.problem, shell.nudge], **SENDS)  # fmt: skip
    _wire_deleting(results, shell, store, answer)
    export_box.wire(
        results.box, shell, results.view, results.slider, lambda person, view: _path_of(store, person, view)
    )


def _path_of(store: Store, person: str, view: View) -> Path | None:
    made = views.look(store, person, view).shown
    return None if made is None else made.picture.path


def _wire_deleting(results: Results, shell: Shell, store: Store, answer: Callable[..., list[Any]]) -> None:
    """A deleted picture can be brought back until the next one is deleted."""

    def delete(person: str | None, view: View) -> list[Any]:
        seen = views.look(store, person or "", view)
        if seen.shown is None:
            return [gr.skip()] * (len(results.shown) + 3)
        path = seen.shown.picture.path
        try:
            aside = delete_picture(store, person or "", path)
        except HeadshotError as error:
            return [{"text": str(error)}, *[gr.skip()] * (len(results.shown) + 2)]
        undo = gr.Button(f"“{path.name}” is deleted. Undo", visible=True)
        return [{"text": ""}, str(aside), undo, *answer(person, views.neighbour(seen))]

    def undo(person: str | None, view: View, aside: str | None) -> list[Any]:
        try:
            path = undelete_picture(Path(aside or ""))
        except HeadshotError as error:
            return [{"text": str(error)}, None, gr.Button(visible=False), *[gr.skip()] * len(results.shown)]
        return [{"text": ""}, None, gr.Button(visible=False), *answer(person, View(picture_id(path), view.page))]

    outputs = [results.problem, results.aside, results.undo, *results.shown]
    results.delete.click(delete, [shell.person, results.view], outputs, **CLICK)
    results.undo.click(undo, [shell.person, results.view, results.aside], outputs, **CLICK)
