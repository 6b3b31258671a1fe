"""A person's way through the shell, Dataset and Train, in a real browser before a fake engine."""

from __future__ import annotations

import re
import time

import pytest
from playwright.sync_api import TimeoutError as TookTooLong
from playwright.sync_api import expect
from safetensors import safe_open

from headshot_ui import families
from headshot_ui.runs import list_runs
from headshot_ui.specs import HeadshotsSpec, PrepareSpec, TrainSpec
from tests.browser.conftest import (
    CUT_OFF,
    add_person,
    choose,
    drop,
    enter,
    nothing_cut_off,
    open_tab,
    prepare,
    reload,
    start_training,
)
from tests.ui.fake_engine import GROUP
from tests.ui.tiny_lora import tiny_base, trained_tiny

TABS = ["Dataset", "Train", "Generate", "Restore"]


def test_the_first_time_from_a_name_to_a_trained_model(app, open_page, photos):
    running = app(step_s=0.01, steps=30)
    page = open_page(running.address)
    expect(page.get_by_role("heading", level=1)).to_have_count(1)
    expect(page.get_by_role("tab")).to_have_text(TABS)
    expect(page.get_by_text("Who is it for?")).to_be_visible()
    add_person(page, "Anna Müller")
    expect(page.get_by_label("Person", exact=True)).to_have_value("anna-muller")
    expect(page.get_by_text("Who is it for?")).to_be_hidden()
    drop(page, photos)
    expect(page.locator("#chosen img")).to_have_count(3)
    page.get_by_role("button", name="Check my photos").click()
    expect(page.locator("#photos li")).to_have_count(4)
    expect(page.locator("#photo-count")).to_contain_text("2 photos to learn from, 1 kept to measure likeness, 1 left")
    expect(page.locator("#photo-count").get_by_role("note")).to_contain_text("about twelve work well")
    expect(page.locator("#photos .hs-rejected")).to_contain_text("Several faces were found")
    expect(page.locator("#photos .hs-name").last).to_have_text(GROUP)  # as text: the page is still there
    expect(page.locator("#chosen img")).to_have_count(0)  # they are among the checked ones now
    page.get_by_role("button", name="Next: train").click()
    expect(page.locator("#plan")).to_contain_text("on 2 photos, a LoRA of rank")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#bar")).to_contain_text("Learned in 30 steps.")
    expect(page.locator("#training-status")).to_contain_text("Learned")
    expect(page.locator("#samples img")).to_have_count(6)
    expect(page.locator("#curve polyline")).to_be_visible()
    row = page.locator("#history tbody tr")
    expect(row).to_have_count(1)
    expect(row).to_contain_text("Finished")
    row.get_by_role("button", name="Use the training").click()
    expect(page.get_by_role("tab", name="Generate")).to_have_attribute("aria-selected", "true")
    page.locator("#bar").get_by_role("button", name="Show").click()
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")
    page.locator("#bar").get_by_role("button", name="Dismiss").click()
    expect(page.locator("#bar section")).to_have_count(0)
    prepared, trained = running.engine.submitted
    assert isinstance(prepared, PrepareSpec) and len(prepared.photos) == 3 and isinstance(trained, TrainSpec)


def test_one_button_does_everything(app, open_page):
    running = app(step_s=0.02)
    page = open_page(running.address)
    expect(page.locator("#base-note")).to_contain_text("cartoons, not photographs")
    page.get_by_role("button", name="Use the demo photos").click()
    expect(page.locator("#chosen")).to_contain_text("10 photos")
    expect(page.get_by_label("Person", exact=True)).to_have_value("demo-robin")
    page.get_by_role("button", name="Make my headshots").dblclick()
    expect(page.locator("#bar")).to_contain_text(
        "18 of 20 pictures look like demo-robin; before training it was 9 of 10"
    )
    (spec,) = running.engine.submitted
    assert isinstance(spec, HeadshotsSpec) and len(spec.prepare.photos) == 10
    expect(page.locator("#photos li")).to_have_count(11)
    page.locator("#bar").get_by_role("button", name="Show").click()
    expect(page.get_by_role("tab", name="Generate")).to_have_attribute("aria-selected", "true")
    open_tab(page, "Train")
    expect(page.locator("#history tbody tr")).to_contain_text("%")  # likeness of the pictures drawn with it


