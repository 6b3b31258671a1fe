"""A person's trainings as the page lists them; no gradio, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from headshot_ui.dataset.saved import MANIFEST, load_dataset
from headshot_ui.errors import HeadshotError, StoreError
from headshot_ui.generation.records import RANKING
from headshot_ui.runs import MANIFEST as RUN_MANIFEST
from headshot_ui.runs import Run, list_runs
from headshot_ui.store import Store, read_json
from headshot_ui.training.plan import fingerprint
from headshot_ui.ui.live import CURVE_POINTS, plain_time
from headshot_ui.ui.thumbnails import data_uri

LOSSES_FILE = "losses.json"
SAMPLES_SHOWN, SAMPLE_PX = 10, 220
SPARK_POINTS = 40
STATES = {"running": "Learning now", "done": "Finished", "failed": "Failed", "cancelled": "Cancelled",
          "interrupted": "Interrupted"}  # fmt: skip
UNFINISHED = frozenset({"failed", "cancelled", "interrupted"})
PHOTOS_CHANGED = "The photos or captions changed since; begin a new training."


def signature(store: Store, person: str) -> tuple[tuple[str, int], ...]:
    """Changes whenever a run begins, goes on or ends or pictures are ranked; cheap enough for every second."""
    found = [("", sum(1 for _ in store.headshots_dir(person).glob(f"*/{RANKING}")))]
    for manifest in store.runs_dir(person).glob(f"*/{RUN_MANIFEST}"):
        try:
            found.append((manifest.parent.name, manifest.stat().st_mtime_ns))
        except OSError:  # deleted since the folder was listed
            continue
    return tuple(sorted(found))


def history(store: Store, person: str, busy: bool) -> dict[str, Any]:
    """Values of the history template. ``busy``: a training of this person is unfinished, so nothing may be deleted."""
    runs = list_runs(store, person)
    likeness = likeness_by_run(store, person)
    now = _fingerprint_now(store, person)
    return {"runs": [_row(run, likeness.get(run.name), now, busy) for run in runs]}


def _row(run: Run, likeness: float | None, fingerprint_now: str, busy: bool) -> dict[str, Any]:
    blocked = why_not_further(run, fingerprint_now)
    usable = run.lora_path is not None and run.lora_path.is_file()
    return {
        "name": run.name,
        "when": when(run.created),
        "steps": f"{run.step} of {run.total}" if run.step < run.total else str(run.step),
        "state": run.state,
        "label": STATES[run.state],
        "spark": spark(losses_of(run.folder)),
        "likeness": "" if likeness is None else f"{likeness:.0f} %",
        "use": usable,
        "take": usable and run.state != "running",
        "further": run.state != "running" and not blocked and not busy,
        "further_label": "Learn more" if run.state == "done" else "Go on",
        "blocked": blocked if run.state in UNFINISHED else "",
        "delete": run.state != "running" and not busy,
    }


def why_not_further(run: Run, fingerprint_now: str) -> str:
    """Why a run cannot be continued; "" when it can."""
    known = run.facts.get("dataset")
    return PHOTOS_CHANGED if known and known != fingerprint_now else ""


def resumable(store: Store, person: str) -> Run | None:
    """The newest run, when it broke off and can go on."""
    run = next(iter(list_runs(store, person)), None)
    if run is None or run.state not in UNFINISHED or why_not_further(run, _fingerprint_now(store, person)):
        return None
    return run


def when(created: str) -> str:
    """An ISO 8601 moment as "3 May 2026, 14:05" of this computer's clock; "" when it cannot be read."""
    try:
        local = datetime.fromisoformat(created).astimezone()
    except ValueError:
        return ""
    return f"{local.day} {local:%b %Y, %H:%M}"


def took(run: Run) -> str:
    """How long a run took, in words; "" when that is not known."""
    seconds = run.facts.get("seconds")
    return plain_time(float(seconds)) if isinstance(seconds, (int, float)) else ""


