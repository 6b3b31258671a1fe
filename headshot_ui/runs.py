"""Training runs on disk: one folder each, with a manifest ``run.json`` that is always whole.

A run is ``running`` only while its process lives. After a crash or a power cut the manifest still says
so; ``recover_runs`` (called at every start) turns it into ``interrupted``, from where it can be resumed.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psutil

from headshot_ui.errors import SpecError, StoreError
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store, new_folder, read_json, told_plainly, write_json_atomic

RunState = Literal["running", "done", "failed", "cancelled", "interrupted"]
RUN_STATES = ("running", "done", "failed", "cancelled", "interrupted")
MANIFEST = "run.json"
CLOCK_SHIFT_S = 30.0  # Linux tells a process's start relative to boot, so setting the clock moves it
_FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,79}")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A training run as its manifest tells it. ``change_run`` makes the next one."""

    folder: Path
    spec: TrainSpec
    state: RunState
    step: int = 0  # optimizer steps whose result is safe on disk
    total: int = 0
    lora: str = ""  # file name inside the folder once there is one
    pid: int = 0
    pid_started_s: float = 0.0  # when that process began: a reused pid is told from the old process by it
    created: str = ""  # ISO 8601, UTC
    changed: str = ""
    facts: dict[str, Any] = field(default_factory=dict)  # whatever else training wants to keep, JSON types only

    @property
    def name(self) -> str:
        """Folder name, as ``TrainSpec.run`` and ``GenerateSpec.lora`` use it."""
        return self.folder.name

    @property
    def lora_path(self) -> Path | None:
        return self.folder / self.lora if self.lora else None

    @property
    def alive(self) -> bool:
        """True while the process that works on it exists."""
        return self.state == "running" and _process_alive(self.pid, self.pid_started_s)


def create_run(store: Store, spec: TrainSpec, total: int = 0) -> Run:
    """Make a new run folder named after the time, with a ``running`` manifest of this process. Raises StoreError."""
    folder = new_folder(store.runs_dir(spec.person), datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    return _write(_owned(Run(folder, spec, "running", total=total, created=now_utc())))


def resume_run(run: Run) -> Run:
    """Take a run over into this process. Raises StoreError while another process still works on it."""
    if run.alive and run.pid != os.getpid():
        raise StoreError(f"The run “{run.name}” is being trained by another window: wait for it or cancel it there.")
    return _write(_owned(replace(run, state="running")))


def change_run(run: Run, **changes: Any) -> Run:
    """Write a manifest with ``changes`` (state, step, total, lora, facts …) and return the new Run."""
    return _write(replace(run, **changes))


def load_run(folder: Path) -> Run:
    """Read a manifest. Raises StoreError when it is missing or damaged."""
    data = read_json(folder / MANIFEST)
    try:
        run = Run(**{**data, "folder": folder, "spec": TrainSpec.from_json(data["spec"])})
        if run.state not in RUN_STATES:
            raise ValueError(f"unknown state {run.state}")
    except (SpecError, TypeError, KeyError, ValueError) as error:
        raise StoreError(f"{folder / MANIFEST} is damaged: delete this run and train again.") from error
    return run


def find_run(store: Store, person: str, name: str) -> Run:
    """The run of that folder name. Raises StoreError, naming the runs there are."""
    folder = store.runs_dir(person) / name
    if not _FOLDER.fullmatch(name) or not (folder / MANIFEST).is_file():
        known = ", ".join(run.name for run in list_runs(store, person)) or "none yet"
        raise StoreError(f"“{person}” has no training run “{name}”: choose one of these ({known}).")
    return load_run(folder)


def list_runs(store: Store, person: str) -> tuple[Run, ...]:
    """All readable runs of a person, newest first. Damaged ones are logged and left out."""
    folder = store.runs_dir(person)
    runs = []
    for manifest in folder.glob(f"*/{MANIFEST}"):
        try:
            runs.append(load_run(manifest.parent))
        except StoreError as error:
            _log.warning("%s", error)
    return tuple(sorted(runs, key=lambda run: (run.created, run.name), reverse=True))


def latest_run(store: Store, person: str, base: str) -> Run | None:
    """The newest finished run of a person for this base model whose LoRA is there."""
    for run in list_runs(store, person):
        path = run.lora_path
        if run.state == "done" and run.spec.base == base and path is not None and path.is_file():
            return run
    return None


def delete_run(run: Run) -> None:
    """Remove a run for good: LoRA, samples and checkpoints. Raises StoreError while it is being trained."""
    if run.alive:
        raise StoreError(f"The run “{run.name}” is being trained: cancel it first, then delete it.")
    with told_plainly(run.folder, "removed"):
        shutil.rmtree(run.folder)


def recover_runs(store: Store) -> tuple[Run, ...]:
    """Turn every ``running`` manifest whose process is gone into ``interrupted``; returns those."""
    stale = [run for person in store.people() for run in list_runs(store, person) if _is_stale(run)]
    return tuple(change_run(run, state="interrupted") for run in stale)


def _is_stale(run: Run) -> bool:
    return run.state == "running" and not run.alive


def _owned(run: Run) -> Run:
    return replace(run, pid=os.getpid(), pid_started_s=psutil.Process().create_time())


def _write(run: Run) -> Run:
    run = replace(run, changed=now_utc())
    data = asdict(run)
    del data["folder"]  # the folder may be moved
    write_json_atomic(run.folder / MANIFEST, data)
    return run


def _process_alive(pid: int, started_s: float) -> bool:
    try:
        return bool(abs(psutil.Process(pid).create_time() - started_s) < CLOCK_SHIFT_S)
    except psutil.AccessDenied:
        return True
    except (psutil.Error, ValueError):
        return False


def now_utc() -> str:
    """As manifests tell times: ISO 8601, so that later is greater."""
    return datetime.now(UTC).isoformat(timespec="microseconds")
