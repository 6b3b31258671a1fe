"""Make the pictures of the page in docs/images: the real page, the real demo models, the demo photos.

    python -m tools.screenshots                     runs the demo in a temporary folder first (some minutes)
    python -m tools.screenshots --outputs outputs   shows the demo person that is there already

Every tab in light and dark, the running job, and one tab in a phone-sized window. Needs Playwright and a Chromium
(``playwright install chromium``, or one of the system).
"""

from __future__ import annotations

import argparse
import io
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from headshot_ui import cli
from headshot_ui.engine import Engine
from headshot_ui.settings import Settings
from headshot_ui.ui import serve

IMAGES = Path(__file__).parents[1] / "docs" / "images"
MOST_BYTES = 300_000
LOWEST = 1500  # pixels
PATIENCE_MS = 10 * 60_000
DESKTOP = {"width": 1200, "height": 900}
PHONE = {"width": 390, "height": 844}
TABS = ("Dataset", "Train", "Generate", "Restore")
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def main() -> None:
    """Start the page, look at every tab, and save a picture of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--outputs", metavar="FOLDER", help="folder with a finished demo (default: a temporary one)")
    parser.add_argument("--running", action="store_true", help="also start a training, show it, and cancel it")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if not args.outputs and cli.main(["demo", "--outputs", scratch]):
            raise SystemExit("the demo did not work")
        settings = Settings.from_environment(outputs_dir=Path(args.outputs or scratch))
        with Engine(settings) as engine, sync_playwright() as playwright:
            served, address = serve.launch(engine, settings, "127.0.0.1", None)
            path = next((found for found in map(shutil.which, NAMES) if found), None)
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            try:
                for scheme in ("light", "dark"):
                    tabs(browser, address, scheme)
                phone(browser, address)
                if args.running:
                    running(browser, address)
            finally:
                browser.close()
                served.close(verbose=False)


def tabs(browser: Browser, address: str, scheme: str) -> None:
    """All four, as they are when everything was made."""
    page = opened(browser, address, color_scheme=scheme)
    for name in TABS:
        show(page, name)
        save(page, f"{name.lower()}{'' if scheme == 'light' else '-dark'}")
    page.close()


def phone(browser: Browser, address: str) -> None:
    """The results in a narrow window."""
    page = opened(browser, address, viewport=PHONE, device_scale_factor=1.5)
    show(page, "Generate")
    page.get_by_role("heading", name="Drawn headshots").scroll_into_view_if_needed()
    page.evaluate("scrollBy(0, document.querySelector('h1') ? 500 : 0)")
    save(page, "generate-phone", whole=False)
    page.close()


def running(browser: Browser, address: str) -> None:
    """A training some steps in."""
    page = opened(browser, address)
    show(page, "Train")
    page.get_by_role("button", name="Start training").click()
    page.get_by_text(re.compile(r"\b(4\d|5\d) of \d+ steps")).first.wait_for(timeout=PATIENCE_MS)
    page.evaluate("scrollTo(0, 0)")
    save(page, "train-running")
    page.get_by_role("button", name=re.compile("^Cancel")).first.click()
    page.wait_for_timeout(8000)
    page.close()


def opened(browser: Browser, address: str, **options: Any) -> Page:
    page = browser.new_page(**{"viewport": DESKTOP, "reduced_motion": "reduce", **options})
    page.goto(address)
    page.get_by_role("heading", name="Headshots", exact=True).wait_for()
    page.wait_for_timeout(4000)  # what was found on disk comes a moment later
    return page


def show(page: Page, name: str) -> None:
    """Go to a tab, with all its pictures loaded and nothing under the pointer."""
    page.get_by_role("tab", name=name).click()
    page.mouse.move(1, 1)
    page.wait_for_timeout(4000)
    page.locator("img:visible").evaluate_all(
        "images => Promise.all(images.map(i => { i.loading = 'eager'; return i.decode().catch(() => 0); }))"
    )
    page.evaluate("scrollTo(0, 0)")


def save(page: Page, name: str, whole: bool = True) -> None:
    """``docs/images/NAME.webp``, at most 300 KB: all of the page down to ``LOWEST``, or what is in view."""
    hide_paths(page)
    page.wait_for_timeout(1200)  # transitions end
    height = page.evaluate("Math.ceil(document.querySelector('main').getBoundingClientRect().bottom)")
    view = page.viewport_size or DESKTOP
    if whole:
        page.set_viewport_size({"width": view["width"], "height": max(600, min(height, LOWEST))})
        page.wait_for_timeout(800)
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    page.set_viewport_size(view)
    for quality in (92, 85, 75, 65):
        buffer = io.BytesIO()
        shot.save(buffer, "WEBP", quality=quality, method=6)
        if buffer.tell() <= MOST_BYTES:
            break
    IMAGES.mkdir(parents=True, exist_ok=True)
    (IMAGES / f"{name}.webp").write_bytes(buffer.getvalue())
    print(f"{name}.webp  {shot.width} x {shot.height}  {buffer.tell() // 1000} KB", flush=True)


def hide_paths(page: Page) -> None:
    """Whose computer it was does not belong in the docs: folders are shortened to the part that everybody has."""
    page.evaluate(r"""() => {
      const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
      while (walker.nextNode()) {
        const node = walker.currentNode;
        const short = node.nodeValue.replace(/(?:[A-Z]:)?[\\/][^\s]*?[\\/](people|models)[\\/]/g,
          (_, part) => part === 'people' ? 'outputs/people/' : 'models/');
        if (short !== node.nodeValue) node.nodeValue = short;
      }
    }""")


if __name__ == "__main__":
    main()
