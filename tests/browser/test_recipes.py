"""The choice of a recipe on the Train tab: what it fills in, and what is asked of the engine."""

from __future__ import annotations

import dataclasses

from playwright.sync_api import expect

from headshot_ui import families
from headshot_ui.specs import TrainSpec
from tests.browser.conftest import BASE, choose, enter, open_tab, prepare


def test_a_recipe_fills_the_expert_settings_visibly(app, open_page, photos, monkeypatch):
    running = app()
    real = dataclasses.replace(BASE, title="SDXL", size_px=1024, demo=False)
    monkeypatch.setattr(families, "all_bases", lambda settings: (real,))
    running.restart()
    page = open_page(running.address)
    prepare(page, "anna", photos)
    open_tab(page, "Train")
    choose(page.get_by_label("Recipe", exact=True), page.get_by_role("option", name="Original"))
    expect(page.locator("#recipe-note")).to_contain_text("100 sampling steps")
    expect(page.locator("#plan")).to_contain_text("1000 steps of 4 batches")
    page.get_by_role("button", name="Expert settings").click()
    expect(page.get_by_label("LoRA rank")).to_have_value("4")
    expect(page.get_by_label("Optimizer")).to_have_value("AdamW in 8 bit")
    enter(page.get_by_label("LoRA rank"), "8")
    page.get_by_label("LoRA rank").press("Enter")
    expect(page.locator("#plan")).to_contain_text("a LoRA of rank 8")
    page.get_by_role("button", name="Start training").click()
    expect(page.get_by_role("table")).to_contain_text("Finished")
    (spec,) = (spec for spec in running.engine.submitted if isinstance(spec, TrainSpec))
    assert (spec.recipe, spec.rank, spec.size_px, spec.optimizer) == ("original", 8, 512, "adamw8bit")
