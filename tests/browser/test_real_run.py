"""The whole job through the page, with the real engine and the demo models: minutes, so only with ``--slow``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from headshot_ui.engine import Engine
from headshot_ui.settings import Settings
from headshot_ui.sheet import FILE_NAME as SHEET_NAME
from headshot_ui.ui import serve
from tests.browser.conftest import open_tab, reload

MINUTES = 60_000


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def address(outputs: Path) -> Iterator[str]:
    settings = Settings.from_environment(outputs_dir=outputs)
    with Engine(settings) as engine:
        page, where = serve.launch(engine, settings, "127.0.0.1", None)
        yield where
        page.close(verbose=False)


@pytest.mark.slow
@pytest.mark.usefixtures("usual_pace")
@pytest.mark.timeout(3600)
def test_the_demo_photos_become_headshots_that_look_like_the_person(address, outputs, open_page):
    page = open_page(address)
    page.get_by_role("button", name="Use the demo photos").click()
    expect(page.locator("#chosen img")).to_have_count(10)
    page.get_by_role("button", name="Make my headshots").click()
    expect(page.locator("#photos li")).to_have_count(10, timeout=3 * MINUTES)
    open_tab(page, "Train")
    expect(page.locator("#curve polyline")).to_be_visible(timeout=5 * MINUTES)
    reload(page)  # the job goes on meanwhile
    expect(page.locator("#curve polyline")).to_be_visible()
    expect(page.locator("#samples img").first).to_be_visible(timeout=20 * MINUTES)
    told = page.locator("#bar .hs-done .hs-job-stage")
    expect(told).to_contain_text("pictures look like demo-robin", timeout=40 * MINUTES)
    (after, drawn), (before, drawn_before) = re.findall(r"(\d+) of (\d+)", told.inner_text())
    assert int(after) / int(drawn) >= 0.7, told.inner_text()
    assert int(after) / int(drawn) - int(before) / int(drawn_before) >= 0.3, told.inner_text()  # training did it
    expect(page.locator("#history tbody tr")).to_contain_text("%")
    page.locator("#bar").get_by_role("button", name="Show").click()
    expect(page.get_by_role("tab", name="Generate")).to_have_attribute("aria-selected", "true")
    expect(page.locator("#tab-generate img").first).to_be_visible()
    headshots = outputs / "people" / "demo-robin" / "headshots"
    (folder,) = (path.parent for path in headshots.glob(f"*/{SHEET_NAME}"))
    assert len(list(folder.glob("*.png"))) == 21
