"""A person's way through the page, in a real browser before a fake engine."""

from __future__ import annotations

import re

from playwright.sync_api import expect

from tests.browser.conftest import CUT_OFF, form
from tests.ui.fake_engine import GROUP


def test_from_photos_to_ranked_pictures(app, open_page, photos):
    running = app(step_s=0.02, steps=30)
    page = open_page(running.address)
    fields = form(page)
    fields.name.fill("Anna Müller")
    fields.files.set_input_files(photos)
    expect(page.locator("#chosen")).to_contain_text("3 photos")
    expect(page.locator("#chosen img")).to_have_count(3)
    fields.start.click()
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.locator("#photos li")).to_have_count(4)
    expect(page.locator("#photos .hs-rejected")).to_contain_text("Several faces were found")
    expect(page.locator("#photos .hs-name").last).to_have_text(GROUP)  # as text: the page is still there
    pictures = page.locator("#gallery button.thumbnail-item")
    expect(pictures).to_have_count(20)
    expect(page.locator("#gallery")).to_contain_text("96 % likeness · Navy suit, grey studio")
    expect(page.get_by_role("button", name="96 % likeness · Navy suit, grey studio")).to_be_visible()
    expect(page.locator("#summary")).to_contain_text("18 of 20 pictures look like anna-muller")
    assert page.evaluate(
        "[...document.querySelectorAll('#gallery img')].every(i => i.loading === 'lazy' || i.complete)"
    )
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download all (zip)").click()
    assert saved.value.suggested_filename == "anna-muller-headshots.zip"
    pictures.nth(2).click()  # large, and back again
    large = page.locator("#gallery .media-button img")
    expect(large).to_be_visible()
    assert large.bounding_box()["height"] > 300
    page.keyboard.press("Escape")
    expect(large).to_have_count(0)
    page.get_by_text("Contact sheet").click()
    sheet = page.get_by_alt_text(re.compile("^Photos given"))
    expect(sheet).to_be_visible()
    assert sheet.evaluate("image => image.naturalWidth") > 1000


def test_a_reloaded_page_finds_the_running_job_again(app, open_page, photos):
    running = app(step_s=0.02, steps=50)
    running.engine.hold.clear()
    page = open_page(running.address)
    fields = form(page)
    fields.name.fill("anna")
    fields.files.set_input_files(photos)
    expect(page.locator("#chosen img")).to_have_count(3)
    fields.start.click()
    expect(page.locator("#curve polyline")).to_be_visible()
    expect(page.locator("#preview img")).to_be_visible()
    page.reload()
    expect(page.get_by_role("progressbar")).to_be_visible()
    expect(page.locator("#curve polyline")).to_be_visible()
    expect(page.locator("#photos li")).to_have_count(4)
    expect(fields.start).to_be_hidden()
    other = open_page(running.address)  # and so does a second window
    expect(other.get_by_role("progressbar")).to_be_visible()
    assert len(running.engine.submitted) == 1
    running.engine.hold.set()
    for window in (page, other):
        expect(window.locator("#gallery button.thumbnail-item")).to_have_count(20)
    page.reload()
    expect(page.locator("#gallery button.thumbnail-item")).to_have_count(20)
    page.get_by_role("button", name="Make more headshots").click()
    expect(fields.start).to_be_visible()
    expect(page.locator("#gallery")).to_be_hidden()


def test_cancel_ends_the_job_and_brings_the_form_back(app, open_page, photos):
    running = app(step_s=0.02, steps=50)
    running.engine.hold.clear()
    page = open_page(running.address)
    fields = form(page)
    fields.name.fill("anna")
    fields.files.set_input_files(photos)
    expect(page.locator("#chosen img")).to_have_count(3)
    fields.start.click()
    expect(page.locator("#progress")).to_contain_text("Training")
    fields.cancel.click()
    expect(page.locator("#progress h2")).to_have_text("Cancelled")
    expect(fields.start).to_be_visible()
    expect(fields.cancel).to_be_hidden()
    assert running.engine.jobs()[0].snapshot.state == "cancelled"


def test_what_is_missing_is_said_beside_its_field(app, open_page, photos):
    running = app()
    page = open_page(running.address)
    fields = form(page)
    fields.start.click()
    expect(page.locator("#name-problem")).to_contain_text("Give the person a name")
    fields.name.fill("anna")
    expect(page.locator("#name-problem [role=alert]")).to_have_count(0)
    fields.start.click()
    expect(page.locator("#photos-problem")).to_contain_text("No photos were given")
    assert running.engine.submitted == []


