"""The Restore tab: any picture in, its faces repaired and the picture enlarged, before and after side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from headshot_ui.errors import HeadshotError, SpecError
from headshot_ui.restoration import licence
from headshot_ui.specs import RestoreSpec
from headshot_ui.store import Store
from headshot_ui.ui import export_box, restore_form, restore_request, restored_results
from headshot_ui.ui import restored_view as views
from headshot_ui.ui.export_box import LATEST_WINS, SENDS
from headshot_ui.ui.gallery import small_addresses
from headshot_ui.ui.generate_request import plan_words
from headshot_ui.ui.given import forget_given, has_given, keep_given
from headshot_ui.ui.picture_sets import counted, picture_id, sets_mark
from headshot_ui.ui.restore_form import FIELDS, Form
from headshot_ui.ui.restored_view import View
from headshot_ui.ui.tab import CLICK, QUIET, Shell, Tab, nudged

CLEAR = "() => ({text: ''})"
UPLOADS_SHOWN, UPLOAD_PX = 12, 96


@dataclass(frozen=True)
class Mark:
    """What one browser already shows of this tab."""

    person: str
    sets: tuple[Any, ...]
    restored: tuple[Any, ...]
    working: tuple[Any, ...]  # job and newest picture
    export: Any


def build(shell: Shell) -> Tab:
    """Lay the tab out and wire it."""
    store = Store(shell.settings)
    for person in filter(partial(has_given, store), store.people()):  # all results are read to know what is needed
        forget_given(store, person, [made.picture.source for made in views.find_made(store, person)])
    form = restore_form.layout(
        restore_request.restorer_choices(shell.settings), restore_request.outline_missing(shell.settings)
    )
    results = restored_results.layout()
    _wire_pictures(form, shell, store)
    _wire_choices(form, shell)
    _wire_installed(form, shell)
    _wire_request(form, shell, store)
    restored_results.wire(results, shell)
    outputs = (form.picks, form.no_picks, form.preview, results.card, *results.shown, *results.box.refreshed)
    return Tab(outputs, lambda person, mark: _refresh(shell, store, person, mark))


# --- pictures and faces ------------------------------------------------------------------------------------------
def _wire_pictures(form: Form, shell: Shell, store: Store) -> None:
    def sent(chosen: tuple[str, tuple[str, ...]] | None, person: str | None) -> list[Any]:
        """Pictures that "Restore this" was pressed for: they come first, and only they are ticked."""
        if not chosen or chosen[0] != person:
            return [gr.skip()] * 3
        paths = [Path(path) for path in chosen[1]]
        tiles = restore_request.pick_tiles(store, person, shell.shown_dir, paths)
        return [*restore_form.pick_values(tiles, [picture_id(path) for path in paths]), None]

    def uploaded(files: Sequence[str] | None) -> dict[str, Any]:
        paths = [Path(path) for path in files or ()]
        addresses = small_addresses(paths[:UPLOADS_SHOWN], shell.shown_dir, UPLOAD_PX)
        photos = [{"name": path.name, "picture": where} for path, where in zip(paths, addresses, strict=False) if where]
        return {"photos": photos, "count": counted(len(paths), "file") if paths else ""}

    def faces(person: str | None, picks: Any, files: Sequence[str] | None, shown: tuple[str, ...]) -> list[Any]:
        paths = restore_request.chosen_paths(store, person or "", picks, files)
        if not paths and not shown:
            return [gr.skip(), {"text": ""}, gr.skip()]
        return restore_form.face_values(*restore_request.face_tiles(shell.settings, shell.shown_dir, paths))

    shell.to_restore.change(sent, [shell.to_restore, shell.person], [form.picks, form.no_picks, form.uploads], **QUIET)
    form.uploads.change(uploaded, form.uploads, form.uploaded, **LATEST_WINS)
    gr.on([form.uploads.change, form.picks.change], faces, [shell.person, form.picks, form.uploads, form.faces_shown],
          form.of_faces,
          **LATEST_WINS)  # fmt: skip


# --- restorer and enlarging ----------------------------------------------------------------------------------------
def _wire_choices(form: Form, shell: Shell) -> None:
    def chosen(restorer: str | None) -> list[Any]:
        choices = restore_request.restorer_choices(shell.settings)
        return restore_form.restorer_values(next((each for each in choices if each.id == restorer), None))

    def accept(accepted: bool, restorer: str | None) -> list[Any]:
        """Accepting is remembered for good, so it cannot be taken back by the same tick."""
        if not accepted or not restorer:
            return [gr.skip()] * (1 + len(form.of_restorer))
        try:
            licence.accept(shell.settings, restorer)
        except HeadshotError as error:
            return [gr.skip(), gr.skip(), {"text": str(error)}, *[gr.skip()] * (len(form.of_restorer) - 2)]
        choices = restore_form.dropdown_choices(restore_request.restorer_choices(shell.settings))
        return [gr.Dropdown(choices=choices), *chosen(restorer)]

    form.restorer.change(chosen, form.restorer, form.of_restorer, **QUIET)
    form.accept.input(accept, [form.accept, form.restorer], [form.restorer, *form.of_restorer], **CLICK)
    form.upscale.change(
        lambda factor: {"text": restore_request.upscale_missing(int(factor or 1), shell.settings)},
        form.upscale, form.upscale_note, **QUIET,
    )  # fmt: skip


def _wire_installed(form: Form, shell: Shell) -> None:
    """A new restorer, upscaler or outline can be used at once."""

    def other_models(restorer: str | None, factor: int | None) -> list[Any]:
        choices = restore_request.restorer_choices(shell.settings)
        chosen = next((each for each in choices if each.id == restorer), None)
        missing = restore_request.outline_missing(shell.settings)
        return [gr.Dropdown(choices=restore_form.dropdown_choices(choices)), *restore_form.restorer_values(chosen),
                {"text": restore_request.upscale_missing(int(factor or 1), shell.settings)},
                gr.Checkbox(interactive=not missing, info=missing or restore_form.OUTLINE_INFO)]  # fmt: skip

    outputs = [form.restorer, *form.of_restorer, form.upscale_note, form.outline]
    shell.installed.change(other_models, [form.restorer, form.upscale], outputs, **QUIET)


# --- the request -----------------------------------------------------------------------------------------------------
def _wire_request(form: Form, shell: Shell, store: Store) -> None:
    def request(person: str | None, files: Any, picks: Any, faces: Any, shown: Any, *rest: Any) -> RestoreSpec:
        weight, restorer, factor, outline = rest
        paths = restore_request.chosen_paths(store, person or "", picks, files)
        return restore_request.restore_request(
            person or "", paths, restorer, weight, restore_request.chosen_faces(faces, shown), factor, outline,
            shell.settings,
        )  # fmt: skip

    def kept(spec: RestoreSpec, files: Sequence[str] | None) -> RestoreSpec:
        """The request with lasting copies in place of the uploads."""
        if not files:
            return spec
        copies = keep_given(store, spec.person, [Path(path) for path in files])
        return replace(spec, pictures=(*spec.pictures[: -len(files)], *map(str, copies)))

    def restore(person: str | None, *values: Any) -> list[Any]:
        try:
            shell.live.submit(kept(request(person, *values), values[0]))
        except SpecError as error:
            return [*restore_form.problem_values(error.field, str(error)), gr.skip()]
        except HeadshotError as error:
            return [*restore_form.problem_values("", str(error)), gr.skip()]
        return [*restore_form.problem_values(), nudged()]

    def plan(person: str | None, *values: Any) -> dict[str, Any]:
        try:
            spec = request(person, *values)
        except HeadshotError:  # said when it is started
            return {"lines": []}
        return {"lines": [counted(len(spec.pictures), "picture"), *plan_words(shell.engine, spec)]}

    inputs = [shell.person, *form.settings]
    form.restore.click(restore, inputs, [*form.all_problems, shell.nudge], **SENDS)
    changes = [form.uploads, form.picks, form.faces, form.weight, form.restorer, form.upscale, form.outline]
    gr.on([each.change for each in changes], plan, inputs, form.plan, **LATEST_WINS)
    of_field = (form.picks, form.weight, form.restorer, form.faces, form.upscale)
    for name, field in zip(FIELDS, of_field, strict=True):
        field.change(None, None, form.problems[name], js=CLEAR, **QUIET)
    form.uploads.change(None, None, form.problems["pictures"], js=CLEAR, **QUIET)


# --- what is new ---------------------------------------------------------------------------------------------------
def _refresh(shell: Shell, store: Store, person: str, seen: Mark | None) -> tuple[list[Any], Mark] | None:
    working, preview = _working(shell, person)
    mark = Mark(person, sets_mark(store, person), views.restored_mark(store, person), working,
                export_box.export_mark(shell.live, person))  # fmt: skip
    if mark == seen:
        return None
    fresh = seen is None or seen.person != person
    values: list[Any] = [gr.skip()] * 2
    if fresh or (seen and seen.sets != mark.sets):
        tiles = restore_request.pick_tiles(store, person, shell.shown_dir)
        values = restore_form.pick_values(tiles, [] if fresh else None)
    values.append(preview if fresh or (seen and seen.working != working) else gr.skip())
    values.append(gr.Column(visible=bool(person)) if fresh else gr.skip())
    if fresh or (seen and seen.restored != mark.restored):
        values += restored_results.values(store, shell.shown_dir, person, views.look(store, person, View()))
    else:
        values += [gr.skip()] * 16
    if fresh or (seen and seen.export != mark.export):
        values += export_box.refreshed_values(shell, store, person)
    else:
        values += [gr.skip()] * 2
    return values, mark


def _working(shell: Shell, person: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A mark of the picture that was restored last by the running job, and the values of its preview."""
    job = shell.live.newest(person, "restore") if person else None
    if job is None or job.snapshot.finished:
        return (), {"picture": "", "text": "", "shaping": False}
    preview = shell.live.preview(job)
    return (job.id, hash(preview["picture"]), preview["text"]), preview
