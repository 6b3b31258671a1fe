"""The lower half of Train: what is being learned now, or was last, and the list of all trainings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from headshot_ui.errors import HeadshotError
from headshot_ui.runs import Run, delete_run, find_run, list_runs
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store, readable_bytes
from headshot_ui.ui import lora_box, run_history, templates
from headshot_ui.ui.literal import safe_html
from headshot_ui.ui.live import Live, curve_values
from headshot_ui.ui.lora_box import LoraBox
from headshot_ui.ui.page_js import BUTTONS
from headshot_ui.ui.tab import CLICK, QUIET, Shell, nudged, problem

if TYPE_CHECKING:
    from headshot_ui.jobs import Job

KINDS = ("train", "headshots")


@dataclass(frozen=True)
class Runs:
    """The components."""

    now: gr.Column
    status: gr.HTML
    curve: gr.HTML
    samples: gr.HTML
    cancel: gr.Button
    further: gr.Button
    past: gr.Column
    history: gr.HTML
    problem: gr.HTML
    asking: gr.Column
    asked: gr.HTML
    keep: gr.Button
    really: gr.Button
    lora: LoraBox

    @property
    def outputs(self) -> tuple[Any, ...]:
        """Components that ``runs_values`` has values for."""
        return (self.now, self.status, self.curve, self.samples, self.cancel, self.further, self.past, self.history)


def runs_layout() -> Runs:
    with gr.Column(elem_classes="hs-card", elem_id="training", visible=False) as now:
        status = safe_html({"title": ""}, html_template=templates.TRAINING, elem_id="training-status")
        curve = safe_html({"line": ""}, html_template=templates.CURVE, elem_id="curve")
        samples = safe_html({"samples": []}, html_template=templates.SAMPLES, elem_id="samples")
        with gr.Row(elem_classes="hs-actions"):
            cancel = gr.Button("Cancel", elem_id="cancel-training", elem_classes="hs-plain", scale=0, min_width=140,
                               visible=False)  # fmt: skip
            further = gr.Button("Go on from there", variant="primary", elem_id="resume", scale=0, min_width=180,
                                visible=False)  # fmt: skip
    with gr.Column(elem_classes="hs-card", elem_id="trainings", visible=False) as past:
        history = safe_html({"runs": []}, html_template=templates.HISTORY, js_on_load=BUTTONS, elem_id="history")
        run_problem = problem("run-problem")
        with gr.Column(elem_id="delete-run", elem_classes="hs-asking", visible=False) as asking:
            asked = safe_html({"when": "", "size": ""}, html_template=templates.DELETE_RUN)
            with gr.Row(elem_classes="hs-actions"):
                keep = gr.Button("Keep it", elem_classes="hs-plain", scale=0, min_width=140, elem_id="keep-run")
                really = gr.Button("Delete for good", variant="stop", scale=0, min_width=140, elem_id="really-run")
        lora = lora_box.layout()
    return Runs(now, status, curve, samples, cancel, further, past, history, run_problem, asking, asked, keep, really,
                lora)  # fmt: skip


# --- events -----------------------------------------------------------------------------------------
def wire_runs(runs: Runs, shell: Shell, store: Store, steps: Mapping[str, int]) -> None:
    """Cancel, go on, use, take along, delete. ``steps``: how many a finished run learns more, by base model."""
    deleting = gr.State(("", ""))  # person and name of the run that was asked about

    def press(person: str | None, event: gr.EventData) -> list[Any]:
        # problem, question, what is asked, run to delete, tab, LoRA, nudge; then those of the box of a LoRA
        said: list[Any] = [{"text": ""}, gr.Column(visible=False), gr.skip(), ("", ""), gr.skip(), gr.skip(),
                           gr.skip(), *lora_box.closed()]  # fmt: skip
        name, wanted = str(event.item), str(event.do)
        try:
            run = find_run(store, person or "", name)
            if wanted == "use":
                said[4:6] = [gr.Tabs(selected="generate"), (person, name)]
            elif wanted == "take":
                said[7:] = lora_box.offered(store, person or "", name)
            elif wanted == "further":
                shell.live.submit(further_request(run, steps))
                said[6] = nudged()
            elif wanted == "delete":
                said[1:4] = [gr.Column(visible=True), _question(run), (person or "", name)]
        except HeadshotError as error:
            said[0] = {"text": str(error)}
        return said

    def delete(asked: tuple[str, str]) -> list[Any]:
        try:
            delete_run(find_run(store, *asked))
        except HeadshotError as error:
            return [{"text": str(error)}, gr.Column(visible=False), ("", ""), gr.skip()]
        return [{"text": ""}, gr.Column(visible=False), ("", ""), nudged()]

    def other_person(person: str | None, asked: tuple[str, str]) -> list[Any]:
        if asked[0] in ("", person):  # the list of people tells of a change also when it has only got new choices
            return [gr.skip(), gr.skip(), {"text": ""}]
        return [gr.Column(visible=False), ("", ""), {"text": ""}]

    def cancel(person: str | None) -> float:
        job = training_job(shell.live, person or "")
        if job is not None:
            shell.live.cancel(job.id)
        return nudged()

    def resume(person: str | None) -> list[Any]:
        run = run_history.resumable(store, person or "")
        try:
            if run is not None:
                shell.live.submit(further_request(run, steps))
        except HeadshotError as error:
            return [{"text": str(error)}, gr.skip()]
        return [{"text": ""}, nudged()]

    runs.history.click(
        press, shell.person,
        [runs.problem, runs.asking, runs.asked, deleting, shell.tabs, shell.lora, shell.nudge, *runs.lora.outputs],
        **CLICK,
    )  # fmt: skip
    lora_box.wire(runs.lora, shell, store)
    runs.keep.click(lambda: [gr.Column(visible=False), ("", "")], None, [runs.asking, deleting], **QUIET)
    shell.person.change(other_person, [shell.person, deleting], [runs.asking, deleting, runs.problem], **QUIET)
    runs.really.click(delete, deleting, [runs.problem, runs.asking, deleting, shell.nudge], **QUIET)
    runs.cancel.click(cancel, shell.person, shell.nudge, **CLICK)
    runs.further.click(resume, shell.person, [runs.problem, shell.nudge], **CLICK)


def further_request(run: Run, steps: Mapping[str, int]) -> TrainSpec:
    """Go on with a run that broke off, or learn more with a finished one."""
    more = run.total + steps.get(run.spec.base, run.total) if run.state == "done" else None
    return TrainSpec(run.spec.person, run.spec.base, run=run.name, steps=more)


def _question(run: Run) -> dict[str, str]:
    size = sum(path.stat().st_size for path in run.folder.rglob("*") if path.is_file())
    return {"when": run_history.when(run.created), "size": readable_bytes(size)}


# --- what is new ------------------------------------------------------------------------------------
def training_job(live: Live, person: str) -> Job | None:
    """The newest unfinished job in which this person is learned."""
    jobs = [job for job in live.unfinished(person) if job.snapshot.kind in KINDS] if person else []
    running = [job for job in jobs if job.snapshot.state == "running"]
    return next(iter(running or jobs), None)


def runs_mark(live: Live, store: Store, person: str) -> tuple[Any, ...]:
    """What ``runs_values`` depends on."""
    if not person:
        return ()
    job = training_job(live, person)
    state = (job.id, job.snapshot.version, job.cancel_requested) if job is not None else None
    return state, run_history.signature(store, person), _samples_mark(store, person, job)


def _samples_mark(store: Store, person: str, job: Job | None) -> tuple[str, int]:
    run = _shown_run(store, person, job)
    return (run.name, len(run_history.sample_paths(run.folder))) if run is not None else ("", 0)


def _shown_run(store: Store, person: str, job: Job | None) -> Run | None:
    """The run being trained; while none is, the newest one."""
    found = list_runs(store, person)
    if job is not None:
        return next((run for run in found if run.state == "running"), None)
    return next(iter(found), None)


def runs_values(live: Live, store: Store, person: str, mark: Any) -> list[Any]:
    """Values of ``Runs.outputs``; ``mark``: what ``runs_mark`` was when this browser was last told."""
    now = runs_mark(live, store, person)
    if not now:
        hidden = gr.Column(visible=False)
        return [hidden, gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip(), hidden, gr.skip()]
    if now == mark:
        return [gr.skip()] * 8
    job = training_job(live, person)
    run = _shown_run(store, person, job)
    samples: Any = gr.skip()
    if mark is None or len(mark) != len(now) or mark[2] != now[2]:
        samples = run_history.sample_values(run_history.sample_paths(run.folder) if run is not None else [])
    past: list[Any] = [gr.skip()] * 2
    if mark is None or len(mark) != len(now) or mark[1] != now[1] or (mark[0] is None) != (now[0] is None):
        values = run_history.history(store, person, busy=job is not None)
        past = [gr.Column(visible=bool(values["runs"])), values]
    resumable = job is None and run is not None and run_history.resumable(store, person) is not None
    return [
        gr.Column(visible=job is not None or run is not None),
        running_values(live, job) if job is not None else _last_values(run),
        live.curve(job) if job is not None else curve_values(_last_losses(run)),
        samples,
        gr.Button("Cancelling …" if job is not None and job.cancel_requested else "Cancel", visible=job is not None,
                  interactive=job is not None and not job.cancel_requested),
        gr.Button(visible=resumable),
        *past,
    ]  # fmt: skip


def running_values(live: Live, job: Job) -> dict[str, Any]:
    """Values of the status template while a job is unfinished."""
    told = live.progress(job)
    if job.snapshot.state == "queued":
        return {"title": "Waiting", "text": "This training begins when the jobs before it are done.", "running": False}
    return {"title": told["stage"], "stage": told["stage"], "steps": told["steps"], "percent": told["percent"],
            "text": told["left"], "running": True}  # fmt: skip


def _last_values(run: Run | None) -> dict[str, Any]:
    """Values of the status template for a run on disk."""
    if run is None:
        return {"title": ""}
    begun = f"Begun {run_history.when(run.created)}"
    took = run_history.took(run)
    titles = {"done": "Learned", "failed": "This training failed", "cancelled": "This training was cancelled",
              "interrupted": "This training was interrupted when the program ended",
              "running": "Another window of this program is learning"}  # fmt: skip
    text = f"{begun}; it took {took.removeprefix('about ')}." if run.state == "done" and took else f"{begun}."
    if run.state in run_history.UNFINISHED:
        text += " What was learned up to there is kept."
    return {"title": titles[run.state], "steps": f"{run.step} of {run.total} steps", "text": text, "running": False}


def _last_losses(run: Run | None) -> list[tuple[int, float]]:
    return run_history.loss_points(run_history.losses_of(Path(run.folder))) if run is not None else []
