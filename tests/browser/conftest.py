"""The page in a real Chromium, in front of a fake engine.

Where no browser is found the tests are skipped with the reason, but with CI set in the environment they fail:
there, a browser has to be.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect, sync_playwright
from playwright.sync_api import TimeoutError as TookTooLong

from headshot_ui import families
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.settings import Settings
from headshot_ui.ui import page as shell
from headshot_ui.ui import page_js, serve
from headshot_ui.ui.live import Live
from tests.ui.fake_engine import FakeEngine, portrait

SLOWER = max(1.0, float(os.environ.get("SLOW_BROWSER", 1)))
ARGUMENTS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BASE = BaseInfo(
    "demo-sdxl", "sdxl", "Demo (draws cartoons)", Path("."), "Apache-2.0",
    "The demo model draws cartoons, not photographs.", 256, demo=True,
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="module")  # not longer: playwright keeps an event loop, which tests with their own cannot have
def browser() -> Iterator[Browser]:
    path = next((found for found in map(shutil.which, NAMES) if found), None)
    expect.set_options(timeout=30_000)  # two busy cores need longer than the five seconds it is by itself
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        if path is None and not own.exists():
            reason = "no Chromium was found: install chromium, or run “playwright install chromium”"
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
        opened = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield opened
        opened.close()


@dataclass
class App:
    """A running page: its address and the engine behind it."""

    address: str
    engine: FakeEngine
    outputs: Path
    stop: Callable[[], None]  # the program ends; its page stays open in the browser
    restart: Callable[..., None]  # another program at the same address, with a new engine


@pytest.fixture
def usual_pace() -> None:
    """For a test that needs the page to look for news as often as it does for people."""


@pytest.fixture(autouse=True)
def quick_pace(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Elsewhere it looks more often, so that tests wait less: nothing but the pace is another."""
    if "usual_pace" not in request.fixturenames:
        monkeypatch.setattr(shell, "BUSY_S", 0.4)
        monkeypatch.setattr(shell, "IDLE_S", 1.0)


@pytest.fixture(autouse=True)
def ready_when_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """People may press after eight seconds even if the page has not heard yet whom to show; tests wait until it has."""
    patient = page_js.ON_LOAD.replace(f", {page_js.READY_AT_LATEST_MS})", ", 60000)")
    assert patient != page_js.ON_LOAD
    monkeypatch.setattr(page_js, "ON_LOAD", patient)


@pytest.fixture(autouse=True)
def own_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests run in several processes: a page that is restarted must find its port as it left it."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    monkeypatch.setattr(serve, "FIRST_PORT", 17860 + 100 * worker)


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., App]]:
    """Start a page with ``app(step_s=…, steps=…, fail=…)``; it is closed at the end of the test."""
    monkeypatch.setattr(families, "all_bases", lambda settings: (BASE,))
    monkeypatch.setattr("headshot_ui.ui.live.unused_card", lambda settings: "")  # whatever card is here
    started: list[tuple[Any, FakeEngine]] = []

    settings = Settings.from_environment(outputs_dir=tmp_path / "outputs", models_dir=tmp_path / "models")

    def launch(fake: dict[str, Any], port: int | None = None) -> tuple[FakeEngine, str]:
        engine = FakeEngine(settings, **fake)
        live = Live(engine, settings, tmp_path / f"shown-{len(started)}")
        page, address = serve.launch(engine, settings, "127.0.0.1", port, live=live)
        started.append((page, engine))
        return engine, address

    def start(**fake: Any) -> App:
        models = tmp_path / "models" / "demo" / "people" / "robin"
        models.mkdir(parents=True)
        for number in range(10):
            portrait(number, "photo").save(models / f"robin-{number}.jpg")

        def stop() -> None:  # the page first, as the program itself does
            page, engine = started.pop()
            page.close(verbose=False)
            engine.close()

        def restart(**other: Any) -> None:
            if started:
                stop()
            made.engine, made.address = launch({**fake, **other}, urlsplit(made.address).port)

        engine, address = launch(fake)
        made = App(address, engine, tmp_path / "outputs", stop, restart)
        return made

    yield start
    for page, engine in started:
        engine.close()
        page.close(verbose=False)


