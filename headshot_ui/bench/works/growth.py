"""Does more take longer per piece? Photos to prepare, pictures in one batch, and the size of a person's library.

Here the reference is the smallest amount and ours the largest: both are this program. Time per photo and picture is the
processor's, each in a process of its own, because other programs of the computer would disturb the clock more than a
thousand photos do. A library is opened as a browser does it: the request that choosing a person sends to a page that
has just been started, small copies of the pictures on view included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from headshot_ui.bench.library import PER_SET, make_library, make_photos
from headshot_ui.bench.rows import Row
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.work import Work
from headshot_ui.bench.works.start import child_environment, running
from headshot_ui.errors import SetupError
from headshot_ui.settings import Settings
from headshot_ui.store import Store

PHOTOS, PICTURES, LIBRARY = (10, 100, 1000), (10, 100, 400), (PER_SET, 10_000)
TINY_PHOTOS, TINY_PICTURES, TINY_LIBRARY = (3, 4), (2, 3), (PER_SET, 3 * PER_SET)
PHOTOS_FLAT, PICTURES_FLAT, MEMORY_FLAT = 1.10, 1.05, 1.05
LIBRARY_OPEN_S = 1.0
LIBRARY_TIMES = 3
PERSON = "bench"


def measure_growth(setting: BenchSetting) -> Iterator[Row]:
    """Raises SetupError when a job or the page fails."""
    yield from _library(setting, LIBRARY if setting.full else TINY_LIBRARY)
    yield from _pictures(setting, PICTURES if setting.full else TINY_PICTURES)
    yield from _photos(setting, PHOTOS if setting.full else TINY_PHOTOS)


# --- photos and pictures ----------------------------------------------------------------------------------
def _photos(setting: BenchSetting, amounts: Sequence[int]) -> Iterator[Row]:
    source = setting.settings.models_dir / "demo" / "people" / "alex"

    def one(amount: int) -> dict[str, Any]:
        photos = setting.folder / f"photos-{amount}"
        make_photos(photos, source, amount)
        told = _job(
            setting, "prepare", f"prepared-{amount}", "--photos", photos, "--models", setting.settings.models_dir
        )
        return told

    yield from _growth_rows("prepared photo", amounts, [_told(setting, one(each)) for each in amounts], PHOTOS_FLAT)


def _pictures(setting: BenchSetting, amounts: Sequence[int]) -> Iterator[Row]:
    from headshot_ui.prove.random_models import make_random_models

    models = setting.folder / "models"
    make_random_models(models, "tiny", device="cpu", codeformer=False)

    def one(amount: int) -> dict[str, Any]:
        return _job(setting, "generate", f"drawn-{amount}", "--models", models, "--count", amount)

    yield from _growth_rows("drawn picture", amounts, [_told(setting, one(each)) for each in amounts], PICTURES_FLAT)


def _told(setting: BenchSetting, figures: dict[str, Any]) -> dict[str, Any]:
    setting.say(f"  {figures['items']}: {figures['cpu_s']:.3f} s each")
    return figures


def _growth_rows(what: str, amounts: Sequence[int], told: Sequence[dict[str, Any]], flat: float) -> Iterator[Row]:
    """One row for each amount but the first, which they are compared with."""
    first = told[0]
    for amount, figures in zip(amounts[1:], told[1:], strict=True):
        slower = figures["cpu_s"] / first["cpu_s"]
        larger = figures["ram_most_bytes"] / first["ram_most_bytes"]
        clock = f"by the clock {figures['seconds']:.3g} s, beside {first['seconds']:.3g} s"
        yield Row(
            f"each {what} of {amount:,}, beside {amounts[0]}", first["cpu_s"], figures["cpu_s"], None,
            first["ram_most_bytes"], figures["ram_most_bytes"],
            f"at most {flat:g} times the time and {MEMORY_FLAT:g} times the memory",
            slower <= flat and larger <= MEMORY_FLAT, f"Processor time; {clock}.",
        )  # fmt: skip


def _job(setting: BenchSetting, what: str, name: str, *more: Any) -> dict[str, Any]:
    """What ``bench.growing`` says of one job. Raises SetupError."""
    command = [sys.executable, "-P", "-m", "headshot_ui.bench.growing", what, "--outputs", setting.folder / name,
               "--device", "cpu", *more]  # fmt: skip
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=child_environment())
    try:
        figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (ValueError, IndexError):
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise SetupError(f"The job to measure did not end well: {last[0]}") from None
    return figures


# --- a library ----------------------------------------------------------------------------------------------
def _library(setting: BenchSetting, amounts: Sequence[int]) -> Iterator[Row]:
    opened: list[list[Opened]] = []
    for amount in amounts:
        outputs = setting.folder / f"library-{amount}"
        make_library(Store(Settings.from_environment(outputs_dir=outputs, environment={})), PERSON, "demo-sdxl", amount)
        opened.append([open_library(outputs, setting) for _ in range(min(setting.repeats, LIBRARY_TIMES))])
        setting.say(f"  {amount} pictures open in {median(each.seconds for each in opened[-1]):.2f} s")
    for what, taken in (
        ("by the clock", [median(each.seconds for each in times) for times in opened]),
        ("processor time", [median(each.cpu_s for each in times) for times in opened]),
    ):
        yield Row(
            f"opening {amounts[-1]:,} pictures, beside {amounts[0]}, {what}", taken[0], taken[1], None, None, None,
            f"less than {LIBRARY_OPEN_S:g} s", taken[1] < LIBRARY_OPEN_S,
            "A page that has just started, the small copies on view made anew.",
        )  # fmt: skip


@dataclass(frozen=True)
class Opened:
    """What a page took to answer; the processor's time of two threads may exceed the clock's."""

    seconds: float
    cpu_s: float


def open_library(outputs: Path, setting: BenchSetting) -> Opened:
    """A fresh page is told that the person was chosen. Raises SetupError."""

    def command(port: int) -> list[str]:
        own = ["-m", "headshot_ui", "--no-browser", "--device", "cpu", "--port", str(port), "--outputs", str(outputs)]
        return [sys.executable, "-P", *own, "--models", str(setting.settings.models_dir)]

    with running(command, setting.folder) as (process, address):
        refresh = _refresh_of(_asked(f"{address}config"))
        body = {"data": [PERSON, None], "fn_index": refresh, "session_hash": uuid.uuid4().hex[:11]}
        began, used = time.perf_counter(), _cpu_s(process.pid)
        answer = _asked(f"{address}gradio_api/run/predict", body)
        took = Opened(time.perf_counter() - began, _cpu_s(process.pid) - used)
    if f"of {PER_SET} pictures look like" not in json.dumps(answer):
        raise SetupError("The page did not show the pictures of the library: report this.")
    return took


def _cpu_s(process: int) -> float:
    times = psutil.Process(process).cpu_times()
    return float(times.user + times.system)


def _refresh_of(config: dict[str, Any]) -> int:
    """The event that looks at what is new: the one that timers set off."""
    return next(int(event["id"]) for event in config["dependencies"]
                if any(target[1] == "tick" for target in event["targets"]))  # fmt: skip


def _asked(address: str, body: dict[str, Any] | None = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with direct.open(request, timeout=120) as answer:
            return json.load(answer)
    except OSError as error:
        raise SetupError(f"The page did not answer: {error}") from error


WORK = Work("growth", "Growth", needs_gpu=False, measure=measure_growth)
