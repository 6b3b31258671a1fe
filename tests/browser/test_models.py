"""Models on the page in a real browser: a real download from servers of our own, and the new base to choose."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from headshot_ui import families
from headshot_ui.downloads import catalogue
from headshot_ui.downloads.runner import run_download
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.specs import DownloadSpec
from headshot_ui.ui import serve
from headshot_ui.ui.live import Live
from tests.browser.conftest import BASE, choose, ready, slow_down
from tests.downloads.conftest import BASE as BASE_ENTRY
from tests.downloads.conftest import CODEFORMER, Place, online, place, small_catalogue
from tests.ui.fake_engine import FakeEngine

READ_CATALOGUE = catalogue.load_catalogue  # before a fixture puts another in its place
__all__ = ["online", "place", "small_catalogue"]  # fixtures
BAD = "${document.body.remove()}<img src=x onerror=document.body.remove()>"


@pytest.fixture
def address(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    def bases(settings: Any) -> tuple[BaseInfo, ...]:
        here = place.path("base/base.json").is_file()
        return (BASE, BaseInfo("base", "sdxl", "Photographs", Path("."), "MIT", "x.", 1024)) if here else (BASE,)

    monkeypatch.setattr(families, "all_bases", bases)
    engine = FakeEngine(
        place.settings, runners={DownloadSpec: lambda spec, report: run_download(spec, place.settings, report)}
    )
    page, where = serve.launch(
        engine, place.settings, "127.0.0.1", None, live=Live(engine, place.settings, tmp_path / "shown")
    )
    yield where
    page.close(verbose=False)
    engine.close()


def opened(browser: Browser, address: str, asked: list[str], width: int = 1100) -> Page:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: asked.append(f"error: {error}"))
    slow_down(page.context, page)
    page.goto(address)
    ready(page)
    page.locator("#models").get_by_role("button", name="Models").click()
    return page


def test_a_base_is_downloaded_and_can_be_chosen_at_once(browser: Browser, address: str, place: Place) -> None:
    asked: list[str] = []
    page = opened(browser, address, asked)
    rows = page.locator("#model-rows")
    place.world.gate.clear()
    rows.get_by_role("button", name="Get: Base").click()
    expect(page.locator("#bar")).to_contain_text("Downloading base")
    expect(rows.locator("li").first).to_contain_text("Being downloaded")
    place.world.gate.set()
    expect(rows.locator("li").first).to_contain_text("Checked against the published checksums")
    page.locator("#tab-train-button").click()  # choices of a tab nobody opened yet, and of the open one
    page.locator("#tab-dataset-button").click()
    choose(page.locator("#base input"), page.get_by_role("option", name="Photographs"))
    expect(page.locator("#base-note")).to_contain_text(re.compile(r"^\s*x\."))
    expect(page.locator("#base input")).to_have_value("Photographs")
    assert [url for url in asked if not url.startswith((address, "data:", "blob:"))] == []
    page.close()


def test_a_licence_is_read_before_it_is_accepted_on_a_phone_too(browser: Browser, address: str, place: Place) -> None:
    page = opened(browser, address, [], width=390)
    rows = page.locator("#model-rows")
    rows.get_by_role("button", name="Get: Codeformer").click()
    expect(rows).to_contain_text("non-commercial purposes only")
    page.wait_for_function("document.documentElement.scrollWidth <= 390")  # nothing is wider than a phone
    rows.get_by_role("button", name="Accept, and get it").click()
    expect(page.locator("#bar")).to_contain_text("2.0 MB downloaded and checked.")
    page.locator("#bar").get_by_role("button", name="Show: Downloading codeformer").click()
    rows.get_by_role("button", name="Remove: Codeformer").click()
    rows.get_by_role("button", name="Remove", exact=True).click()
    expect(rows.get_by_role("button", name="Get: Codeformer")).to_be_visible()
    assert not place.path("codeformer/codeformer.pth").exists()
    page.close()


def test_words_of_the_catalogue_do_not_run(
    browser: Browser, tmp_path: Path, place: Place, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    folder = tmp_path / "evil"
    folder.mkdir()
    evil = {**CODEFORMER, "title": BAD, "note": BAD, "licence": BAD, "licence_page": "https://x.org/${alert(1)}"}
    (folder / "1.json").write_text(json.dumps(evil))
    (folder / "2.json").write_text(json.dumps(BASE_ENTRY))
    entries = READ_CATALOGUE(folder)
    monkeypatch.setattr(catalogue, "load_catalogue", lambda folder=None: entries)
    asked: list[str] = []
    page = opened(browser, request.getfixturevalue("address"), asked)
    expect(page.locator("#model-rows li").first).to_contain_text(BAD)
    assert page.locator("#model-rows img").count() == 0 and not [url for url in asked if url.startswith("error")]
    page.close()
