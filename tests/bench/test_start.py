"""The measurement of starts, with small servers in place of both pages; the real ones are in the slow test."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.works import start
from headshot_ui.bench.works.start import Command, measure_start, start_once, start_rows
from headshot_ui.errors import SetupError
from headshot_ui.settings import Settings

SERVER = """
import http.server, sys, time
time.sleep(float(sys.argv[2]))
end = time.process_time() + float(sys.argv[3])
while time.process_time() < end: pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


@pytest.fixture
def setting(tmp_path: Path) -> BenchSetting:
    return BenchSetting(Settings.from_environment(environment={}), "tiny", 1, tmp_path, lambda line: None)


def server(pause_s: float = 0.0, busy_s: float = 0.0, more: str = "") -> Command:
    return lambda port: [sys.executable, "-c", more + SERVER, str(port), str(pause_s), str(busy_s)]


def test_clock_and_processor_time(tmp_path: Path) -> None:
    began = time.perf_counter()
    waited = start_once(server(pause_s=0.4), tmp_path)
    assert 0.4 <= waited.seconds <= time.perf_counter() - began
    busy = start_once(server(busy_s=0.5), tmp_path)
    assert busy.cpu_s >= 0.5 > waited.cpu_s and busy.ram_bytes > 2**20 and not busy.heavy


def test_rows(setting: BenchSetting) -> None:
    for slower, met in ((0.0, True), (0.6, False)):
        rows = list(start_rows(server(busy_s=0.3), server(busy_s=0.3 + slower), setting))
        assert [row.work.rpartition(", ")[2] for row in rows] == ["by the clock", "processor time"]
        assert rows[1].met is met and rows[1].note == "Torch was not loaded by then."
        assert rows[1].reference_s == pytest.approx(0.4, abs=0.15)


def test_torch_before_the_page_is_a_missed_goal(setting: BenchSetting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(start, "_has_torch", lambda process: True)
    rows = list(start_rows(server(busy_s=0.5), server(), setting))
    assert [row.met for row in rows] == [False, False] and "Torch was loaded" in rows[0].note


def test_a_page_that_does_not_come_up(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="did not come up: SystemExit: no room|did not come up: no room"):
        start_once(lambda port: [sys.executable, "-c", "raise SystemExit('no room')"], tmp_path)


@pytest.mark.slow
def test_the_real_pages(setting: BenchSetting) -> None:
    rows = {row.work: row for row in measure_start(replace(setting, size="full", repeats=2))}
    for row in rows.values():
        assert row.reference_s > 0.05 and row.ours_s > 0.05
    assert rows["start until the page answers, processor time"].met, rows