def test_a_reloaded_page_finds_the_running_training_again(app, open_page, photos):
    running = app(step_s=0.01, steps=40)
    page = open_page(running.address)
    prepare(page, "anna", photos)
    running.engine.hold.clear()
    start_training(page)
    expect(page.locator("#curve polyline")).to_be_visible()
    reload(page)
    expect(page.locator("#bar").get_by_role("progressbar")).to_be_visible()
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")
    expect(page.get_by_label("Person", exact=True)).to_have_value("anna")
    expect(page.locator("#curve polyline")).to_be_visible()
    expect(page.locator("#samples img").first).to_be_visible()
    other = open_page(running.address)  # a fresh browser shows whom the newest job is about
    expect(other.get_by_label("Person", exact=True)).to_have_value("anna")
    expect(other.locator("#bar")).to_contain_text("Learning anna")
    assert len(running.engine.submitted) == 2
    running.engine.hold.set()
    for window in (page, other):
        expect(window.locator("#bar")).to_contain_text("Learned in 40 steps.")
    other.locator("#bar").get_by_role("button", name="Dismiss").click()
    expect(page.locator("#bar section")).to_have_count(0)  # in both, by itself


def test_cancel_keeps_what_was_learned_and_resume_goes_on(app, open_page, photos):
    running = app(step_s=0.01, steps=40)
    page = open_page(running.address)
    prepare(page, "anna", photos)
    running.engine.hold.clear()
    start_training(page)
    page.locator("#bar").get_by_role("button", name="Cancel").click()
    expect(page.locator("#training-status")).to_contain_text("This training was cancelled")
    expect(page.locator("#bar")).to_contain_text("what was finished is kept")
    running.engine.hold.set()
    page.get_by_role("button", name="Go on from there").click()
    expect(page.locator("#bar")).to_contain_text("Learned in 40 steps.")
    row = page.locator("#history tbody tr")
    expect(row).to_have_count(1)  # the same training, not another
    first, second = running.engine.submitted[1:]
    assert first.run is None and second.run is not None


def test_a_second_training_waits_and_says_behind_whom(app, open_page, photos):
    running = app(step_s=0.005, steps=10)
    page = open_page(running.address)
    prepare(page, "anna", photos)
    running.engine.hold.clear()
    start_training(page)
    other = open_page(running.address)
    open_tab(other, "Train")
    start = other.get_by_role("button", name="Start training")
    page.wait_for_timeout(3100)
    start.dblclick()  # the very same training: it runs already
    expect(other.locator("#start-note")).to_contain_text("was started before and is not finished")
    other.get_by_label("Quick").check()
    expect(other.locator("#plan")).to_contain_text("500 steps")
    start.dblclick()
    for window in (page, other):
        expect(window.locator("#bar")).to_contain_text("Waiting, next in line; behind: Learning anna")
    assert len(running.engine.submitted) == 3
    other.locator("#bar .hs-waiting").get_by_role("button", name="Cancel").click()
    expect(page.locator("#bar .hs-waiting")).to_have_count(0)
    expect(page.locator("#bar").get_by_role("progressbar")).to_be_visible()
    assert [job.snapshot.state for job in running.engine.jobs()] == ["done", "running", "cancelled"]


def test_a_restarted_program_heals_the_open_page_and_offers_to_go_on(app, open_page, photos):
    running = app(step_s=0.01, steps=30)
    page = open_page(running.address, expect_errors=True)  # the browser reports that the server was away
    prepare(page, "anna", photos)
    running.engine.hold.clear()
    start_training(page)
    running.restart()
    page.locator("#resume").click(timeout=60_000)
    expect(page.locator("#bar")).to_contain_text("Learned in 30 steps.")
    expect(page.get_by_label("Person", exact=True)).to_have_value("anna")


def test_while_the_program_is_away_nothing_can_be_pressed_and_no_press_is_lost(app, open_page, photos):
    running = app(step_s=0.01, steps=30)
    page = open_page(running.address, expect_errors=True)
    prepare(page, "anna", photos)
    running.engine.hold.clear()
    start_training(page)
    running.engine.close()
    resume = page.locator("#resume")
    expect(resume).to_be_visible()  # the page has heard of the end of the training, and then of nothing more
    running.stop()
    expect(page.get_by_role("alert")).to_contain_text("The program does not answer.")
    with pytest.raises(TookTooLong):
        resume.click(timeout=1000)
    resume.focus()
    expect(resume).not_to_be_focused()
    running.restart()
    resume.click()  # at once: it waits for the page that takes it
    expect(page.locator("#bar")).to_contain_text("Learned in 30 steps.")
    expect(page.get_by_role("alert")).to_have_count(0)


