"""A person's way through Generate and Restore, in a real browser before a fake engine."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from headshot_ui import families
from headshot_ui.dataset.types import FaceDetector
from headshot_ui.errors import ModelError
from headshot_ui.settings import Settings
from headshot_ui.specs import ExportSpec, GenerateSpec, RestoreSpec
from headshot_ui.store import Store, write_bytes_atomic
from headshot_ui.ui import export_view, serve
from tests.browser.conftest import SLOWER, choose, enter, nothing_cut_off, open_tab, reload
from tests.ui.fake_engine import portrait
from tests.ui.studio_stub import BASE, PERSON, StudioEngine, draw_set, studio_settings, trained

#: What would run as a script, did the page not take it as text: gradio evaluates what it has filled in once more.
SCRIPT = "${document.body.remove()} <img src=x onerror=document.body.remove()> C:\\users `$"
LOOKS = GenerateSpec(PERSON, BASE.id, presets=("navy-suit", "white-shirt"), count=2, lora="latest")


def no_detector(settings: Settings) -> FaceDetector:
    """Looking for the real one would import torch."""
    raise ModelError("The face detector is missing.")


@dataclass
class Studio:
    address: str
    engine: StudioEngine
    store: Store


@pytest.fixture
def studio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Studio]]:
    """Start the page with ``studio()`` once the folders hold what the test wants; Anna has a finished training."""
    monkeypatch.setattr(families, "all_bases", lambda settings: (BASE,))
    monkeypatch.setattr(export_view, "_detector", no_detector)
    settings = studio_settings(tmp_path)
    store = Store(settings)
    trained(store)
    opened = []

    def start() -> Studio:
        engine = StudioEngine(settings)
        page, address = serve.launch(engine, settings, "127.0.0.1", None)
        opened.append((page, engine))
        return Studio(address, engine, store)

    yield start
    for page, engine in opened:
        engine.close()
        page.close(verbose=False)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(studio_settings(tmp_path))


def look(page: Page, title: str):
    return page.locator("#looks").get_by_role("button", name=title)


def generate_tab(page: Page) -> None:
    expect(page.get_by_label("Person", exact=True)).to_have_value(PERSON)
    open_tab(page, "Generate")
    expect(page.locator("#looks [data-tile]").first).to_be_visible()


def test_from_looks_to_starred_pictures_in_a_zip(studio, open_page):
    running = studio()
    page = open_page(running.address)
    generate_tab(page)
    page.locator("#looks").get_by_role("button", name="Choose none").click()
    expect(page.locator("#looks")).to_contain_text("0 of 10 chosen")
    look(page, "Navy suit").click()
    look(page, "White shirt").focus()
    page.keyboard.press("Space")  # as good as a click
    expect(look(page, "White shirt")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#plan")).to_contain_text("4 pictures: 2 of each of 2 looks")
    running.engine.drawing.clear()
    page.get_by_role("button", name="Draw headshots").click()
    expect(page.locator("#generate-preview img")).to_be_visible()
    reload(page)
    open_tab(page, "Generate")
    expect(page.locator("#generate-preview img")).to_be_visible()  # and the job goes on
    running.engine.drawing.set()
    shots = page.locator("#grid .hs-shot")
    expect(shots).to_have_count(4)
    expect(page.locator("#generate-preview img")).to_have_count(0)
    expect(shots.first).to_contain_text("1. 96 %")
    expect(page.locator("#facts")).to_contain_text("1 of 4")
    assert [spec for spec in running.engine.submitted if isinstance(spec, GenerateSpec)] == [
        GenerateSpec(PERSON, BASE.id, presets=("navy-suit", "white-shirt"), count=2, lora="latest", refine="off")
    ]
    export = page.get_by_role("button", name="Export starred (")
    expect(export).to_be_disabled()
    page.get_by_role("button", name="Star: White shirt, blue studio, likeness 95 %").click()
    expect(export).to_have_text("Export starred (1)")
    shots.nth(2).click()
    expect(page.locator("#facts")).to_contain_text("3 of 4")
    expect(page.locator("#large img")).to_have_js_property("naturalWidth", 256)
    page.get_by_role("button", name="☆ Star").click()
    expect(export).to_have_text("Export starred (2)")
    expect(page.locator("#headshots-cuts img")).to_have_count(4)
    page.locator("#headshots-layouts").get_by_label("Badge").uncheck()
    expect(page.locator("#headshots-cuts img")).to_have_count(3)
    export.click()
    with page.expect_download() as saved:
        page.locator("#headshots-zip").click()
    assert saved.value.suggested_filename == "anna-headshots.zip"
    assert len(zipfile.ZipFile(saved.value.path()).namelist()) == 2 * 3
    assert running.engine.submitted[-1] == ExportSpec(PERSON, (), ("linkedin", "cv", "full"))


def test_starred_pictures_settings_and_new_seeds(studio, store, open_page):
    draw_set(store, LOOKS)
    running = studio()
    page = open_page(running.address)
    generate_tab(page)
    shots = page.locator("#grid .hs-shot")
    expect(shots).to_have_count(4)
    page.locator("#grid .hs-star").nth(3).click()
    page.locator("#which").get_by_label("Starred (1)").check()
    expect(shots).to_have_count(1)
    expect(page.locator("#facts")).to_contain_text("4 of 4")
    page.get_by_role("button", name="Use as settings").click()
    expect(page.locator("#seed").get_by_role("textbox")).to_have_value("3")
    expect(page.locator("#looks")).to_contain_text("1 of 10 chosen")
    page.get_by_role("button", name="Draw this again with other seeds").dblclick()
    expect(shots).to_have_count(4)
    expect(page.locator("#facts")).to_contain_text("White shirt")
    again = [spec for spec in running.engine.submitted if isinstance(spec, GenerateSpec)]
    assert again and {spec.seed for spec in again[:1]} == {4} and again[0].presets == ("white-shirt",)
    page.wait_for_timeout(1000 * SLOWER)  # the second press may draw a set of its own, which is shown when it ends
    expect(page.locator("#bar .hs-running")).to_have_count(0)
    choose(page.locator("#sets input"), page.get_by_role("option").last)  # back to the earlier set
    expect(page.locator("#facts")).to_contain_text("Navy suit")


def test_a_deleted_picture_can_be_brought_back(studio, store, open_page):
    made = draw_set(store, LOOKS)
    page = open_page(studio().address)
    generate_tab(page)
    shots = page.locator("#grid .hs-shot")
    expect(shots).to_have_count(4)
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(shots).to_have_count(3)
    assert not made.pictures[0].path.exists()
    page.get_by_role("button", name="is deleted. Undo").click()
    expect(shots).to_have_count(4)
    assert made.pictures[0].path.exists()
    expect(page.locator("#undo-delete")).to_be_hidden()


def test_wrong_values_are_told_beside_their_field(studio, open_page):
    running = studio()
    page = open_page(running.address)
    generate_tab(page)
    expect(page.locator("#plan")).to_contain_text("pictures")
    page.locator("#looks").get_by_role("button", name="Choose none").click()
    expect(page.locator("#plan")).not_to_contain_text("pictures")  # a change that comes late would clear what is said
    page.get_by_role("button", name="Draw headshots").click()
    expect(page.locator("#presets-problem-g")).to_contain_text("Choose at least one look")
    enter(page.get_by_label("Your own words"), "portrait of {somebody}")
    page.get_by_role("button", name="Draw headshots").click()
    expect(page.locator("#prompt-problem-g")).to_contain_text("only {subject} is filled in")
    expect(page.locator("#presets-problem-g [role=alert]")).to_have_count(0)
    page.get_by_label("Your own words").fill("portrait of {subject}")
    page.keyboard.press("Tab")
    expect(page.locator("#prompt-problem-g [role=alert]")).to_have_count(0)
    page.get_by_role("button", name="Expert settings").click()
    enter(page.get_by_label("Width in pixels"), "100")
    page.get_by_role("button", name="Expert settings").click()  # closed again
    page.get_by_role("button", name="Draw headshots").click()
    expect(page.locator("#width-problem-g")).to_contain_text("a multiple of 64")
    expect(page.locator("#width-problem-g")).to_be_visible()
    assert running.engine.submitted == []


class SmallVocabulary:
    """Knows a few words; counts nothing else."""

    def __init__(self, info) -> None:
        self.info = info

    def unknown_words(self, text: str) -> tuple[str, ...]:
        return tuple(word for word in text.replace(",", " ").split() if word not in ("portrait", "of", "a", "hat"))


def test_unknown_words_are_named_while_typing_and_a_file_that_does_not_fit_beside_its_field(
    studio, open_page, monkeypatch, tmp_path
):
    monkeypatch.setattr(families, "vocabulary", SmallVocabulary)
    running = studio()
    page = open_page(running.address)
    generate_tab(page)
    page.get_by_label("Your own words").click()
    said = page.locator("#prompt-problem-g")
    page.keyboard.type("portrait of {subject}, a zebra ha")
    expect(said).to_contain_text("does not know this word: “zebra”;")  # and not the one being typed
    page.keyboard.press("Tab")
    expect(said).to_contain_text("“zebra”, “ha”")
    page.get_by_label("Your own words").click()
    page.keyboard.press("Control+a")
    page.keyboard.type("portrait of {subject}, a hat")
    expect(said.get_by_role("alert")).to_have_count(0)
    choose(page.locator("#lora input"), page.get_by_role("option", name="Add a LoRA file of mine"))
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"no tensors")
    page.locator("#lora-file input[type=file]").set_input_files([wrong])
    expect(page.locator("#lora-problem-g")).to_contain_text("The LoRA “wrong.safetensors” is damaged")
    page.get_by_role("button", name="Draw headshots").click()
    expect(page.locator("#lora-problem-g")).to_contain_text("Add your LoRA file first")
    assert running.engine.submitted == []


def test_a_set_as_a_whole(studio, store, open_page):
    made = draw_set(store, LOOKS)
    page = open_page(studio().address)
    generate_tab(page)
    page.get_by_role("button", name="enlarge").click()
    expect(page.get_by_role("dialog", name="Contact sheet of the headshots of anna")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    with page.expect_download() as saved:
        page.get_by_role("button", name="Download all 4 pictures (zip)").click()
    assert saved.value.suggested_filename == f"anna-{made.folder.name}.zip"
    assert len(zipfile.ZipFile(saved.value.path()).namelist()) == 4
    with page.expect_download() as saved:
        page.locator("#sheet-file").click()
    assert saved.value.suggested_filename == "anna-contact-sheet.png"


def test_without_a_training_the_way_there_is_shown(studio, store, open_page):
    (store.people_dir / "bob" / "photos").mkdir(parents=True)
    for run in store.runs_dir(PERSON).iterdir():
        (run / "lora.safetensors").unlink()
    running = studio()
    page = open_page(running.address)
    generate_tab(page)
    expect(page.locator("#untrained")).to_contain_text("no finished training yet")
    page.get_by_role("button", name="Draw headshots").click()
    expect(page.locator("#lora-problem-g")).to_contain_text("train first, or choose to draw without")
    choose(page.locator("#lora input"), page.get_by_role("option", name="No training"))
    page.get_by_role("button", name="Draw headshots").click()
    expect(page.locator("#grid .hs-shot")).to_have_count(8)
    assert running.engine.submitted[0].lora is None
    page.get_by_role("button", name="Go to Train").click()
    expect(page.get_by_role("tab", name="Train")).to_have_attribute("aria-selected", "true")


def test_many_pictures_come_in_pages(studio, store, open_page):
    draw_set(store, GenerateSpec(PERSON, BASE.id, presets=("navy-suit",), count=60))
    page = open_page(studio().address)
    generate_tab(page)
    expect(page.locator("#grid .hs-shot")).to_have_count(48)
    expect(page.get_by_role("button", name="‹ Previous")).to_be_disabled()
    page.get_by_role("button", name="Next ›").click()
    expect(page.locator("#grid .hs-shot")).to_have_count(12)
    expect(page.locator("#facts")).to_contain_text("49 of 60")
    expect(page.locator("#grid")).to_contain_text("Page 2 of 2")
    expect(page.get_by_role("button", name="Next ›")).to_be_disabled()
    assert page.evaluate("[...document.querySelectorAll('#grid img')].every(i => i.src.includes('.webp'))")


def test_restore_this_and_compare_by_keyboard(studio, store, open_page):
    draw_set(store, LOOKS)
    running = studio()
    page = open_page(running.address)
    generate_tab(page)
    page.locator("#grid .hs-shot").nth(1).click()
    expect(page.locator("#facts")).to_contain_text("2 of 4")
    page.get_by_role("button", name="Restore this").click()
    expect(page.get_by_role("tab", name="Restore")).to_have_attribute("aria-selected", "true")
    chosen = page.locator("#picks [data-tile][aria-pressed=true]")
    expect(chosen).to_have_count(1)
    expect(chosen).to_contain_text("White shirt")
    page.get_by_role("button", name="Restore", exact=True).click()
    slider = page.get_by_role("slider", name="Compare before and after")
    expect(slider).to_be_visible()
    expect(page.get_by_alt_text("After: 002-white-shirt-1.png")).to_be_visible()
    expect(page.locator("#restored-facts")).to_contain_text("81 % before, 84 % after")
    slider.focus()
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    expect(page.locator(".hs-ba")).to_have_attribute("style", "--p: 60%;")
    page.keyboard.press("Home")
    expect(slider).to_have_attribute("aria-valuetext", "0 % before, 100 % after")
    enter(page.locator("#again-weight input[type=number]"), "0.1")
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Restore again with this weight").click()
    expect(page.locator("#variants li")).to_have_count(3)
    expect(page.locator("#restored-facts").get_by_role("note")).to_contain_text("less like the person than before")
    page.locator("#variants").get_by_role("button", name="With weight 0.5").click()
    expect(page.locator("#restored-facts").get_by_role("note")).to_have_count(0)
    page.get_by_role("button", name="Star: 002-white-shirt-1.png, weight 0.5").click()
    expect(page.locator("#restored-starred")).to_have_text("Export starred (1)")
    with page.expect_download() as saved:
        page.locator("#restored-download").click()
    assert saved.value.suggested_filename == "002-white-shirt-1.png"
    specs = [spec for spec in running.engine.submitted if isinstance(spec, RestoreSpec)]
    assert [(len(spec.pictures), spec.fidelity_weight) for spec in specs] == [(1, 0.5), (1, 0.1)]
    reload(page)
    open_tab(page, "Restore")
    expect(page.locator("#restored-grid .hs-shot")).to_have_count(2)


def test_words_that_look_like_a_script_are_shown_as_words(studio, store, open_page):
    draw_set(store, LOOKS, prompt=SCRIPT)
    page = open_page(studio().address)
    generate_tab(page)
    expect(page.locator("#facts")).to_contain_text(SCRIPT)
    expect(page.locator("#grid .hs-shot")).to_have_count(4)


def test_faces_of_an_uploaded_picture_can_be_left_out(studio, open_page, tmp_path):
    running = studio()
    page = open_page(running.address)
    expect(page.get_by_label("Person", exact=True)).to_have_value(PERSON)
    open_tab(page, "Restore")
    page.get_by_role("button", name="Restore", exact=True).click()
    expect(page.locator("#pictures-problem-r")).to_contain_text("No picture was given")
    picture = tmp_path / "group photo.png"
    portrait(5, "").save(picture)
    page.locator("#restore-files input[type=file]").set_input_files([picture])
    expect(page.locator("#restore-uploaded img")).to_have_count(1)
    expect(page.locator("#pictures-problem-r [role=alert]")).to_have_count(0)
    page.locator("#upscale").get_by_label("×2").check()
    expect(page.locator("#upscale-note")).to_contain_text("Enlarged plainly")
    page.get_by_role("button", name="Restore", exact=True).click()
    expect(page.locator("#restored-facts")).to_contain_text("3 of 3 repaired")
    page.locator("#again-faces").get_by_role("button", name="Face 2").click()
    expect(page.locator("#again-faces")).to_contain_text("2 of 3 chosen")
    page.get_by_role("button", name="Restore again with this weight").click()
    expect(page.locator("#restored-facts")).to_contain_text("2 of 3 repaired")
    assert running.engine.submitted[-1].faces == (1, 3) and running.engine.submitted[-1].upscale == 2


def test_a_licence_is_accepted_once_and_what_is_missing_is_said(studio, store, open_page):
    write_bytes_atomic(store.settings.models_dir / "codeformer" / "codeformer.pth", b"fake")
    page = open_page(studio().address)
    expect(page.get_by_label("Person", exact=True)).to_have_value(PERSON)
    open_tab(page, "Restore")
    expect(page.get_by_label("Blend in along the outline")).to_be_disabled()
    expect(page.locator("#outline")).to_contain_text("not installed")
    choose(page.locator("#restorer input"), page.get_by_role("option", name="CodeFormer"))
    expect(page.locator("#licence")).to_contain_text("non-commercial purposes only")
    button = page.get_by_role("button", name="Restore", exact=True)
    expect(button).to_be_disabled()
    page.get_by_label("I have read this and accept it").click()
    expect(button).to_be_enabled()
    expect(page.locator("#licence p")).to_have_count(0)
    expect(page.locator("#accept")).to_be_hidden()


@pytest.mark.parametrize("colours", ["light", "dark"])
def test_a_phone_shows_both_tabs_without_scrolling_sideways(studio, store, open_page, colours):
    draw_set(store, LOOKS)
    running = studio()
    result = running.engine.submit(
        RestoreSpec(PERSON, (str(next(store.headshots_dir(PERSON).glob("*/*.png"))),), "demo")
    )
    assert result.wait(20).state == "done"
    page = open_page(running.address, viewport={"width": 390, "height": 844}, color_scheme=colours)
    generate_tab(page)
    expect(page.locator("#grid .hs-shot")).to_have_count(4)
    page.get_by_role("button", name="Expert settings").click()
    expect(page.get_by_label("Width in pixels")).to_be_visible()
    expect(page.locator("#headshots-cuts img")).to_have_count(4)
    nothing_cut_off(page)
    open_tab(page, "Restore")
    expect(page.get_by_role("slider", name="Compare before and after")).to_be_visible()
    expect(page.locator("#picks [data-tile]").first).to_be_visible()
    nothing_cut_off(page)


def test_another_person_sees_only_their_own_pictures(studio, store, open_page):
    draw_set(store, LOOKS)
    draw_set(store, GenerateSpec("bob", BASE.id, presets=("green-sweater-books",), count=1))
    page = open_page(studio().address)
    generate_tab(page)
    expect(page.locator("#grid .hs-shot")).to_have_count(4)
    choose(page.get_by_label("Person", exact=True), page.get_by_role("option", name="bob"))
    expect(page.locator("#grid .hs-shot")).to_have_count(1)
    expect(page.locator("#facts")).to_contain_text("Green sweater")
    expect(page.locator("#untrained")).to_contain_text("“bob” has no finished training yet")
    open_tab(page, "Restore")
    expect(page.locator("#picks [data-tile]")).to_have_count(1)