# --- losses -----------------------------------------------------------------------------------------
def losses_of(folder: Path) -> tuple[float, ...]:
    """One loss per step of a finished run; () for others."""
    path = folder / LOSSES_FILE
    try:
        return _losses(path, path.stat().st_mtime_ns)
    except OSError:
        return ()


@lru_cache(maxsize=64)
def _losses(path: Path, changed_ns: int) -> tuple[float, ...]:
    try:
        return tuple(float(loss) for loss in read_json(path))
    except (StoreError, TypeError, ValueError):
        return ()


def loss_points(losses: Sequence[float]) -> list[tuple[int, float]]:
    """(step, loss) pairs, thinned out to what a screen can show."""
    every = max(1, len(losses) // CURVE_POINTS)
    return [(step, losses[step - 1]) for step in range(1, len(losses) + 1, every)]


def spark(losses: Sequence[float]) -> str:
    """Points of a small polyline in a 100 × 24 box, each the mean of its stretch; "" without losses."""
    if len(losses) < 2:
        return ""
    count = min(SPARK_POINTS, len(losses))
    edges = [len(losses) * place // count for place in range(count + 1)]
    means = [sum(losses[a:b]) / (b - a) for a, b in zip(edges, edges[1:], strict=False)]
    low, high = min(means), max(means)
    span = max(high - low, 1e-9)
    return " ".join(f"{100 * place / (count - 1):.1f},{2 + 20 * (high - mean) / span:.1f}"
                    for place, mean in enumerate(means))  # fmt: skip


# --- samples ----------------------------------------------------------------------------------------
def sample_paths(folder: Path) -> list[Path]:
    return sorted((folder / "samples").glob("step-*.png"))


def sample_values(paths: Sequence[Path]) -> dict[str, Any]:
    """Values of the strip of samples: first, last and evenly between, each with its step."""
    if len(paths) > SAMPLES_SHOWN:
        last = len(paths) - 1
        paths = [paths[round(place * last / (SAMPLES_SHOWN - 1))] for place in range(SAMPLES_SHOWN)]
    shown = [{"step": str(int(path.stem.partition("-")[2] or 0)), "picture": data_uri(path, SAMPLE_PX)}
             for path in paths]  # fmt: skip
    return {"samples": [sample for sample in shown if sample["picture"]]}


# --- likeness ---------------------------------------------------------------------------------------
def likeness_by_run(store: Store, person: str) -> dict[str, float]:
    """Mean likeness in percent of the pictures drawn with each run."""
    found: dict[str, list[float]] = {}
    for path in store.headshots_dir(person).glob(f"*/{RANKING}"):
        try:
            name, percents = _ranking(path, path.stat().st_mtime_ns)
        except OSError:
            continue
        found.setdefault(name, []).extend(percents)
    return {name: sum(percents) / len(percents) for name, percents in found.items() if name and percents}


@lru_cache(maxsize=256)
def _ranking(path: Path, changed_ns: int) -> tuple[str, tuple[float, ...]]:
    """Run and likeness of every measured picture of one set."""
    try:
        data = read_json(path)
        name = (data.get("lora") or {}).get("name", "")
        measured = [entry["likeness"] for entry in data["pictures"] if entry.get("likeness")]
        return str(name), tuple(float(each["percent"]) for each in measured if not each.get("reason"))
    except (StoreError, KeyError, TypeError, ValueError, AttributeError):
        return "", ()


# --- what was learned from ----------------------------------------------------------------------------
def _fingerprint_now(store: Store, person: str) -> str:
    folder = store.dataset_dir(person)
    try:
        return _fingerprint(folder, (folder / MANIFEST).stat().st_mtime_ns)
    except OSError:
        return ""


@lru_cache(maxsize=16)
def _fingerprint(folder: Path, changed_ns: int) -> str:
    try:
        return fingerprint(load_dataset(folder))
    except (HeadshotError, OSError):
        return ""
