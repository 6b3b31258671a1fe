"""The Train tab without gradio: its fields, the plan, the history of trainings."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from headshot_ui.errors import MemoryBudgetError, SpecError, StoreError
from headshot_ui.families.protocol import Abilities, BaseDefaults, BaseInfo
from headshot_ui.generation.records import RANKING
from headshot_ui.recipes import load_recipes
from headshot_ui.runs import change_run, create_run, delete_run, find_run, list_runs
from headshot_ui.settings import Settings
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store, write_json_atomic
from headshot_ui.training.plan import resolve
from headshot_ui.ui import run_history
from headshot_ui.ui.tabs.train_runs import further_request
from headshot_ui.ui.train_values import (
    fields,
    filled_by,
    length_choices,
    means_anything,
    placeholder,
    plan_lines,
    recipe_choices,
    train_request,
)
from tests.ui.fake_engine import FakeEngine, portrait

DEFAULTS = BaseDefaults(train_steps=400, rank=16, learning_rate=0.002)
NAMES = [field.name for field in fields()]


def values(**given: object) -> list[object]:
    """What the fields hold when nothing but ``given`` was entered."""
    return [given.get(field.name, False if field.kind is bool else "") for field in fields()]


def test_every_setting_of_a_training_has_a_field_with_help():
    rest = {field.name for field in dataclasses.fields(TrainSpec)} - set(NAMES)
    assert rest == {"person", "base", "run", "recipe"}
    assert all(field.help[0].isupper() and field.label for field in fields())


def test_empty_fields_leave_everything_to_the_base_model():
    assert train_request("anna", "b", DEFAULTS, "normal", values()) == TrainSpec("anna", "b")
    assert train_request("anna", "b", DEFAULTS, "quick", values()).steps == 200
    assert train_request("anna", "b", DEFAULTS, "long", values(steps="33")).steps == 33


RECIPES = load_recipes()
SDXL = BaseInfo("sdxl", "sdxl", "SDXL", Path("x"), "", "", 1024)


def test_a_recipe_fills_the_fields_visibly_and_leaves_what_was_entered():
    original, quick, default = (RECIPES[name] for name in ("original", "quick", "default"))
    filled = dict(zip(NAMES, filled_by(original, default, values(rank="8", prior_preservation=True)), strict=True))
    assert (filled["learning_rate"], filled["gradient_accumulation"], filled["size_px"]) == ("0.0001", "4", "512")
    assert (filled["optimizer"], filled["caption_dropout"], filled["checkpoint_every"]) == ("adamw8bit", "0", "500")
    assert (filled["rank"], filled["prior_preservation"]) == ("8", True), "entered by the person"
    assert filled["steps"] == "", "chosen by the length"
    again = dict(zip(NAMES, filled_by(quick, original, list(filled.values())), strict=True))
    assert (again["rank"], again["size_px"], again["optimizer"], again["learning_rate"]) == ("8", "768", "", "")
    assert filled_by(default, quick, list(again.values())) == values(rank="8", prior_preservation=True)


def test_several_resolutions_are_shown_and_read_back():
    filled = filled_by(RECIPES["flux-original"], RECIPES["default"], values())
    assert dict(zip(NAMES, filled, strict=True))["resolutions"] == "512 768 1024"
    for text in ("512 768 1024", "512, 768,1024", " 512;768 ; 1024"):
        assert train_request("anna", "b", DEFAULTS, "normal", values(resolutions=text)).resolutions == (512, 768, 1024)
    with pytest.raises(SpecError, match="“many” is not a number") as raised:
        train_request("anna", "b", DEFAULTS, "normal", values(resolutions="512 many"))
    assert raised.value.field == "resolutions"


def test_the_request_of_a_recipe_resolves_as_the_command_line_would():
    original = RECIPES["original"]
    shown = train_request("anna", "sdxl", SDXL.defaults, "normal", filled_by(original, None, values()), original)
    typed = TrainSpec("anna", "sdxl", recipe="original")
    assert resolve(shown, SDXL, RECIPES) == resolve(typed, SDXL, RECIPES)
    half = train_request("anna", "sdxl", BaseDefaults(train_steps=300), "quick", values(), original)
    assert (half.steps, half.recipe) == (500, "original"), "half of the recipe's steps, not of the base's"
    assert length_choices(SDXL.defaults, RECIPES["quick"])[2] == ("Long (800 steps)", "long")


def test_recipes_are_offered_where_they_suit():
    assert [name for _, name in recipe_choices(SDXL, RECIPES)] == ["default", "original", "quick"]
    assert recipe_choices(dataclasses.replace(SDXL, demo=True), RECIPES) == [("Default", "default")]
    assert recipe_choices(None, RECIPES) == []


def test_the_plan_of_a_recipe_says_its_steps_and_batches(tmp_path):
    engine = FakeEngine(Settings.from_environment(outputs_dir=tmp_path))
    plan = plan_lines(engine, TrainSpec("anna", "b", recipe="original"), DEFAULTS, 9, RECIPES["original"])
    assert plan["lines"][0] == "1000 steps of 4 batches on 9 photos, a LoRA of rank 4."
    engine.close()


def test_numbers_are_read_as_people_type_them():
    spec = train_request(
        "anna", "b", DEFAULTS, "normal", values(learning_rate=" 0,001 ", rank="8", prior_preservation=True)
    )
    assert (spec.learning_rate, spec.rank, spec.prior_preservation) == (0.001, 8, True)
    assert isinstance(spec.rank, int)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [("rank", "much", "not a number"), ("steps", "2.5", "not a whole number"), ("rank", "0", "must be from 1 to 256"),
     ("learning_rate", "nan", "not a number"), ("batch_size", "1e400", "not a")],
)  # fmt: skip
def test_a_wrong_entry_names_its_field(name, text, said):
    with pytest.raises(SpecError, match=said) as raised:
        train_request("anna", "b", DEFAULTS, "normal", values(**{name: text}))
    assert raised.value.field == name


def test_what_an_empty_field_stands_for_is_shown():
    shown = {field.name: placeholder(field, DEFAULTS) for field in fields()}
    assert (shown["rank"], shown["learning_rate"], shown["min_snr_gamma"]) == ("16", "0.002", "none")
    assert shown["steps"] == "as chosen above"
    assert (shown["gradient_accumulation"], shown["caption_dropout"], shown["optimizer"]) == ("1", "0.05", "adamw")
    assert length_choices(DEFAULTS)[1] == ("Normal (400 steps)", "normal")


def test_a_setting_that_means_nothing_to_the_base_is_not_seen():
    def seen(can):
        return {field.name for field in fields() if means_anything(field, can)}

    assert seen(Abilities()) - seen(Abilities(weighs_by_snr=False)) == {"min_snr_gamma"}


def test_the_plan_says_what_will_be_done_and_what_it_takes(tmp_path):
    engine = FakeEngine(Settings.from_environment(outputs_dir=tmp_path))
    plan = plan_lines(engine, TrainSpec("anna", "b", steps=100), DEFAULTS, 9)
    assert plan["lines"][0] == "100 steps on 9 photos, a LoRA of rank 16." and len(plan["lines"]) > 2
    assert plan["problem"] == ""
    engine.close()

    class Refusing:
        def forecast(self, spec: TrainSpec) -> None:
            raise MemoryBudgetError("It does not fit: close other programs.")

    assert plan_lines(Refusing(), TrainSpec("anna", "b"), DEFAULTS, 1)["problem"].startswith("It does not fit")


# --- history ------------------------------------------------------------------------------------------
@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Settings.from_environment(outputs_dir=tmp_path / "outputs"))


def done(store: Store, step: int = 40, **changes: object):
    run = create_run(store, TrainSpec("anna", "demo-sdxl", steps=40), total=40)
    if step == 40:
        (run.folder / "lora.safetensors").write_bytes(b"x")
        write_json_atomic(run.folder / "losses.json", [1 / n for n in range(1, 41)])
        changes = {"state": "done", "lora": "lora.safetensors", **changes}
    return change_run(run, step=step, **changes)


def test_each_training_says_what_can_be_done_with_it(store):
    finished, broken = done(store), done(store, 12, state="interrupted")
    rows = {row["name"]: row for row in run_history.history(store, "anna", busy=False)["runs"]}
    row = rows[finished.name]
    assert (row["use"], row["further_label"], row["delete"], row["steps"]) == (True, "Learn more", True, "40")
    assert len(row["spark"].split()) == 40
    row = rows[broken.name]
    assert (row["use"], row["further"], row["further_label"], row["steps"]) == (False, True, "Go on", "12 of 40")
    assert row["label"] == "Interrupted" and row["spark"] == ""
    assert run_history.resumable(store, "anna").name == broken.name
    busy = run_history.history(store, "anna", busy=True)["runs"]
    assert not any(row["further"] or row["delete"] for row in busy)


def test_a_training_on_other_photos_cannot_go_on_and_says_why(store):
    done(store, 12, state="cancelled", facts={"dataset": "of other photos"})
    (row,) = run_history.history(store, "anna", busy=False)["runs"]
    assert row["further"] is False and row["blocked"] == run_history.PHOTOS_CHANGED
    assert run_history.resumable(store, "anna") is None


def test_going_on_and_learning_more(store):
    finished, broken = done(store), done(store, 12, state="failed")
    assert further_request(broken, {"demo-sdxl": 400}) == TrainSpec("anna", "demo-sdxl", run=broken.name)
    more = further_request(finished, {"demo-sdxl": 400})
    assert (more.run, more.steps) == (finished.name, 440)


def test_likeness_is_that_of_the_pictures_drawn_with_it(store):
    run = done(store)
    pictures = [{"likeness": {"percent": percent, "reason": ""}} for percent in (80, 90)]
    pictures.append({"likeness": {"percent": 0, "reason": "no face"}})
    folder = store.headshots_dir("anna")
    write_json_atomic(folder / "one" / RANKING, {"lora": {"name": run.name}, "pictures": pictures})
    write_json_atomic(folder / "bare" / RANKING, {"lora": None, "pictures": pictures})
    (folder / "broken").mkdir()
    (folder / "broken" / RANKING).write_text("{")
    assert run_history.likeness_by_run(store, "anna") == {run.name: 85}
    assert run_history.history(store, "anna", busy=False)["runs"][0]["likeness"] == "85 %"


def test_samples_are_first_last_and_between(store):
    run = done(store)
    for step in range(5, 105, 5):
        path = run.folder / "samples" / f"step-{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        portrait(step, "x").save(path)
    shown = run_history.sample_values(run_history.sample_paths(run.folder))["samples"]
    steps = [int(sample["step"]) for sample in shown]
    assert len(steps) == run_history.SAMPLES_SHOWN and (steps[0], steps[-1]) == (5, 100) and steps == sorted(set(steps))


def test_the_history_notices_every_change(store):
    before = run_history.signature(store, "anna")
    run = done(store)
    between = run_history.signature(store, "anna")
    delete_run(run)
    assert before != between != run_history.signature(store, "anna") == before


def test_a_training_is_deleted_but_not_under_way(store):
    run = done(store)
    delete_run(find_run(store, "anna", run.name))
    assert list_runs(store, "anna") == ()
    with pytest.raises(StoreError, match="cancel it first"):
        delete_run(create_run(store, TrainSpec("anna", "demo-sdxl")))
