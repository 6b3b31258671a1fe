"""Seconds from starting the program to its page, beside Gradio's own smallest page.

Reference: a script with one text box and Gradio's defaults. Ours: the program as it is started once everything is
installed (``python3 app.py`` hands over to it after a look at the lock file). Both write bytecode first, as at every
start but the very first. They take turns, A B, B A; the processor's time is told beside the clock's, because other
programs disturb it less.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from headshot_ui.bench.rows import Row
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.timing import summary
from headshot_ui.bench.work import Work
from headshot_ui.errors import SetupError

TIMES_AS_LONG = 1.15
ON_SCREEN_S = 1.0
GIVE_UP_S = 120.0
GOAL = f"at most {TIMES_AS_LONG} times Gradio's page with one text box"
REFERENCE = """\
import sys, threading
import gradio as gr
with gr.Blocks() as page:
    gr.Textbox(label="Name")
page.launch(server_name="127.0.0.1", server_port=int(sys.argv[1]), quiet=True, prevent_thread_lock=True)
threading.Event().wait()
"""
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
Command = Callable[[int], list[str]]  # port → what to run


@dataclass(frozen=True)
class Start:
    """One start, until the page had answered once."""

    seconds: float
    cpu_s: float  # user and system time of the process
    ram_bytes: int
    heavy: bool  # torch was in memory by then


def measure_start(setting: BenchSetting) -> Iterator[Row]:
    """Raises SetupError when a page does not come up."""
    reference, ours = commands(setting.folder)
    yield from start_rows(reference, ours, setting)
    browser = _browser()
    if browser is None:
        setting.say("  No Chromium, or no playwright: when something is on the screen cannot be measured.")
    else:
        yield screen_row(reference, ours, browser, setting)


def commands(folder: Path) -> tuple[Command, Command]:
    """The reference's and ours; ``folder`` takes the script and what our program writes."""
    script = folder / "one_text_box.py"
    script.write_text(REFERENCE, "utf-8")
    python = [sys.executable, "-P"]
    own = ["-m", "headshot_ui", "--no-browser", "--outputs", str(folder / "outputs")]
    return (lambda port: [*python, str(script), str(port)]), (lambda port: [*python, *own, "--port", str(port)])


# --- until it answers ---------------------------------------------------------------------------------
def start_rows(reference: Command, ours: Command, setting: BenchSetting) -> Iterator[Row]:
    """By the clock, and by the processor's time."""
    if setting.full:
        for command in (reference, ours):  # not counted: writes bytecode and fills the disk's cache
            start_once(command, setting.folder)
    found: tuple[list[Start], list[Start]] = ([], [])
    for turn in range(setting.repeats):
        for way in (0, 1) if turn % 2 == 0 else (1, 0):
            found[way].append(start_once((reference, ours)[way], setting.folder))
        setting.say(f"  {turn + 1}/{setting.repeats}: {found[0][-1].seconds:.2f} s, ours {found[1][-1].seconds:.2f} s")
    heavy = any(start.heavy for start in found[1])
    note = "Torch was loaded before the page was there." if heavy else "Torch was not loaded by then."
    ram = [int(median(start.ram_bytes for start in starts)) for starts in found]
    for what, taken in (
        ("by the clock", [[start.seconds for start in starts] for starts in found]),
        ("processor time", [[start.cpu_s for start in starts] for starts in found]),
    ):
        first, second = (summary(times).seconds for times in taken)
        met = second <= TIMES_AS_LONG * first and not heavy
        yield Row(f"start until the page answers, {what}", first, second, None, ram[0], ram[1], GOAL, met, note)


def start_once(command: Command, folder: Path) -> Start:
    """Start it, wait for its page, and end it. Raises SetupError."""
    began = time.perf_counter()
    with running(command, folder) as (process, _):
        seconds = time.perf_counter() - began
        known = psutil.Process(process.pid)
        used = known.cpu_times()
        return Start(seconds, used.user + used.system, int(known.memory_info().rss), _has_torch(known))


@contextmanager
def running(command: Command, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """The process and its address once the page has answered; killed at the end. Raises SetupError."""
    port = _free_port()
    address = f"http://127.0.0.1:{port}/"
    log = folder / "page.log"
    with log.open("wb") as file:
        process = subprocess.Popen(command(port), stdout=file, stderr=file, cwd=folder, env=child_environment())
    try:
        _wait_for(address, process, log)
        yield process, address
    finally:
        process.kill()
        process.wait()


def _wait_for(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    give_up = time.monotonic() + GIVE_UP_S
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        try:
            with direct.open(address, timeout=GIVE_UP_S) as answer:
                answer.read()
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > give_up:
                last = log.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["it said nothing"]
                raise SetupError(f"The page did not come up: {last[0]}") from None
            time.sleep(0.01)


def child_environment() -> dict[str, str]:
    """As people start it: own settings and what keeps Python from writing bytecode left out."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HEADSHOT_UI_", "GRADIO_"))}
    kept.pop("PYTHONDONTWRITEBYTECODE", None)
    package = Path(__file__).parents[3]
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, (str(package), kept.get("PYTHONPATH", ""))))}


def _has_torch(process: psutil.Process) -> bool:
    try:
        return any("libtorch" in Path(part.path).name for part in process.memory_maps())
    except (psutil.Error, AttributeError, OSError):  # some systems do not tell
        return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- until something is on the screen -------------------------------------------------------------------
def screen_row(reference: Command, ours: Command, browser: Path, setting: BenchSetting) -> Row:
    """From opening the address to the first words, as the browser itself notes it (first contentful paint)."""
    from playwright.sync_api import sync_playwright

    taken: tuple[list[float], list[float]] = ([], [])
    with (
        running(reference, setting.folder) as (_, first),
        running(ours, setting.folder) as (_, second),
        sync_playwright() as playwright,
    ):
        opened = playwright.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        for turn in range(setting.repeats + 1):
            for way in (0, 1) if turn % 2 == 0 else (1, 0):
                seconds = _first_paint(opened, (first, second)[way])
                if turn:  # the first one finds the browser itself cold
                    taken[way].append(seconds)
        opened.close()
    times = [summary(each).seconds for each in taken]
    return Row(
        "opening the page until something is on the screen", times[0], times[1], None, None, None,
        f"at most {ON_SCREEN_S:g} s", times[1] <= ON_SCREEN_S, _longest(taken),
    )  # fmt: skip


def _longest(taken: Sequence[Sequence[float]]) -> str:
    return f"The longest of {len(taken[1])} took {max(taken[1]):.2f} s, Gradio's {max(taken[0]):.2f} s."


def _first_paint(browser: Any, address: str) -> float:
    """Seconds, in a window that has nothing in its cache."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(address, wait_until="commit")
    page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length")
    seconds = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime") / 1000
    context.close()
    return float(seconds)


def _browser() -> Path | None:
    """A Chromium that playwright can drive; None without either."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    found = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if found:
        return Path(found)
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
    return own if own.exists() else None


WORK = Work("start", "From start to page", needs_gpu=False, measure=measure_start)
