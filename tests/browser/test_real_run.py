"""The whole job through the page, with the real engine and the demo models: minutes, so only with ``--slow``."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from headshot_ui.engine import Engine
from headshot_ui.settings import Settings
from headshot_ui.ui import serve
from tests.browser.conftest import form

MINUTES = 60_000


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    settings = Settings.from_environment(outputs_dir=tmp_path / "outputs")
    with Engine(settings) as engine:
        page, where = serve.launch(engine, settings, "127.0.0.1", None)
        yield where
        page.close(verbose=False)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_demo_photos_become_headshots_that_look_like_the_person(address, open_page, tmp_path):
    page = open_page(address)
    page.get_by_role("button", name="Use the demo photos").click()
    expect(page.locator("#chosen img")).to_have_count(10)
    form(page).start.click()
    expect(page.locator("#photos li")).to_have_count(10, timeout=3 * MINUTES)
    expect(page.locator("#curve polyline")).to_be_visible(timeout=5 * MINUTES)
    page.reload()  # the job goes on meanwhile
    expect(page.locator("#curve polyline")).to_be_visible()
    expect(page.locator("#preview img")).to_be_visible(timeout=20 * MINUTES)
    pictures = page.locator("#gallery button.thumbnail-item")
    expect(pictures.first).to_be_visible(timeout=40 * MINUTES)
    expect(pictures).to_have_count(20)
    told = page.locator("#summary").inner_text()
    (after, drawn), (before, drawn_before) = re.findall(r"(\d+) of (\d+)", told)
    assert int(after) / int(drawn) >= 0.7, told
    assert int(after) / int(drawn) - int(before) / int(drawn_before) >= 0.3, told  # it was the training that did it
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download all (zip)").click()
    with zipfile.ZipFile(saved.value.path()) as packed:
        assert len(packed.namelist()) == 21 and packed.testzip() is None
