"""The page: one form, then progress, then results. No model, no state: it shows what ``Live`` says."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from headshot_ui import families
from headshot_ui.errors import HeadshotError, SpecError
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.settings import Settings
from headshot_ui.ui import templates
from headshot_ui.ui.earlier import Earlier
from headshot_ui.ui.live import EngineLike, Live, Results
from headshot_ui.ui.request import headshots_request
from headshot_ui.ui.thumbnails import PHOTO_ENDINGS, data_uri

#: Every event of the page: no spinner over what is shown, no API entry, and one small request per tick.
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private", "queue": False}
#: A click counts even while an earlier one is being answered; ``Live`` sees to it that two start one job.
CLICK = {**QUIET, "trigger_mode": "multiple"}
CHOSEN_SHOWN = 24
CHOSEN_PX = 96
DEMO_PERSON = "demo-robin"
DEMO_PHOTOS = "demo/people/robin"


@dataclass(frozen=True)
class Seen:
    """What one browser tab already shows, so that only what changed is sent."""

    job: str = "never"
    version: int = -1
    preview: str = ""
    photos: int = 0
    results: bool = False


@dataclass(frozen=True)
class Parts:
    """The components, by their place on the page."""

    form: gr.Column
    name: gr.Textbox
    name_problem: gr.HTML
    files: gr.File
    chosen: gr.HTML
    photos_problem: gr.HTML
    demo: gr.Button
    base: gr.Dropdown
    base_note: gr.HTML
    base_problem: gr.HTML
    start: gr.Button
    work: gr.Column
    progress: gr.HTML
    curve: gr.HTML
    preview: gr.HTML
    cancel: gr.Button
    outcome: gr.Column
    summary: gr.HTML
    gallery: gr.Gallery
    archive: gr.DownloadButton
    sheet: gr.HTML
    photos: gr.HTML
    again: gr.Button
    earlier_box: gr.Column
    earlier: gr.Gallery


def build_page(engine: EngineLike, settings: Settings, shown_dir: Path, live: Live | None = None) -> gr.Blocks:
    """The whole page. ``shown_dir`` is the private folder that files are handed out from."""
    live = live or Live(engine, settings, shown_dir)
    bases = families.all_bases(settings)
    with gr.Blocks(title="Headshots", analytics_enabled=False) as page:
        gr.HTML(html_template=templates.HEADER)
        parts = _layout(bases)
        seen, hidden_job = gr.State(Seen()), gr.State("")
        timer = gr.Timer(1, active=False)
        _wire_form(parts, bases, settings, shown_dir)
        _wire_job(page, parts, live, seen, hidden_job, timer)
        _wire_earlier(page, parts, live, seen)
    return page


def _layout(bases: Sequence[BaseInfo]) -> Parts:
    with gr.Column(elem_id="work", elem_classes="hs-card", visible=False) as work:
        progress = gr.HTML({"state": "queued"}, html_template=templates.PROGRESS, elem_id="progress")
        with gr.Row(elem_classes="hs-live"):
            preview = gr.HTML({"picture": ""}, html_template=templates.PREVIEW, elem_id="preview", min_width=220)
            curve = gr.HTML({"line": ""}, html_template=templates.CURVE, elem_id="curve", min_width=260)
        cancel = gr.Button("Cancel", elem_id="cancel", elem_classes="hs-plain")
    with gr.Column(elem_id="outcome", elem_classes="hs-card", visible=False) as outcome:
        summary = gr.HTML({"summary": ""}, html_template=templates.RESULTS, elem_id="summary")
        gallery = gr.Gallery(
            label="Headshots, most alike first", show_label=False, columns=4, height="auto", object_fit="cover",
            interactive=False, buttons=["download", "fullscreen"], elem_id="gallery", elem_classes="hs-gallery",
        )  # fmt: skip
        with gr.Row(elem_classes="hs-actions"):
            archive = gr.DownloadButton("Download all (zip)", variant="primary", elem_id="archive")
            again = gr.Button("Make more headshots", elem_id="again", elem_classes="hs-plain")
        sheet = gr.HTML({"picture": ""}, html_template=templates.SHEET, elem_id="sheet")
    with gr.Column(elem_id="form") as form:
        with gr.Row(elem_classes="hs-columns"):
            with gr.Column(scale=3, min_width=300, elem_classes="hs-card"):
                name = gr.Textbox(label="Name of the person", placeholder="anna", max_lines=1, elem_id="name")
                name_problem = _problem("name-problem")
                files = gr.File(
                    label="Photos, or a zip of them", file_count="multiple", height=140,
                    file_types=list(PHOTO_ENDINGS), elem_id="files",
                )  # fmt: skip
                chosen = gr.HTML({"photos": []}, html_template=templates.CHOSEN, elem_id="chosen")
                photos_problem = _problem("photos-problem")
                demo = gr.Button("Use the demo photos", size="sm", elem_id="demo", elem_classes="hs-plain")
                base = gr.Dropdown(
                    [(info.title, info.id) for info in bases], value=bases[0].id if bases else None,
                    label="Base model", elem_id="base", filterable=False,
                )  # fmt: skip
                base_note = gr.HTML(
                    {"text": _note(bases, bases[0].id if bases else "")},
                    html_template=templates.NOTE,
                    elem_id="base-note",
                )
                base_problem = _problem("base-problem")
                start = gr.Button("Make my headshots", variant="primary", size="lg", elem_id="start")
            with gr.Column(scale=2, min_width=260):
                gr.HTML(html_template=templates.HOW)
        with gr.Column(elem_id="earlier-box", elem_classes="hs-card", visible=False) as earlier_box:
            gr.HTML(html_template=templates.EARLIER)
            earlier = gr.Gallery(
                label="Earlier headshots", show_label=False, columns=6, height="auto", object_fit="cover",
                interactive=False, allow_preview=False, buttons=[], elem_id="earlier", elem_classes="hs-gallery",
            )  # fmt: skip
    photos = gr.HTML({"photos": []}, html_template=templates.PHOTOS, elem_id="photos")
    return Parts(
        form, name, name_problem, files, chosen, photos_problem, demo, base, base_note, base_problem, start,
        work, progress, curve, preview, cancel, outcome, summary, gallery, archive, sheet, photos, again,
        earlier_box, earlier,
    )  # fmt: skip


def _problem(elem_id: str) -> gr.HTML:
    """The place for one sentence right under the field it is about."""
    return gr.HTML({"text": ""}, html_template=templates.PROBLEM, elem_id=elem_id)


def _note(bases: Sequence[BaseInfo], base_id: str) -> str:
    return next((info.note for info in bases if info.id == base_id), "No base model was found.")


def _wire_form(parts: Parts, bases: Sequence[BaseInfo], settings: Settings, shown_dir: Path) -> None:
    def demo_photos() -> tuple[Any, ...]:
        found = sorted((settings.models_dir / DEMO_PHOTOS).glob("*.jpg"))
        if not found:
            text = "The demo photos are missing: get a complete copy of the program."
            return gr.skip(), gr.skip(), gr.skip(), {"text": text}
        target = shown_dir / "demo-photos"
        target.mkdir(parents=True, exist_ok=True)
        copies = [str(shutil.copy2(path, target / path.name)) for path in found]
        drawn = next((info.id for info in bases if info.demo), gr.skip())
        return DEMO_PERSON, copies, drawn, {"text": ""}

    parts.demo.click(demo_photos, None, [parts.name, parts.files, parts.base, parts.photos_problem], **QUIET)
    parts.files.change(lambda files: _chosen(files or []), parts.files, parts.chosen, **QUIET)
    for field, problem in ((parts.name, parts.name_problem), (parts.files, parts.photos_problem)):
        field.change(lambda: {"text": ""}, None, problem, **QUIET)
    parts.base.change(lambda base: {"text": _note(bases, base)}, parts.base, parts.base_note, **QUIET)


def _chosen(files: Sequence[str]) -> dict[str, Any]:
    """Thumbnails of what was dropped, before anything is judged."""
    pictures = [path for path in map(Path, files) if path.suffix.lower() != ".zip"]
    photos = [{"name": path.name, "picture": data_uri(path, CHOSEN_PX)} for path in pictures[:CHOSEN_SHOWN]]
    archives = len(files) - len(pictures)
    count = [f"{len(pictures)} photo{'' if len(pictures) == 1 else 's'}"] if pictures else []
    count += [f"{archives} zip archive{'' if archives == 1 else 's'}"] if archives else []
    return {"photos": [photo for photo in photos if photo["picture"]] or None, "count": " and ".join(count)}


def _wire_job(page: gr.Blocks, parts: Parts, live: Live, seen: gr.State, hidden_job: gr.State, timer: gr.Timer) -> None:
    """The engine owns the job; every tab asks once a second what is new, and again when it is loaded."""
    shown = [parts.form, parts.work, parts.outcome, parts.progress, parts.cancel, parts.curve, parts.preview,
             parts.photos, parts.summary, parts.gallery, parts.archive, parts.sheet, timer, seen]  # fmt: skip

    def refresh(seen: Seen, hidden_job: str) -> list[Any]:
        return _refresh(live, seen, hidden_job)

    def start(name: str, files: list[str] | None, base: str | None) -> list[Any]:
        problems = {"person": "", "photos": "", "base": ""}
        try:
            live.start(headshots_request(name or "", files or [], base or ""))
        except SpecError as error:
            problems[error.field if error.field in problems else "base"] = str(error)
        except HeadshotError as error:
            problems["base"] = str(error)
        return [{"text": text} for text in problems.values()]

    def hide() -> str:
        job = live.job()
        return "" if job is None else job.id

    again = [seen, hidden_job]
    timer.tick(refresh, again, shown, **QUIET)
    page.load(refresh, again, shown, **QUIET)
    fields = [parts.name, parts.files, parts.base]
    problems = [parts.name_problem, parts.photos_problem, parts.base_problem]
    parts.start.click(start, fields, problems, **CLICK).then(refresh, again, shown, **QUIET)
    parts.cancel.click(live.cancel, None, None, **CLICK).then(refresh, again, shown, **QUIET)
    parts.again.click(hide, None, hidden_job, **QUIET).then(refresh, again, shown, **QUIET)


def _wire_earlier(page: gr.Blocks, parts: Parts, live: Live, seen: gr.State) -> None:
    """Sets of headshots found on disk, below the form; a click on one shows it as if it had just been made."""
    listed = gr.State(())

    def look() -> tuple[Any, ...]:
        found = live.earlier()
        pictures = [(picture, earlier.caption) for earlier, picture in found]
        return gr.Column(visible=bool(found)), gr.Gallery(value=pictures), tuple(earlier for earlier, _ in found)

    def show(listed: tuple[Earlier, ...], chosen: gr.SelectData) -> list[Any]:
        earlier = listed[chosen.index]
        try:
            results = live.earlier_results(earlier)
        except HeadshotError as error:
            raise gr.Error(str(error)) from error
        return [gr.Column(visible=False), gr.Column(visible=False), gr.Column(visible=True), {"photos": []},
                *_result_values(results), Seen(job=str(earlier.folder))]  # fmt: skip

    shown = [parts.form, parts.work, parts.outcome, parts.photos, parts.summary, parts.gallery, parts.archive,
             parts.sheet, seen]  # fmt: skip
    page.load(look, None, [parts.earlier_box, parts.earlier, listed], **QUIET)
    parts.again.click(look, None, [parts.earlier_box, parts.earlier, listed], **QUIET)
    parts.earlier.select(show, listed, shown, **QUIET)


def _result_values(results: Results | None) -> list[Any]:
    """New values of summary, gallery, archive and contact sheet."""
    if results is None:
        return [gr.skip()] * 4
    archive = gr.DownloadButton(value=results.archive or None, visible=bool(results.archive))
    summary = {"summary": results.summary, "folder": results.folder}
    return [summary, gr.Gallery(value=list(results.pictures), selected_index=None), archive, {"picture": results.sheet}]


def _refresh(live: Live, seen: Seen, hidden_job: str) -> list[Any]:
    """New values for ``shown`` of ``_wire_job``; ``gr.skip()`` where nothing changed."""
    job = live.job()
    if job is None or (job.id == hidden_job and job.snapshot.finished):
        if seen.job == "":
            return [gr.skip()] * 14
        nothing = [{"state": "queued"}, gr.skip(), {"line": ""}, {"picture": ""}, {"photos": []}]
        return [gr.Column(visible=True), gr.Column(visible=False), gr.Column(visible=False), *nothing,
                *[gr.skip()] * 4, gr.Timer(active=False), Seen(job="")]  # fmt: skip
    now = job.snapshot
    if (seen.job, seen.version) == (job.id, now.version) and not job.cancel_requested:
        return [gr.skip()] * 14
    running, done = not now.finished, now.state == "done"
    same_job = seen.job == job.id
    preview, photos = live.preview(job), live.dataset_changed(job)
    has_results = same_job and seen.results
    results = live.results(job) if done and not has_results else None
    return [
        gr.Column(visible=not running and not done),
        gr.Column(visible=not done),
        gr.Column(visible=done),
        live.progress(job),
        gr.Button("Cancelling …" if job.cancel_requested else "Cancel", visible=running,
                  interactive=not job.cancel_requested),
        live.curve(job),
        gr.skip() if same_job and preview["picture"] == seen.preview else preview,
        gr.skip() if same_job and photos == seen.photos else _photo_values(live.photos(job) if photos else []),
        *_result_values(results),
        gr.Timer(active=running),
        Seen(job.id, now.version, preview["picture"], photos, done),
    ]  # fmt: skip


def _photo_values(photos: list[dict[str, Any]]) -> dict[str, Any]:
    left_out = sum(photo["verdict"] == "rejected" for photo in photos)
    count = f"{len(photos) - left_out} used" + (f", {left_out} left out" if left_out else "")
    return {"photos": photos, "count": count}