def test_a_failed_job_says_why_and_keeps_the_form(app, open_page, photos):
    running = app(fail="No face was found in any photo; take new ones.")
    page = open_page(running.address)
    fields = form(page)
    fields.name.fill("anna")
    fields.files.set_input_files(photos)
    expect(page.locator("#chosen img")).to_have_count(3)
    fields.start.click()
    expect(page.locator("#progress [role=alert]")).to_have_text("No face was found in any photo; take new ones.")
    expect(fields.start).to_be_visible()


def test_the_demo_photos_need_no_photos_of_ones_own(app, open_page):
    running = app()
    page = open_page(running.address)
    expect(page.locator("#base-note")).to_contain_text("cartoons, not photographs")
    page.get_by_role("button", name="Use the demo photos").click()
    expect(page.locator("#chosen")).to_contain_text("10 photos")
    expect(form(page).name).to_have_value("demo-robin")
    form(page).start.click()
    expect(page.locator("#gallery button.thumbnail-item")).to_have_count(20)
    (spec,) = running.engine.submitted
    assert len(spec.prepare.photos) == 10


def test_after_a_restart_earlier_headshots_are_listed(app, open_page):
    running = app()
    page = open_page(running.address)
    expect(page.locator("#earlier")).to_be_hidden()  # nothing was made yet
    page.get_by_role("button", name="Use the demo photos").click()
    expect(page.locator("#chosen img")).to_have_count(10)
    form(page).start.click()
    expect(page.locator("#gallery button.thumbnail-item")).to_have_count(20)
    page.close()
    running.restart()
    page = open_page(running.address)
    expect(form(page).start).to_be_visible()
    listed = page.locator("#earlier button.thumbnail-item")
    expect(listed).to_have_count(1)
    expect(page.locator("#earlier")).to_contain_text("demo-robin")
    listed.click()
    expect(page.locator("#gallery button.thumbnail-item")).to_have_count(20)
    expect(page.locator("#summary")).to_contain_text("18 of 20 pictures look like demo-robin. Made on")
    expect(form(page).start).to_be_hidden()
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download all (zip)").click()
    assert saved.value.suggested_filename == "demo-robin-headshots.zip"
    page.get_by_role("button", name="Make more headshots").click()
    expect(form(page).start).to_be_visible()
    expect(page.locator("#gallery")).to_be_hidden()
    expect(listed).to_have_count(1)
    listed.click()  # the same one once more
    expect(page.locator("#gallery button.thumbnail-item")).to_have_count(20)


def test_a_message_of_several_lines_keeps_its_lines(app, open_page, photos):
    running = app(fail="No photo could be used.\none.jpg: no face was found.\ntwo.png: it is blurred.")
    page = open_page(running.address)
    fields = form(page)
    fields.name.fill("anna")
    fields.files.set_input_files(photos)
    expect(page.locator("#chosen img")).to_have_count(3)
    fields.start.click()
    problem = page.locator("#progress [role=alert]")
    expect(problem).to_contain_text("it is blurred")
    assert problem.bounding_box()["height"] > 3 * 20


def test_the_keyboard_reaches_everything_in_order(app, open_page):
    page = open_page(app().address)
    form(page).name.focus()
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.closest('#files,#demo,#base,#start')?.id"))
    order = [name for number, name in enumerate(reached) if name and name not in reached[:number]]
    assert order == ["files", "demo", "base", "start"]
    form(page).start.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#name-problem")).to_contain_text("Give the person a name")


def test_a_phone_in_the_dark_shows_all_without_scrolling_sideways(app, open_page, photos):
    running = app(step_s=0.02, steps=10)
    page = open_page(running.address, viewport={"width": 360, "height": 740}, color_scheme="dark")
    fields = form(page)
    fields.name.fill("anna")
    fields.files.set_input_files(photos)
    expect(page.locator("#chosen img")).to_have_count(3)
    assert page.evaluate(CUT_OFF) == []
    running.engine.hold.clear()
    fields.start.click()
    expect(page.locator("#preview img")).to_be_visible()
    assert page.evaluate(CUT_OFF) == []
    running.engine.hold.set()
    expect(page.locator("#gallery button.thumbnail-item")).to_have_count(20)
    assert page.evaluate(CUT_OFF) == []
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    page.evaluate("document.querySelector('#outcome').insertAdjacentHTML('beforeend', '<p style=width:900px>wide</p>')")
    assert page.evaluate(CUT_OFF) != []  # the check itself finds what is too wide
