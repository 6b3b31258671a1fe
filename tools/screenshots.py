"""Make the pictures of the page in docs/images: the real page, the real demo models, the demo photos.

    python -m tools.screenshots                     a whole run in a temporary folder (some minutes)
    python -m tools.screenshots --outputs outputs   headshots already there are shown; nothing is trained to the end

Needs Playwright and a Chromium (``playwright install chromium``, or one of the system).
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, expect, sync_playwright

from headshot_ui.engine import Engine
from headshot_ui.settings import Settings
from headshot_ui.ui import serve
from headshot_ui.ui.earlier import find_earlier

IMAGES = Path(__file__).parents[1] / "docs" / "images"
MOST_BYTES = 300_000
LOWEST = 1250  # pixels
PATIENCE_MS = 45 * 60_000
DESKTOP = {"width": 1200, "height": 900}
PHONE = {"width": 390, "height": 844}
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def main() -> None:
    """Start the page, use it like a person, and save a picture at each station."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", metavar="FOLDER", help="folder with headshots (default: a temporary one)")
    parser.add_argument("--only-results", action="store_true", help="leave the start and the running job as they are")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        settings = Settings.from_environment(outputs_dir=Path(args.outputs or scratch))
        with Engine(settings) as engine, sync_playwright() as playwright:
            served, address = serve.launch(engine, settings, "127.0.0.1", None)
            path = next((found for found in map(shutil.which, NAMES) if found), None)
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            try:
                walk(browser, address, bool(find_earlier(engine.store)), args.only_results)
            finally:
                browser.close()
                served.close(verbose=False)


def walk(browser: Browser, address: str, found: bool, only_results: bool) -> None:
    """All five pictures. Headshots ``found`` on disk spare the run to its end."""
    page = opened(browser, address)
    if not only_results or not found:
        start(page)
        save(page, "page-start")
        page.get_by_role("button", name="Make my headshots").click()
        page.locator("#preview img").wait_for(timeout=PATIENCE_MS)
        page.wait_for_timeout(3000)  # a few more steps, so that it is past the sample itself
        save(page, "page-running")
        if found:
            page.get_by_role("button", name="Cancel").click()
            expect(page.locator("#progress h2")).to_have_text("Cancelled", timeout=60_000)
        else:
            page.locator("#gallery button.thumbnail-item").first.wait_for(timeout=PATIENCE_MS)
    page.close()
    save(results(browser, address, found), "page-results")
    save(results(browser, address, found, color_scheme="dark"), "page-results-dark")
    save(results(browser, address, found, viewport=PHONE, device_scale_factor=1.5), "page-phone", whole=False)


def opened(browser: Browser, address: str, **options: Any) -> Page:
    page = browser.new_page(**{"viewport": DESKTOP, "reduced_motion": "reduce", **options})
    page.goto(address)
    page.get_by_role("heading", name="Headshots", exact=True).wait_for()
    page.wait_for_timeout(3000)  # what was found on disk comes a moment later
    return page


def start(page: Page) -> None:
    """The form, filled in with the demo photos."""
    page.get_by_role("button", name="Use the demo photos").click()
    expect(page.locator("#chosen img")).to_have_count(10)
    page.locator("#earlier-box").evaluate_all("boxes => boxes.forEach(box => box.remove())")  # a first visit
    page.mouse.move(0, 0)


def results(browser: Browser, address: str, found: bool, **options: Any) -> Page:
    """A page that shows the newest headshots, all pictures loaded."""
    page = opened(browser, address, **options)
    if found:
        page.locator("#earlier button.thumbnail-item").first.click()
    page.mouse.move(1, 1)  # a picture under the pointer looks different
    pictures = page.locator("#gallery img")
    pictures.first.wait_for()
    pictures.evaluate_all("images => Promise.all(images.map(i => { i.loading = 'eager'; return i.decode(); }))")
    page.evaluate("""() => {
      scrollTo(0, 0);
      const folder = document.querySelector('#summary code');  // whose computer it was does not belong in the docs
      folder.textContent = folder.textContent.replace(/.*[/\\\\]people/, 'outputs/people').replaceAll('\\\\', '/');
    }""")
    return page


def save(page: Page, name: str, whole: bool = True) -> None:
    """``docs/images/NAME.webp``, at most 300 KB: all of the page down to ``LOWEST``, or what is in view."""
    page.wait_for_timeout(1200)  # transitions end
    height = page.evaluate("Math.ceil(document.querySelector('main').getBoundingClientRect().bottom)")
    view = page.viewport_size or DESKTOP
    if whole:
        page.set_viewport_size({"width": view["width"], "height": min(height, LOWEST)})
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    for quality in (92, 85, 75, 65):
        buffer = io.BytesIO()
        shot.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= MOST_BYTES:
            break
    IMAGES.mkdir(parents=True, exist_ok=True)
    (IMAGES / f"{name}.webp").write_bytes(buffer.getvalue())
    print(f"{name}.webp  {shot.width} x {shot.height}  {buffer.tell() // 1000} KB", flush=True)


if __name__ == "__main__":
    main()
