"""Run manifests tell the truth, also after a crash."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from headshot_ui.errors import StoreError
from headshot_ui.runs import (
    MANIFEST,
    Run,
    change_run,
    create_run,
    find_run,
    latest_run,
    list_runs,
    load_run,
    recover_runs,
    resume_run,
)
from headshot_ui.settings import Settings
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store

SPEC = TrainSpec("anna", "demo-sdxl", rank=8, learning_rate=1e-3)


@pytest.fixture
def store(settings: Settings) -> Store:
    return Store(settings)


def finished(store: Store, base: str = "demo-sdxl") -> Run:
    run = create_run(store, replace(SPEC, base=base))
    (run.folder / "lora.safetensors").write_bytes(b"x")
    return change_run(run, state="done", lora="lora.safetensors")


def test_a_run_comes_back_from_disk_as_it_was(store: Store) -> None:
    run = change_run(create_run(store, SPEC, total=100), step=40, facts={"losses": [0.5, 0.25]})
    assert load_run(run.folder) == run
    assert (run.state, run.step, run.total, run.spec, run.alive) == ("running", 40, 100, SPEC, True)
    assert run.folder.parent == store.runs_dir("anna") and run.lora_path is None


def test_the_manifest_stays_readable_when_the_folder_moves(store: Store) -> None:
    run = create_run(store, SPEC)
    moved = run.folder.rename(run.folder.with_name("moved"))
    assert load_run(moved) == replace(run, folder=moved)
    assert str(run.folder.parent) not in (moved / MANIFEST).read_text("utf-8"), "and names no place of this machine"


def test_runs_are_listed_newest_first_without_the_damaged(store: Store) -> None:
    runs = [create_run(store, SPEC) for _ in range(3)]
    assert len({run.name for run in runs}) == 3
    (store.runs_dir("anna") / "broken").mkdir()
    (store.runs_dir("anna") / "broken" / MANIFEST).write_text('{"state": "running"')
    assert list_runs(store, "anna") == tuple(reversed(runs))
    assert list_runs(store, "nobody") == ()


@pytest.mark.parametrize(
    "change",
    [{"state": "sleeping"}, {"spec": {"person": "anna", "base": "b", "rank": 0}}, {"extra": 1}, {"spec": None}],
)
def test_a_damaged_manifest_is_named(store: Store, change: dict[str, object]) -> None:
    run = create_run(store, SPEC)
    data = json.loads((run.folder / MANIFEST).read_text())
    (run.folder / MANIFEST).write_text(json.dumps({**data, **change}))
    with pytest.raises(StoreError, match=r"run\.json is damaged"):
        load_run(run.folder)


def test_the_latest_finished_run_of_a_base(store: Store) -> None:
    assert latest_run(store, "anna", "demo-sdxl") is None
    wanted = finished(store)
    finished(store, "other")
    change_run(create_run(store, SPEC), state="failed")
    gone = finished(store)
    assert gone.lora_path is not None
    gone.lora_path.unlink()
    assert latest_run(store, "anna", "demo-sdxl") == wanted


def test_find_run_names_what_there_is(store: Store) -> None:
    run = create_run(store, SPEC)
    assert find_run(store, "anna", run.name) == run
    for name in ("other", f"../runs/{run.name}", ""):
        with pytest.raises(StoreError, match=run.name):
            find_run(store, "anna", name)


def test_after_a_crash_a_running_run_is_interrupted_at_its_step(store: Store, dead_pid: Callable[[], int]) -> None:
    crashed = change_run(create_run(store, SPEC), step=75, pid=dead_pid())
    alive, done = create_run(store, SPEC), finished(store)
    assert [run.name for run in recover_runs(store)] == [crashed.name]
    assert [load_run(run.folder).state for run in (crashed, alive, done)] == ["interrupted", "running", "done"]
    assert load_run(crashed.folder).step == 75
    assert recover_runs(store) == ()


def test_another_process_that_got_the_old_number_does_not_keep_a_run_alive(store: Store) -> None:
    run = create_run(store, SPEC)
    change_run(run, pid=os.getpid(), pid_started_s=run.pid_started_s - 3600)
    assert [found.name for found in recover_runs(store)] == [run.name]


def test_a_run_of_another_living_process_is_neither_interrupted_nor_resumed(store: Store) -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        started = psutil.Process(process.pid).create_time()
        run = change_run(create_run(store, SPEC), pid=process.pid, pid_started_s=started)
        assert recover_runs(store) == ()
        with pytest.raises(StoreError, match="another window"):
            resume_run(run)
    finally:
        process.communicate(b"\n")
    assert [found.state for found in recover_runs(store)] == ["interrupted"]
    resumed = resume_run(load_run(run.folder))
    assert (resumed.state, resumed.pid, resumed.alive) == ("running", os.getpid(), True)
    assert load_run(run.folder) == resumed


def test_changes_touch_only_what_they_name(store: Store, tmp_path: Path) -> None:
    run = create_run(store, SPEC)
    later = change_run(run, step=5)
    assert replace(later, step=0, changed=run.changed) == run and later.changed >= run.changed