@pytest.fixture
def open_page(browser: Browser) -> Iterator[Callable[..., Page]]:
    """Open an address; the test fails on any script error, console error or request to another host."""
    contexts: list[Any] = []
    problems: list[str] = []

    def opened(address: str, expect_errors: bool = False, **options: Any) -> Page:
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 900}, **options})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(30_000)
        page.on("pageerror", lambda error: problems.append(f"script error: {error}"))
        if not expect_errors:
            page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: problems.extend(_foreign(request.url)))
        slow_down(context, page)
        page.goto(address)
        ready(page)
        return page

    yield opened
    for context in contexts:
        context.close()
    assert problems == []


def ready(page: Page) -> None:
    """Wait until the page is whole and takes clicks: its parts come up one after another."""
    page.locator("body.hs-ready:not(.hs-away)").wait_for()
    expect(page.get_by_role("tab")).to_have_count(4)


def reload(page: Page) -> None:
    page.reload()
    ready(page)


def slow_down(context: BrowserContext, page: Page) -> None:
    """Slow the page's scripts by the factor in SLOW_BROWSER: a test that does not wait for what it needs fails then."""
    if SLOWER > 1:
        context.new_cdp_session(page).send("Emulation.setCPUThrottlingRate", {"rate": SLOWER})


def nothing_cut_off(page: Page) -> None:
    """Nothing is wider than the window; what is just coming up may still find its place."""
    for _ in range(round(20 * SLOWER)):
        found = page.evaluate(CUT_OFF)
        if found == []:
            return
        page.wait_for_timeout(250)
    assert found == []


def _foreign(url: str) -> list[str]:
    parts = urlsplit(url)
    local = parts.scheme in ("data", "blob") or parts.hostname in ("127.0.0.1", "localhost")
    return [] if local else [f"request to another host: {url}"]


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three photos."""
    folder = tmp_path / "given"
    folder.mkdir()
    names = ["one.jpg", "two.png", "Größe 李.jpg"]
    for number, name in enumerate(names):
        portrait(number, "given").save(folder / name)
    return [folder / name for name in names]


# Nothing that is there but cannot be seen: gradio keeps the clock of a call under way at opacity 0.
CUT_OFF = """() => [...document.querySelectorAll('main *')].filter((element) => {
  if (!element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) return false;
  const box = element.getBoundingClientRect();
  return box.width > 0 && box.height > 0 && (box.right > innerWidth + 1 || box.left < -1);
}).map((element) => element.outerHTML.slice(0, 120))"""


def add_person(page: Page, name: str) -> None:
    """Type a name into the empty field and press Add."""
    enter(page.get_by_label("Name of the person"), name)
    page.get_by_role("button", name="Add", exact=True).click()


def enter(field: Locator, text: str) -> None:
    """Type into a field that has only just come up: within its first moment gradio sets it back once."""
    for _ in range(10):
        field.fill(text)
        field.page.wait_for_timeout(200 * SLOWER)
        if field.input_value() == text:
            return
    expect(field).to_have_value(text)


def choose(field: Locator, offered: Locator) -> None:
    """Choose from a list. It is opened again where it has closed, or what is wanted is not in it yet."""
    for _ in range(6):
        field.click()
        try:
            offered.click(timeout=5000 * SLOWER)
            return
        except TookTooLong:
            field.blur()  # a list opens as its field is entered
    raise AssertionError(f"{offered} cannot be chosen")


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name).click()
    expect(page.get_by_role("tab", name=name)).to_have_attribute("aria-selected", "true")


def drop(page: Page, photos: list[Path]) -> None:
    """Give photos and wait until the page shows them."""
    page.locator("#files input[type=file]").set_input_files(photos)
    expect(page.locator("#chosen")).to_contain_text(f"{len(photos)} photo")


def prepare(page: Page, name: str, photos: list[Path]) -> None:
    """A new person with checked photos."""
    add_person(page, name)
    expect(page.locator("#person input")).to_be_visible()
    drop(page, photos)
    page.get_by_role("button", name="Check my photos").click()
    expect(page.locator("#photos li")).to_have_count(len(photos) + 1)


def start_training(page: Page) -> None:
    """From checked photos to a training that runs."""
    open_tab(page, "Train")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#training").get_by_role("progressbar")).to_be_visible()
