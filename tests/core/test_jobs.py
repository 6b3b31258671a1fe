"""Jobs on the real worker thread: what a watcher may rely on, whatever happens at the same time."""

from __future__ import annotations

import gc
import random
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headshot_ui.errors import Cancelled, HeadshotError, PhotoError
from headshot_ui.jobs import DESK, FINISHED_JOBS_KEPT, MAIN, Job, JobQueue, Reporter, Snapshot

WAIT_S = 10.0
ALLOWED = {
    "queued": {"queued", "running", "cancelled"},
    "running": {"running", "done", "failed", "cancelled"},
    "done": set(),
    "failed": set(),
    "cancelled": set(),
}


@pytest.fixture
def queue() -> Iterator[JobQueue]:
    made = JobQueue()
    yield made
    assert made.close(WAIT_S), "the worker thread did not end"


class Gate:
    """A runner that says when it runs and goes on when told."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, report: Reporter) -> str:
        self.started.set()
        assert self.go_on.wait(WAIT_S)
        report("work", 1, 1)
        return "made"


def check_history(history: list[Snapshot]) -> None:
    """The rules that every sequence of snapshots of one job obeys."""
    for before, after in zip(history, history[1:], strict=False):
        assert after.version == before.version + 1
        assert after.state in ALLOWED[before.state], f"{before.state} became {after.state}"
        assert after.job_id == before.job_id
    for snapshot in history:
        assert (snapshot.result is not None) == (snapshot.state == "done")
        assert (snapshot.error is not None) == (snapshot.state == "failed")
    assert history[-1].finished


def test_done_job_has_its_result_and_last_report(queue: JobQueue) -> None:
    def runner(report: Reporter) -> str:
        report("train", 3, 9, preview=Path("a.png"), metrics={"loss": 0.5})
        report("train", 4, 9)
        return "lora"

    last = queue.submit("train", "Learning anna", runner).wait(WAIT_S)
    assert (last.state, last.result, last.error) == ("done", "lora", None)
    assert (last.kind, last.title, last.stage, last.step, last.total) == ("train", "Learning anna", "train", 4, 9)
    assert last.preview == Path("a.png") and last.metrics == {"loss": 0.5}, "left out means as before"
    assert last.eta_s is None


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (PhotoError("This photo is too small: give a larger one."), "This photo is too small: give a larger one."),
        (ZeroDivisionError("oops"), "ZeroDivisionError: oops"),
        (SystemExit(3), "SystemExit: 3"),
    ],
)
def test_failed_job_tells_why_and_the_queue_goes_on(queue: JobQueue, error: BaseException, sentence: str) -> None:
    def runner(report: Reporter) -> Any:
        raise error

    last = queue.submit("x", "x", runner).wait(WAIT_S)
    assert (last.state, last.error, last.result) == ("failed", sentence, None)
    assert queue.submit("x", "x", lambda report: 7).wait(WAIT_S).result == 7


def test_explain_is_asked_and_its_own_failure_is_survived() -> None:
    def explain(error: BaseException) -> str:
        if isinstance(error, KeyError):
            raise RuntimeError("the explainer broke")
        return f"explained {error}"

    queue = JobQueue(explain)

    def failing(error: Exception) -> str | None:
        def runner(report: Reporter) -> Any:
            raise error

        return queue.submit("x", "x", runner).wait(WAIT_S).error

    assert failing(ValueError("v")) == "explained v"
    assert failing(KeyError("k")) == "KeyError: 'k'"
    assert queue.close(WAIT_S)


def test_a_runner_that_returns_nothing_fails(queue: JobQueue) -> None:
    assert queue.submit("x", "x", lambda report: None).wait(WAIT_S).state == "failed"


def test_cancel_of_a_running_job_raises_at_its_next_report(queue: JobQueue) -> None:
    gate, seen = Gate(), []

    def runner(report: Reporter) -> str:
        try:
            return gate(report)
        except Cancelled:
            seen.append("raised")
            raise

    job = queue.submit("x", "x", runner)
    assert gate.started.wait(WAIT_S)
    job.cancel()
    assert job.snapshot.state == "running", "a cancel does not pretend that the work has stopped"
    gate.go_on.set()
    assert job.wait(WAIT_S).state == "cancelled"
    assert seen == ["raised"]


def test_work_that_ended_before_it_noticed_the_cancel_is_not_thrown_away(queue: JobQueue) -> None:
    started, go_on = threading.Event(), threading.Event()

    def runner(report: Reporter) -> str:
        started.set()
        assert go_on.wait(WAIT_S)
        return "made"

    job = queue.submit("x", "x", runner)
    assert started.wait(WAIT_S)
    job.cancel()
    go_on.set()
    assert job.wait(WAIT_S).result == "made"


def test_a_queued_job_is_cancelled_at_once_and_never_runs(queue: JobQueue) -> None:
    gate, ran = Gate(), []
    first = queue.submit("x", "first", gate)
    second = queue.submit("x", "second", lambda report: ran.append(1) or 1)
    assert gate.started.wait(WAIT_S)
    assert queue.cancel(second.id)
    assert second.snapshot.state == "cancelled"
    assert second.wait(0).finished, "whoever waits is woken without the worker"
    gate.go_on.set()
    assert first.wait(WAIT_S).state == "done"
    assert queue.submit("x", "third", lambda report: 1).wait(WAIT_S).state == "done"
    assert ran == []


def test_current_and_cancel_mean_the_running_job(queue: JobQueue) -> None:
    assert queue.current() is None and not queue.cancel()
    gate = Gate()
    job, waiting = queue.submit("x", "a", gate), queue.submit("x", "b", lambda report: 1)
    assert gate.started.wait(WAIT_S)
    assert queue.current() is job and queue.jobs() == (job, waiting) and queue.find(waiting.id) is waiting
    assert queue.cancel()
    gate.go_on.set()
    assert job.wait(WAIT_S).state == "cancelled"
    assert waiting.wait(WAIT_S).state == "done"
    assert not queue.cancel(job.id), "a finished job cannot be cancelled"


def test_jobs_run_one_at_a_time_in_order_on_one_thread(queue: JobQueue) -> None:
    running, threads, order, most = [0], set(), [], [0]

    def runner(number: int, report: Reporter) -> int:
        running[0] += 1
        most[0] = max(most[0], running[0])
        threads.add(threading.get_ident())
        report("work", 1, 1)
        order.append(number)
        running[0] -= 1
        return number

    jobs = [queue.submit("x", "x", lambda report, n=n: runner(n, report)) for n in range(50)]
    assert all(job.wait(WAIT_S).state == "done" for job in jobs)
    assert most[0] == 1 and len(threads) == 1 and order == list(range(50))


def test_close_cancels_everything_joins_and_refuses_more() -> None:
    queue, stopped = JobQueue(), []

    def endless(report: Reporter) -> int:
        try:
            for step in range(10**9):
                report("work", step, 10**9)
                threading.Event().wait(0.001)
        finally:
            stopped.append(True)
        return 1

    jobs = [queue.submit("x", "x", endless) for _ in range(3)]
    assert queue.close(WAIT_S)
    assert [job.snapshot.state for job in jobs] == ["cancelled"] * 3
    assert len(stopped) <= 1
    assert not [thread for thread in threading.enumerate() if thread.name == "headshot-worker" and thread.is_alive()]
    with pytest.raises(HeadshotError, match="closing"):
        queue.submit("x", "x", lambda report: 1)
    assert queue.close(), "closing twice does no harm"


def test_many_threads_cancelling_and_watching_see_only_lawful_histories(queue: JobQueue) -> None:
    chance = random.Random(5)
    histories: list[list[Snapshot]] = []
    jobs: list[Job] = []

    def runner(steps: int, fails: bool, report: Reporter) -> int:
        for step in range(steps):
            report("ab"[step % 2], step + 1, steps)
        if fails:
            raise ValueError("no luck")
        return steps + 1

    gate = Gate()  # holds the worker, so that some jobs are cancelled for certain however fast the machine is
    queue.submit("x", "x", gate)
    for _ in range(120):
        steps, fails = chance.randrange(30), chance.random() < 0.3
        job = queue.submit("x", "x", lambda report, s=steps, f=fails: runner(s, f, report))
        history: list[Snapshot] = []
        histories.append(history)
        jobs.append(job)
        job.subscribe(history.append)

    def disturb(seed: int) -> None:
        own = random.Random(seed)
        for _ in range(60):
            own.choice(jobs).cancel()

    for job in jobs[:5]:
        job.cancel()
    gate.go_on.set()
    threads = [threading.Thread(target=disturb, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for job in jobs:
        assert job.wait(WAIT_S).finished
    for thread in threads:
        thread.join()
    assert {history[-1].state for history in histories} >= {"done", "failed", "cancelled"}
    for job, history in zip(jobs, histories, strict=True):
        check_history(history)
        assert history[-1] == job.snapshot, "nothing changes after the end, and wait() returns after the last callback"


def test_a_late_subscriber_gets_the_present_snapshot_and_can_leave(queue: JobQueue) -> None:
    gate = Gate()
    job = queue.submit("x", "x", gate)
    assert gate.started.wait(WAIT_S)
    seen: list[Snapshot] = []
    leave = job.subscribe(seen.append)
    assert [snapshot.state for snapshot in seen] == ["running"]
    leave()
    leave()
    gate.go_on.set()
    job.wait(WAIT_S)
    assert len(seen) == 1
    job.subscribe(seen.append)
    assert seen[-1].state == "done"


def test_a_change_made_by_a_subscriber_reaches_the_others_in_order() -> None:
    job, seen = Job("x", "x"), []
    job.start()
    job.subscribe(lambda snapshot: job.report("work", 2, 2) if snapshot.step == 1 else None)
    job.subscribe(lambda snapshot: seen.append(snapshot.step))
    job.report("work", 1, 2)
    assert seen == [0, 1, 2]


def test_a_broken_subscriber_disturbs_neither_the_job_nor_the_others(queue: JobQueue) -> None:
    seen: list[str] = []

    def broken(snapshot: Snapshot) -> None:
        raise RuntimeError("the browser is gone")

    gate = Gate()
    job = queue.submit("x", "x", gate)
    job.subscribe(broken)
    job.subscribe(lambda snapshot: seen.append(snapshot.state))
    gate.go_on.set()
    assert job.wait(WAIT_S).state == "done"
    assert seen[-1] == "done"


def test_a_subscriber_may_cancel_its_own_job(queue: JobQueue) -> None:
    watched = threading.Event()

    def runner(report: Reporter) -> int:
        assert watched.wait(WAIT_S)
        for step in range(100):
            report("work", step, 100)
        return 1

    job = queue.submit("x", "x", runner)
    job.subscribe(lambda snapshot: job.cancel() if snapshot.step == 3 else None)
    watched.set()
    last = job.wait(WAIT_S)
    assert (last.state, last.step) == ("cancelled", 3)


def test_snapshots_that_break_the_rules_cannot_be_built() -> None:
    for wrong in ({"state": "done"}, {"state": "running", "result": 1}, {"state": "failed"}, {"error": "x"}):
        with pytest.raises(ValueError, match="exactly when"):
            Snapshot("id", "kind", "title", **wrong)


def test_the_worker_keeps_nothing_of_a_finished_job_alive(queue: JobQueue) -> None:
    class Model:
        pass

    model = Model()
    watch = weakref.ref(model)

    def runner(report: Reporter, held: Model = model) -> int:
        raise ValueError(f"with {held} on the stack")

    job = queue.submit("x", "x", runner)
    del runner, model
    job.wait(WAIT_S)
    until = time.monotonic() + WAIT_S
    while watch() is not None and time.monotonic() < until:  # the worker is on its way back to waiting
        time.sleep(0.01)
        gc.collect()
    assert watch() is None


def test_only_so_many_finished_jobs_are_remembered(queue: JobQueue) -> None:
    jobs = [queue.submit("x", "x", lambda report: 1) for _ in range(FINISHED_JOBS_KEPT + 20)]
    jobs[-1].wait(WAIT_S)
    newest = queue.submit("x", "x", lambda report: 1)
    newest.wait(WAIT_S)
    remembered = queue.jobs()
    assert len(remembered) == FINISHED_JOBS_KEPT + 1
    assert remembered[-1] is newest and queue.find(jobs[0].id) is None


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def etas(reports: list[tuple[float, str, int, int]]) -> list[float | None]:
    """ETA after each report (seconds since the last one, stage, step, total)."""
    clock, seen = Clock(), []
    job = Job("x", "x", clock)
    job.start()
    for seconds, stage, step, total in reports:
        clock.now += seconds
        job.report(stage, step, total)
        seen.append(job.snapshot.eta_s)
    return seen


def test_eta_is_the_rest_times_the_pace() -> None:
    assert etas([(0, "a", 0, 10), (2, "a", 1, 10), (2, "a", 2, 10), (6, "a", 5, 10), (10, "a", 10, 10)]) == [
        None, pytest.approx(18), pytest.approx(16), pytest.approx(10), 0,
    ]  # fmt: skip


def test_eta_follows_a_new_pace_smoothly() -> None:
    steady = [(0.0, "a", 0, 1000)] + [(1.0, "a", step, 1000) for step in range(1, 101)]
    hiccup = etas([*steady, (20.0, "a", 101, 1000)])[-1]
    assert hiccup is not None and 900 < hiccup < 3 * 899, "one slow step does not twentyfold the time left"
    slower = etas([*steady, *[(3.0, "a", step, 1000) for step in range(101, 181)]])[-1]
    assert slower == pytest.approx(3 * 820, rel=0.05)


def test_each_stage_has_its_own_pace_and_time_elsewhere_does_not_count() -> None:
    seen = etas([
        (0, "train", 0, 100), (1, "train", 10, 100), (1, "sample", 0, 4), (50, "sample", 4, 4),
        (30, "train", 11, 100), (1, "train", 21, 100),
    ])  # fmt: skip
    assert seen == [None, pytest.approx(9), None, 0, pytest.approx(8.9), pytest.approx(7.9)]


def test_eta_of_unknown_length_is_unknown() -> None:
    assert etas([(0, "a", 0, 0), (1, "a", 1, 0)]) == [None, None]


# --- lanes, places, notes -------------------------------------------------------------------------------
def test_lanes_run_beside_each_other_and_each_in_its_order(queue: JobQueue) -> None:
    main, desk = Gate(), Gate()
    order: list[str] = []
    jobs = [queue.submit("a", "a", main), queue.submit("b", "b", lambda report: order.append("b") or "made")]
    jobs += [
        queue.submit("c", "c", desk, DESK),
        queue.submit("d", "d", lambda report: order.append("d") or "made", DESK),
    ]
    assert main.started.wait(WAIT_S) and desk.started.wait(WAIT_S), "both run at the same time"
    assert queue.current() is jobs[0], "the one on the device"
    desk.go_on.set()
    assert jobs[3].wait(WAIT_S).state == "done" and order == ["d"] and jobs[0].snapshot.state == "running"
    main.go_on.set()
    assert jobs[1].wait(WAIT_S).state == "done" and order == ["d", "b"]
    assert queue.jobs() == tuple(jobs)


def test_the_desk_alone_is_what_runs_now(queue: JobQueue) -> None:
    gate = Gate()
    job = queue.submit("c", "c", gate, DESK)
    assert gate.started.wait(WAIT_S) and queue.current() is job and queue.cancel()
    gate.go_on.set()
    assert job.wait(WAIT_S).state == "cancelled"


def test_a_waiting_job_knows_its_place(queue: JobQueue) -> None:
    gate, beside = Gate(), Gate()
    first, second, third = (queue.submit(name, name, gate) for name in "abc")
    other = queue.submit("d", "d", beside, DESK)
    assert gate.started.wait(WAIT_S) and beside.started.wait(WAIT_S)
    assert [queue.position(job.id) for job in (first, second, third, other)] == [0, 1, 2, 0]
    assert queue.ahead_of(third.id) == (first, second) and queue.ahead_of(first.id) == ()
    second.cancel()
    assert queue.position(third.id) == 1 and queue.ahead_of(third.id) == (first,), "who gave up waits no more"
    assert queue.position("nobody") == 0
    gate.go_on.set(), beside.go_on.set()
    assert third.wait(WAIT_S).state == "done" and queue.position(third.id) == 0


def test_notes_gather_and_stay_to_the_end(queue: JobQueue) -> None:
    def runner(report: Reporter) -> str:
        report("a", 1, 2, note="First.")
        report("b", 2, 2, note="Second.")
        report("b", 2, 2, note="First.")
        report("b", 2, 2)
        return "made"

    assert queue.submit("x", "x", runner).wait(WAIT_S).notes == ("First.", "Second.")


def test_close_waits_for_both_lanes() -> None:
    queue, gates = JobQueue(), (Gate(), Gate())
    jobs = [queue.submit("a", "a", gate, lane) for gate, lane in zip(gates, (MAIN, DESK), strict=True)]
    assert all(gate.started.wait(WAIT_S) for gate in gates)
    assert not queue.close(0.05), "they have not noticed yet"
    for gate in gates:
        gate.go_on.set()
    assert queue.close(WAIT_S) and [job.snapshot.state for job in jobs] == ["cancelled"] * 2
