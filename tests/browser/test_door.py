"""The login and refused uploads in a real browser: over plain http, at an address that is not this computer's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from headshot_ui.ui.door import Wish, own_addresses
from headshot_ui.ui.login import Credentials
from headshot_ui.ui.serve import make_door
from tests.ui.tiny_page import PASSWORD, USER, Running, running


@pytest.fixture(scope="module")
def protected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    door = make_door(Wish("0.0.0.0", user=USER), Credentials(USER, PASSWORD))
    with running(tmp_path_factory.mktemp("protected"), door, "0.0.0.0") as server:
        yield server


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context()
    context.set_default_timeout(30_000)
    yield context.new_page()
    context.close()


@pytest.fixture
def address(protected: Running) -> str:
    """Browsers give 127.0.0.1 and localhost liberties (they count as secure); addresses of a network have none."""
    outside = [each for each in own_addresses() if ":" not in each]
    if not outside:
        pytest.skip("this computer has no address but its own")
    return f"http://{outside[0]}:{protected.port}/"


def log_in(page: Page, user: str = USER, password: str = PASSWORD) -> None:
    page.get_by_label("User name").fill(user)
    page.get_by_label("Password").fill(password)
    page.get_by_role("button", name="Log in").click()


def test_people_on_the_network_log_in_and_use_the_page(page, protected, address):
    foreign: list[str] = []
    page.on("request", lambda request: None if request.url.startswith(address) else foreign.append(request.url))
    page.goto(address)
    log_in(page, password="wrong wrong")
    expect(page.get_by_role("alert")).to_contain_text("not right")
    log_in(page)
    expect(page.get_by_role("heading", name="Headshots")).to_be_visible()
    page.locator("#count").click()  # through the queue: a request, then a stream of events
    expect(page.locator("#said textarea")).to_have_value("counted")
    page.reload()
    expect(page.locator("#count")).to_be_visible()
    assert [url for url in foreign if not url.startswith(("data:", "blob:"))] == []
    (cookie,) = page.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"], cookie["secure"]) == (True, "Lax", False)
    page.goto(address + "logout")
    expect(page.get_by_label("Password")).to_be_visible()
    page.goto(address)
    expect(page.get_by_label("Password")).to_be_visible()


def test_a_restarted_program_that_knows_nobody_any_more_asks_to_log_in_again(page, tmp_path):
    wish, credentials = Wish("127.0.0.1", user=USER), Credentials(USER, PASSWORD)
    with running(tmp_path, make_door(wish, credentials)) as first:
        page.goto(f"http://127.0.0.1:{first.port}/")
        log_in(page)
        page.locator("body.hs-ready").wait_for()
    page.locator("#count").click()
    expect(page.get_by_role("alert")).to_contain_text("The program does not answer.")
    with running(tmp_path, make_door(wish, credentials), port=first.port):
        expect(page.get_by_label("Password")).to_be_visible()


def test_a_page_without_session_shows_nothing_but_the_form(page, address):
    page.goto(address + "gradio_api/file=/etc/hostname")
    expect(page.get_by_role("heading", name="Headshots")).to_be_visible()
    expect(page.get_by_label("User name")).to_be_focused()
    assert page.locator("script").count() == 0


def test_a_refused_upload_is_told_in_the_page_which_goes_on_working(page, protected, address, tmp_path: Path):
    uploads = protected.door.uploads
    archive = tmp_path / "album.zip"
    archive.write_bytes(bytes(12_000_000))
    page.goto(address)
    log_in(page)
    field = page.locator("#files input[type=file]")
    uploads.request_bytes = 10_000_000
    field.set_input_files(archive)
    expect(page.get_by_text("send fewer at a time")).to_be_visible()
    uploads.request_bytes, uploads.reserve_bytes, uploads.free_bytes = 2**30, 2**31, lambda path: 2**31 + 1000
    field.set_input_files(archive)
    expect(page.get_by_text("is too full for these files")).to_be_visible()
    uploads.free_bytes = lambda path: 2**40
    field.set_input_files(archive)
    expect(page.locator("#said textarea")).to_have_value("1 files")
