"""Progress in a terminal and in a file."""

from __future__ import annotations

import io

import pytest

from headshot_ui.commands.progress import SECONDS_BETWEEN_LINES, ProgressPrinter, format_seconds, progress_text
from headshot_ui.jobs import Snapshot


def snapshot(step: int, stage: str = "Training") -> Snapshot:
    return Snapshot("1", "train", "x", "running", stage, step, 10, eta_s=90.0, metrics={"loss": 0.12345})


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (125, "2 min 05 s"), (7800, "2 h 10 min")]
)
def test_times_are_for_people(seconds, text):
    assert format_seconds(seconds) == text


def test_a_line_says_stage_step_loss_and_time_left():
    assert progress_text(snapshot(3)) == "Training  3/10  loss 0.1235  1 min 30 s left"
    assert progress_text(Snapshot("1", "train", "x")) == "Waiting"
    assert progress_text(Snapshot("1", "train", "x", "running")) == "Starting"


def test_in_a_file_there_is_a_line_per_stage_and_every_few_seconds():
    now, stream = [0.0], io.StringIO()
    printer = ProgressPrinter(stream, clock=lambda: now[0])
    for second in range(12):
        now[0] = float(second)
        printer.show(snapshot(second))
    printer.show(snapshot(1, "Drawing"))
    lines = stream.getvalue().splitlines()
    assert [line.split("  ")[:2] for line in lines] == [
        ["Training", "0/10"], ["Training", f"{SECONDS_BETWEEN_LINES:.0f}/10"],
        ["Training", f"{2 * SECONDS_BETWEEN_LINES:.0f}/10"], ["Drawing", "1/10"],
    ]  # fmt: skip


def test_on_a_terminal_one_line_is_rewritten_and_then_taken_away():
    stream = Terminal()
    printer = ProgressPrinter(stream)
    printer.show(snapshot(1))
    printer.show(Snapshot("1", "train", "x", "running", "Short"))
    printer.finish()
    assert "\n" not in stream.getvalue()
    first, second, cleared = stream.getvalue().split("\r")[1:4]
    assert len(second) == len(first)  # nothing of a longer line is left behind
    assert second.strip() == "Short" and len(cleared) == len("Short") and not cleared.strip()