def test_what_is_missing_is_said_beside_its_field(app, open_page):
    running = app()
    page = open_page(running.address)
    page.get_by_role("button", name="Check my photos").click()
    expect(page.locator("#name-problem")).to_contain_text("Give the person a name")
    enter(page.get_by_label("Name of the person"), "anna")
    expect(page.locator("#name-problem [role=alert]")).to_have_count(0)
    page.get_by_role("button", name="Check my photos").click()  # the typed name counts without Add
    expect(page.locator("#photos-problem")).to_contain_text("No photos were given")
    expect(page.get_by_label("Person", exact=True)).to_have_value("anna")
    open_tab(page, "Train")
    expect(page.get_by_text("No checked photos yet")).to_be_visible()
    expect(page.get_by_role("button", name="Start training")).to_be_hidden()
    page.get_by_role("button", name="Go to Dataset").click()
    expect(page.get_by_role("button", name="Check my photos")).to_be_visible()
    assert running.engine.submitted == []


def test_a_wrong_expert_setting_is_told_under_its_field(app, open_page, photos):
    running = app()
    page = open_page(running.address)
    prepare(page, "anna", photos)
    open_tab(page, "Train")
    page.get_by_role("button", name="Expert settings").click()
    enter(page.get_by_label("LoRA rank"), "500")
    page.get_by_role("button", name="Start training").click()
    expect(page.locator("#train-rank-problem")).to_contain_text("must be from 1 to 256")
    page.get_by_label("LoRA rank").fill("8")
    page.get_by_label("LoRA rank").press("Enter")
    expect(page.locator("#train-rank-problem [role=alert]")).to_have_count(0)
    expect(page.locator("#plan")).to_contain_text("a LoRA of rank 8")
    assert len(running.engine.submitted) == 1


def test_captions_and_choice_of_photos_can_be_changed_and_undone(app, open_page, photos):
    page = open_page(app().address)
    prepare(page, "anna", photos)
    first = page.locator("#photos button").first
    first.click()
    expect(first).to_have_attribute("aria-pressed", "true")
    caption = page.get_by_label("Caption")
    expect(caption).to_have_value("tok person")
    enter(caption, "tok person, <b>smiling</b> ${1+1}")
    page.get_by_role("button", name="Save caption").click()
    expect(page.locator("#editor-done")).to_contain_text("Caption saved.")
    page.get_by_role("button", name="Leave this photo out").click()
    expect(page.locator("#photo-count")).to_contain_text("1 photo to learn from, 1 kept to measure likeness, 2 left")
    expect(page.get_by_role("button", name="Use this photo")).to_be_visible()
    expect(page.locator("#photos [aria-pressed=true]")).to_have_count(1)
    page.get_by_role("button", name="Undo").click()
    expect(page.locator("#photo-count")).to_contain_text("2 photos to learn from")
    expect(caption).to_have_value("tok person, <b>smiling</b> ${1+1}")
    caption.fill(" ")
    page.get_by_role("button", name="Save caption").click()
    expect(page.locator("#editor-problem")).to_contain_text("is empty")
    page.locator("#photos button").last.click()
    expect(page.locator("#editing")).to_contain_text("It cannot be taken in.")
    expect(page.get_by_role("button", name="Use this photo")).to_be_hidden()


def test_photos_kept_from_before_are_used_again(app, open_page, photos):
    running = app()
    page = open_page(running.address)
    prepare(page, "anna", photos[:2])
    expect(page.get_by_label("Also use the 2 photos kept from before")).to_be_checked()
    drop(page, photos[2:])
    page.get_by_role("button", name="Check my photos").click()
    expect(page.locator("#photos li")).to_have_count(4)
    assert [path.rsplit("/")[-1] for path in running.engine.submitted[1].photos] == [photos[2].name, "photos"]


def test_a_failed_job_says_why_on_every_tab(app, open_page, photos):
    running = app(fail="No photo could be used.\none.jpg: no face was found.\ntwo.png: it is blurred.")
    page = open_page(running.address)
    add_person(page, "anna")
    drop(page, photos)
    page.get_by_role("button", name="Check my photos").click()
    line = page.locator("#bar .hs-failed .hs-job-stage")
    expect(line).to_contain_text("it is blurred")
    assert line.bounding_box()["height"] > 3 * 18  # its lines are kept
    expect(page.locator("#chosen img")).to_have_count(3)  # to be given again with others
    open_tab(page, "Restore")
    expect(line).to_be_visible()


