"""The command with fake works, the clock, and the rows."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headshot_ui.bench import works
from headshot_ui.bench.machine import facts, matmul_flops
from headshot_ui.bench.rows import Row, as_json, seconds, table
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.timing import measure, side_by_side, summary
from headshot_ui.bench.work import Work
from headshot_ui.cli import main
from headshot_ui.commands import bench as command
from headshot_ui.errors import ModelError
from headshot_ui.lock import hold
from headshot_ui.logs import stop_log

SEEN: list[BenchSetting] = []
JSON_FIELDS = [  # as other programs read them
    "work", "reference_s", "ours_s", "ratio", "bound_s", "reference_peak_bytes", "ours_peak_bytes", "goal", "met",
    "note", "compiling_s",
]  # fmt: skip


def slow(setting: BenchSetting) -> Iterator[Row]:
    SEEN.append(setting)
    (setting.folder / "weights").write_bytes(b"1")
    yield Row("one step", 0.6, 0.06, 0.02, 3 * 2**30, 2**30, "at most 0.060 s", True, "The usual way is eager.")
    yield Row("another", 0.2, 0.4, None, None, None, "at most 0.1 s", False)


def broken(setting: BenchSetting) -> Iterator[Row]:
    yield Row("a part that works", 1.0, 1.0, None, None, None, "any", True)
    raise ModelError("It broke: mend it.")


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    SEEN.clear()
    made = [Work("slow", "A slow work", False, slow), Work("card", "A work for a card", True, slow),
            Work("broken", "A broken work", False, broken)]  # fmt: skip
    monkeypatch.setattr(works, "all_works", lambda *_: {work.name: work for work in made})


def bench(tmp_path: Path, *argv: str) -> int:
    code = main(["bench", *argv, "--outputs", str(tmp_path / "outputs"), "--device", "cpu"])
    stop_log()
    return code


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(tmp_path, "slow") == 0  # although a goal is missed
    out = capsys.readouterr().out
    lines = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    assert lines["one step"][2:] == ["0.6", "s", "60", "ms", "10.00", "20", "ms", "3.00", "GiB", "1.00", "GiB", "yes"]
    assert lines["another"][1:] == ["0.2", "s", "0.4", "s", "0.50", "-", "-", "-", "NO"]
    assert "one step: the goal is at most 0.060 s." in out and "The usual way is eager." in out


def test_json_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "new" / "kept.json"
    assert bench(tmp_path, "slow", "--json", "--report", str(report)) == 0
    captured = capsys.readouterr()
    rows = json.loads(captured.out)  # and nothing else
    assert list(rows[0]) == JSON_FIELDS and list(rows[1]) == JSON_FIELDS
    assert (rows[0]["ratio"], rows[0]["bound_s"], rows[0]["met"]) == (pytest.approx(10), 0.02, True)
    kept = json.loads(report.read_text("utf-8"))
    assert kept["rows"] == rows and kept["machine"]["device"] == "cpu" and kept["machine"]["cores"] >= 1
    assert "A slow work …" in captured.err
    assert "one step: 60 ms instead of 0.6 s, 10.00 times as fast" in captured.err


def test_the_report_is_kept_after_each_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[int, bool]] = []
    monkeypatch.setattr(command, "_keep", lambda path, told: kept.append((len(told["rows"]), "machine" in told)))
    assert bench(tmp_path, "slow", "--report", str(tmp_path / "kept.json")) == 0
    assert kept == [(1, False), (2, False), (2, True)]


def test_what_a_work_is_told(tmp_path: Path) -> None:
    assert bench(tmp_path, "slow", "--cap", "8", "--repeats", "3", "--json") == 0
    setting = SEEN[0]
    assert (setting.settings.vram_limit_bytes, setting.repeats, setting.size) == (8 * 2**30, 3, "full")
    outputs = tmp_path / "outputs"
    assert setting.folder.is_relative_to(outputs)
    assert not list(outputs.glob(".bench-*")), "the scratch folder stayed"


def test_without_a_card_what_needs_one_is_tiny_and_never_judged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(tmp_path, "card", "--json") == 0
    assert [row["met"] for row in json.loads(capsys.readouterr().out)] == [None, None]
    assert bench(tmp_path, "card", "--size", "full", "--json") == 0
    assert [row["met"] for row in json.loads(capsys.readouterr().out)] == [True, False]
    assert [setting.size for setting in SEEN] == ["tiny", "full"]
    assert [setting.repeats for setting in SEEN] == [2, 7]


def test_a_broken_work_keeps_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench(tmp_path, "broken", "slow", "--json") == 1
    captured = capsys.readouterr()
    assert [row["work"] for row in json.loads(captured.out)] == ["a part that works", "one step", "another"]
    assert "A broken work: It broke: mend it." in captured.err


@pytest.mark.parametrize(
    ("argv", "said"),
    [(["fly"], "choose from slow, card, broken"), (["slow", "--repeats", "0"], "1 or more"), (["--cap", "x"], "“x”")],
)
def test_what_cannot_be_meant(tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], said: str) -> None:
    assert bench(tmp_path, *argv) in (1, 2)
    assert said in capsys.readouterr().err and not SEEN


def test_not_beside_another_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hold(tmp_path / "outputs", "train"):
        assert bench(tmp_path, "slow") == 1
    assert not SEEN


def test_works_are_found_by_looking() -> None:
    first, second = Work("a", "A", False, slow), Work("a", "B", False, slow)
    module: Any = SimpleNamespace(WORK=first)
    assert works.collect_works([module, SimpleNamespace()]) == {"sdxl": {"a": first}}  # type: ignore[list-item]
    other: Any = SimpleNamespace(WORK=Work("a", "C", False, slow, model="flux"))
    assert works.collect_works([module, other]) == {"flux": {"a": other.WORK}, "sdxl": {"a": first}}
    with pytest.raises(ValueError, match="two works"):
        works.collect_works([module, SimpleNamespace(WORK=second)])  # type: ignore[list-item]


# --- the clock ----------------------------------------------------------------------------------------
def test_the_median_counts_and_warm_ups_do_not() -> None:
    pauses = iter([0.2, 0.2, 0.01, 0.01, 0.09])
    timed = measure(lambda: time.sleep(next(pauses)), "cpu", repeats=3)
    assert 0.01 <= timed.seconds < 0.05 and timed.spread > 0.04 and timed.peak_bytes is None


def test_two_ways_take_turns() -> None:
    calls: list[str] = []
    first, second = side_by_side(lambda: calls.append("a"), lambda: calls.append("b"), "cpu", repeats=3, warmups=1)
    assert "".join(calls) == "aaa" + "bbb" * 2 + "aaa"  # a warm-up and half of three, rounded up, in each block
    assert first.seconds < 0.01 and second.seconds < 0.01


def test_one_time_has_no_spread() -> None:
    assert (summary([0.5]).seconds, summary([0.5]).spread) == (0.5, 0.0)
    assert summary([float(second) for second in range(11)]).spread == pytest.approx(8)


# --- rows and machine ------------------------------------------------------------------------------------
def test_rows_in_words() -> None:
    row = Row("w", 1.0, 0.0, None, None, None, "g", None)
    assert row.ratio == 0.0 and list(as_json([row])[0]) == JSON_FIELDS
    assert table([row])[1] == ("w", "1 s", "0 ms", "0.00", "-", "-", "-", "-")
    assert (seconds(0.0999), seconds(12.345), seconds(0.6)) == ("99.9 ms", "12.3 s", "0.6 s")


def test_facts_of_the_machine() -> None:
    told = facts("cpu")
    assert json.loads(json.dumps(told)) == told and told["packages"]["torch"] and "gpu" not in told
    assert matmul_flops("cpu", "float32") > 1e8