def test_people_are_chosen_kept_over_a_reload_and_deleted(app, open_page, photos):
    running = app(step_s=0.005, steps=10)
    page = open_page(running.address)
    prepare(page, "anna", photos)
    page.get_by_role("button", name="New person").click()
    add_person(page, "!!!")
    expect(page.locator("#name-problem")).to_contain_text("at least one letter")
    kept = "localStorage.getItem('headshot_ui-person')"
    before = page.evaluate(kept)
    add_person(page, "Ben")
    person = page.get_by_label("Person", exact=True)
    expect(person).to_have_value("ben")
    expect(page.locator("#photos")).to_be_hidden()
    page.wait_for_function(f"(before) => {kept} !== before", arg=before)
    reload(page)
    expect(person).to_have_value("ben")
    choose(person, page.get_by_role("option", name="anna"))
    expect(page.locator("#photos li")).to_have_count(4)
    running.engine.hold.clear()
    start_training(page)
    page.get_by_role("button", name="Delete …").click()
    expect(page.locator("#delete-problem")).to_contain_text("cancel it first")
    expect(page.get_by_role("button", name="Delete for good")).to_be_disabled()
    page.get_by_role("button", name="Keep everything").click()
    expect(page.locator("#deleting")).to_be_hidden()
    page.locator("#bar").get_by_role("button", name="Cancel").click()
    expect(page.locator("#training-status")).to_contain_text("cancelled")
    page.get_by_role("button", name="Delete …").click()
    expect(page.locator("#listing")).to_contain_text("3 prepared photos")
    page.get_by_role("button", name="Delete for good").click()
    expect(person).to_have_value("ben")
    assert running.engine.store.people() == ()


def test_a_person_deleted_in_another_window_leaves_this_one_whole(app, open_page, photos):
    running = app()
    page = open_page(running.address)
    prepare(page, "ben", photos)
    page.get_by_role("button", name="New person").click()
    add_person(page, "anna")
    expect(page.get_by_label("Person", exact=True)).to_have_value("anna")
    other = open_page(running.address)
    expect(other.get_by_label("Person", exact=True)).to_have_value("ben")
    other.get_by_role("button", name="Delete …").click()
    other.get_by_role("button", name="Delete for good").click()
    for window in (page, other):
        expect(window.get_by_label("Person", exact=True)).to_have_value("anna")
    page.get_by_role("button", name="Delete …").click()
    page.get_by_role("button", name="Delete for good").click()
    for window in (page, other):
        expect(window.get_by_text("Who is it for?")).to_be_visible()
    expect(other.locator("#who")).to_be_hidden()
    expect(other.locator(".toast-body")).to_have_count(0)
    assert running.engine.store.people() == ()


def test_a_training_is_deleted_after_asking(app, open_page, photos):
    running = app(steps=5)
    page = open_page(running.address)
    prepare(page, "anna", photos)
    open_tab(page, "Train")
    page.get_by_role("button", name="Start training").click()
    delete = page.locator("#history").get_by_role("button", name="Delete")
    delete.click()
    page.get_by_role("button", name="Keep it").click()
    expect(page.locator("#delete-run")).to_be_hidden()  # else the answer to this could take the next question away
    delete.click()
    page.get_by_role("button", name="Delete for good").click()
    expect(page.locator("#trainings")).to_be_hidden()
    assert list_runs(running.engine.store, "anna") == ()


def test_a_lora_is_taken_along_while_another_is_learned(app, open_page, photos, monkeypatch):
    running = app(step_s=0.01, steps=20)
    store = running.engine.store
    tiny = tiny_base(store.settings)
    trained_tiny(store, tiny)
    monkeypatch.setattr(families, "all_bases", lambda settings: (tiny,))
    running.restart()
    page = open_page(running.address, viewport={"width": 390, "height": 780}, color_scheme="dark")
    expect(page.get_by_label("Person", exact=True)).to_have_value("anna")
    drop(page, photos)
    page.get_by_role("button", name="Check my photos").click()
    expect(page.locator("#photos li")).to_have_count(4)
    running.engine.hold.clear()
    start_training(page)
    take = page.get_by_role("button", name="Take along the LoRA of the training of")
    expect(take).to_have_count(1)  # not of the one that is being learned
    take.press("Enter")
    expect(page.get_by_label("ComfyUI, A1111, Forge")).to_be_focused()
    expect(page.locator("#take-lora-help")).to_contain_text("ComfyUI/models/loras")
    expect(page.locator("#take-lora-help")).to_contain_text("tok woman")
    nothing_cut_off(page)
    for layout, ends in (("kohya", {"alpha", "weight"}), ("diffusers", {"weight"})):
        with page.expect_download(timeout=60_000) as saved:
            page.get_by_role("button", name="Download the LoRA").click()
        assert saved.value.suggested_filename.endswith(f"_40-steps_{layout}.safetensors")
        expect(page.locator("#take-lora-told")).to_contain_text(f"{saved.value.suggested_filename} (")
        with safe_open(saved.value.path(), "np") as file:
            names, header = list(file.keys()), file.metadata()
        assert {name.rpartition(".")[2] for name in names} == ends and len(names) > 10
        assert all(name.startswith("lora_unet_" if layout == "kohya" else "unet.") for name in names)
        assert (header["trigger"], header["base"], header["steps"]) == ("tok", "tiny-sdxl", "40")
        page.get_by_label("diffusers").check()
        expect(page.locator("#take-lora-help")).to_contain_text("load_lora_weights")
    assert running.engine.jobs()[-1].snapshot.state == "running"
    page.locator("#take-lora-close").press("Enter")
    expect(take).to_be_focused()
    expect(page.locator("#take-lora")).to_be_hidden()


def test_tabs_move_with_arrow_keys_and_everything_is_reached_in_order(app, open_page):
    page = open_page(app().address)
    page.get_by_role("tab", name="Dataset").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Train")).to_be_focused()
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("End")
    expect(page.get_by_role("tab", name="Restore")).to_have_attribute("aria-selected", "true")
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Dataset")).to_have_attribute("aria-selected", "true")
    page.get_by_label("Name of the person").focus()
    reached = []
    for _ in range(14):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.closest('#files,#demo,#base,#check,#whole')?.id"))
    order = [name for number, name in enumerate(reached) if name and name not in reached[:number]]
    assert order == ["files", "demo", "base", "check", "whole"]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone_shows_all_four_tabs_and_nothing_is_cut_off(app, open_page, photos, dark):
    running = app(step_s=0.01, steps=60)
    page = open_page(running.address, viewport={"width": 390, "height": 780}, color_scheme="dark" if dark else "light")
    for name in TABS:
        expect(page.get_by_role("tab", name=name)).to_be_in_viewport()
    nothing_cut_off(page)
    prepare(page, "anna", photos)
    page.locator("#photos button").first.click()
    expect(page.get_by_label("Caption")).to_be_in_viewport()  # it opens where it is seen
    nothing_cut_off(page)
    running.engine.hold.clear()
    start_training(page)
    page.get_by_role("button", name="Expert settings").click()
    expect(page.locator("#samples img").first).to_be_visible()
    nothing_cut_off(page)
    running.engine.hold.set()
    expect(page.locator("#history")).to_contain_text("Finished")
    nothing_cut_off(page)
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert colour == ("rgb(20, 23, 26)" if dark else "rgb(246, 243, 238)")
    page.evaluate(
        "document.querySelector('#training').insertAdjacentHTML('beforeend', '<p style=width:900px>wide</p>')"
    )
    assert page.evaluate(CUT_OFF) != []  # the check itself finds what is too wide


@pytest.mark.usefixtures("usual_pace")
def test_the_page_asks_once_per_tick_and_sends_little_when_nothing_is_new(app, open_page, photos):
    running = app(step_s=0.005, steps=10)
    page = open_page(running.address)
    prepare(page, "anna", photos)
    running.engine.hold.clear()
    start_training(page)
    asked, began = [], time.monotonic()
    page.on("response", lambda answer: asked.append(answer) if re.search("/run/|/predict", answer.url) else None)
    with page.expect_response(lambda answer: "/run/" in answer.url) as first:
        pass
    with page.expect_response(lambda answer: "/run/" in answer.url and answer is not first.value):
        pass
    page.wait_for_timeout(3000)
    with page.expect_response(lambda answer: "/run/" in answer.url):
        pass
    assert 3 <= len(asked) <= time.monotonic() - began + 2  # one per second
    assert max(len(answer.body()) for answer in asked[2:]) < 40_000


def test_a_card_in_trouble_is_told_on_the_bar_whatever_else_is_there(app, open_page, monkeypatch):
    running = app()
    too_old = "The driver is too old: renew it <b>now</b>."
    monkeypatch.setattr("headshot_ui.ui.live.unused_card", lambda settings: too_old)
    page = open_page(running.address)
    told = page.locator("#bar").get_by_role("status")
    expect(told).to_have_text(too_old)
    running.engine.card_lost = "The graphics card stopped working in an earlier job: start again."
    expect(told).to_have_text(running.engine.card_lost)
