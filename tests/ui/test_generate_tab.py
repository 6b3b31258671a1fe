"""From the fields of the Generate tab to a request and back, and what the tab says is new."""

from __future__ import annotations

import json
from dataclasses import replace

import gradio as gr
import pytest

from headshot_ui import families
from headshot_ui.errors import ModelError, SpecError
from headshot_ui.families.protocol import Abilities
from headshot_ui.generation.presets import load_presets
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import Store
from headshot_ui.ui import generate_form, generate_request
from headshot_ui.ui.abilities import abilities_of
from headshot_ui.ui.generate_request import FIELDS, FILE, LATEST, LOOKS, NO_LORA, filled_from, look_tiles
from headshot_ui.ui.live import Live
from headshot_ui.ui.picture_sets import delete_picture
from headshot_ui.ui.tab import Shell
from headshot_ui.ui.tabs import generate
from headshot_ui.ui.tiles import chosen_ids, tiles_value
from tests.ui.studio_stub import BASE, PERSON, StudioEngine, draw_set, studio_settings, trained


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setattr(families, "all_bases", lambda settings: (BASE,))
    return studio_settings(tmp_path)


def fields(**changes):
    """The tab as it opens, with two looks."""
    values = dict.fromkeys(FIELDS) | {
        "presets": {"chosen": ["white-shirt", "navy-suit"]}, "prompt": "", "lora": LATEST, "count": 2, "refine": "off",
        "seed": 7, "base": BASE.id, "lora_scale": 1, "negative_prompt": "",
    }  # fmt: skip
    return values | changes


def test_empty_fields_are_left_to_the_base_model(settings):
    spec = generate_request.generate_request(PERSON, fields(), settings)
    assert spec == GenerateSpec(PERSON, BASE.id, presets=("navy-suit", "white-shirt"), count=2, seed=7, lora="latest",
                                refine="off")  # fmt: skip
    spec = generate_request.generate_request(
        PERSON, fields(steps=" 12 ", width="512", guidance_scale="2,5", lora=NO_LORA), settings
    )
    assert (spec.steps, spec.width, spec.guidance_scale, spec.lora) == (12, 512, 2.5, None)
    assert isinstance(spec.steps, int)
    large = str(2**63 - 1)
    assert generate_request.generate_request(PERSON, fields(seed=large), settings).seed == 2**63 - 1


@pytest.mark.parametrize(
    ("changes", "field", "sentence"),
    [
        ({"presets": {"chosen": []}}, "presets", "Choose at least one look"),
        ({"presets": {"chosen": ["no-such-look", 3, None]}}, "presets", "Choose at least one look"),
        ({"presets": "nonsense"}, "presets", "Choose at least one look"),
        ({"prompt": "a {hat}"}, "prompt", "only {subject} is filled in"),
        ({"lora": None}, "lora", "train first"),
        ({"width": 100}, "width", "a multiple of 64"),
        ({"steps": 0}, "steps", "from 1 to 500"),
        ({"guidance_scale": 99}, "guidance_scale", "guidance scale"),
        ({"seed": "-1"}, "seed", "seed"),
        ({"seed": "abc"}, "seed", "“abc” is no whole number"),
        ({"steps": "1.5"}, "steps", "is no whole number"),
        ({"guidance_scale": "inf"}, "guidance_scale", "is no number"),
        ({"refiner_switch": 1.5}, "refiner_switch", "refiner takes over"),
        ({"keep_best": 0}, "keep_best", "pictures to keep"),
        ({"base": None}, "base", "No base model"),
    ],
)
def test_what_is_wrong_names_its_field(settings, changes, field, sentence):
    with pytest.raises(SpecError, match=sentence) as caught:
        generate_request.generate_request(PERSON, fields(**changes), settings)
    assert caught.value.field == field
    shown = generate_form.problem_values(field, str(caught.value))
    assert sentence in shown[FIELDS.index(field)]["text"]
    assert [value["text"] for value in shown[:-1] if value["text"]] == [str(caught.value)], "and no other field"


def test_a_problem_of_an_expert_field_opens_the_expert_settings():
    assert generate_form.problem_values("steps", "x")[-1].open is True
    assert "open" not in generate_form.problem_values("prompt", "x")[-1]
    assert generate_form.problem_values("person", "nobody")[-2] == {"text": "nobody"}


def test_own_words_need_no_look(settings):
    spec = generate_request.generate_request(PERSON, fields(presets={}, prompt=" {subject} "), settings)
    assert spec.presets == () and spec.prompt == "{subject}"


def test_a_request_fills_the_form_it_came_from(settings, tmp_path):
    tiles = look_tiles(settings, tmp_path / "shown")
    spec = GenerateSpec(PERSON, BASE.id, presets=("navy-suit",), seed=3, lora="run-1", steps=12, guidance_scale=5.0,
                        refine="img2img", refiner_strength=0.4, negative_prompt="hat", width=512)  # fmt: skip
    values = filled_from(spec, BASE, tiles)
    assert list(values) == list(FIELDS) and chosen_ids(values["presets"]) == ["navy-suit"]
    assert values["guidance_scale"] == "", "what is the base model's own stays empty"
    again = generate_request.generate_request(PERSON, values, settings)
    assert again == replace(spec, guidance_scale=None)


def test_tiles_show_pictures_where_there_are_some(settings, tmp_path):
    own = settings.outputs_dir / "presets"
    own.mkdir(parents=True)
    (own / "bow-tie.json").write_text(json.dumps({
        "id": "bow-tie", "title": "Bow tie", "category": "Party", "thumbnail": "../../secret.jpg", "slots":
        dict.fromkeys(("attire", "backdrop", "light", "framing", "expression"), "x"),
    }))  # fmt: skip
    tiles = {tile["id"]: tile for tile in look_tiles(settings, tmp_path / "shown")}
    assert set(tiles) == {*load_presets(), "bow-tie"}
    assert tiles["bow-tie"]["picture"] == "" and tiles["bow-tie"]["letter"] == "B"
    with_picture = [tile for tile in tiles.values() if tile["picture"]]
    assert all(str(tmp_path / "shown") in tile["picture"] for tile in with_picture)


def test_ids_from_the_browser_are_texts_or_nothing():
    assert chosen_ids({"chosen": ["a", 1, None, ["b"]]}) == ["a"]
    assert chosen_ids(None) == chosen_ids("x") == chosen_ids({"chosen": "abc"}) == []
    tiles = [{"id": "a", "title": "A", "group": "g", "letter": "A", "picture": ""}]
    assert tiles_value(LOOKS, tiles, ["a", "gone"])["chosen"] == ["a"]
    assert tiles_value(LOOKS, tiles, None)["chosen"] is None and tiles_value(LOOKS, tiles, [])["groups"] == []


def test_trainings_to_choose_from(settings):
    store = Store(settings)
    assert generate_request.lora_choices(generate_request.usable_runs(store, PERSON, BASE.id))[0][1] == NO_LORA
    run = trained(store)
    runs = generate_request.usable_runs(store, PERSON, BASE.id)
    choices = generate_request.lora_choices(runs)
    assert [value for _, value in choices] == [LATEST, run.name, NO_LORA, FILE] and "20 steps" in choices[0][0]
    assert generate_request.usable_runs(store, PERSON, "another-base") == ()
    (run.folder / "lora.safetensors").unlink()
    assert generate_request.usable_runs(store, PERSON, BASE.id) == ()


def test_without_a_training_nothing_is_chosen_and_the_way_is_shown():
    dropdown, note, button = generate_form.lora_values([("No training", NO_LORA)], LATEST, PERSON)
    assert dropdown.value is None and "Train first" in note["text"] and button.visible is True
    dropdown, note, button = generate_form.lora_values([("Newest", LATEST), ("No", NO_LORA)], "gone", PERSON)
    assert dropdown.value == LATEST and note["text"] == "" and button.visible is False


def test_a_missing_refiner_is_said_and_cannot_be_chosen(settings, monkeypatch):
    def missing(refiner_id, info, settings):
        raise ModelError("No refiner is installed: get one.")

    monkeypatch.setattr(families, "find_refiner", missing)
    choice = generate_request.refine_choice(BASE, settings)
    radio, note = generate_form.refine_values(choice)
    assert radio.interactive is False and radio.value == "off" and note == {"text": "No refiner is installed: get one."}
    monkeypatch.setattr(families, "find_refiner", lambda *_: object())
    refined = replace(BASE, defaults=replace(BASE.defaults, refine="ensemble"))
    radio, note = generate_form.refine_values(generate_request.refine_choice(refined, settings))
    assert radio.interactive is True and radio.value == "ensemble" and note["text"] == ""


def test_what_means_nothing_to_a_base_is_not_seen_and_set_back(settings, monkeypatch):
    able = Abilities()
    monkeypatch.setattr(families, "abilities", lambda info: able)
    shown = [*generate_form.placeholder_values(BASE), *generate_form.guided_values(BASE)]
    assert all(field.visible for field in shown)
    able = Abilities(reads_negative_prompt=False, takes_refiner=False)
    choice = generate_request.refine_choice(BASE, settings)
    radio, note = generate_form.refine_values(choice)
    assert (radio.visible, radio.value, note) == (False, "off", {"text": ""})
    seen = dict(zip(generate_form.USUAL, generate_form.placeholder_values(BASE), strict=True))
    assert [name for name, field in seen.items() if not field.visible] == ["refiner_switch", "refiner_strength"]
    speed, negative = generate_form.guided_values(BASE)
    assert (speed.visible, speed.value, negative.visible, negative.value) == (False, "exact", False, "")
    able = Abilities(reads_negative_prompt=False, reuses_blocks=True)
    speed, negative = generate_form.guided_values(BASE)
    assert (speed.visible, negative.visible) == (True, False) and "leaves most of the network out" in speed.info


def test_a_base_whose_files_do_not_say_what_it_can_do_shows_everything(monkeypatch):
    def damaged(info):
        raise ModelError("x/config.json is damaged: get it again.")

    monkeypatch.setattr(families, "abilities", damaged)
    assert abilities_of(BASE) == abilities_of(None) == Abilities()


def test_the_amount_is_told_in_words():
    spec = GenerateSpec(PERSON, BASE.id, presets=("a", "b"), prompt="x", count=2)
    assert generate_request.amount_words(spec) == "6 pictures: 2 of each of 3 looks"
    assert generate_request.amount_words(GenerateSpec(PERSON, BASE.id, prompt="x", count=1)) == "1 picture"


def test_a_plan_that_fails_keeps_nobody_from_starting():
    class Broken:
        def forecast(self, spec):
            raise RuntimeError("no plan today")

    assert generate_request.plan_words(Broken(), GenerateSpec(PERSON, BASE.id)) == []
    assert generate_request.plan_words(object(), GenerateSpec(PERSON, BASE.id)) == []


def test_what_was_deleted_is_gone_for_good_after_a_restart(settings, tmp_path, monkeypatch):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "shown"))
    store = Store(settings)
    made = draw_set(store, GenerateSpec(PERSON, BASE.id, presets=("navy-suit",), count=2))
    aside = delete_picture(store, PERSON, made.pictures[0].path)
    engine = StudioEngine(settings)
    with gr.Blocks():
        generate.build(Shell(engine, settings, Live(engine, settings, tmp_path / "shown"), tmp_path / "shown",
                             gr.Dropdown([PERSON]), gr.Timer(1, active=False), gr.Tabs(), gr.State(0.0), gr.Textbox(),
                             gr.HTML(), gr.State(), gr.State(), gr.HTML()))  # fmt: skip
    assert not aside.exists() and made.pictures[1].path.exists()
    engine.close()


# --- what is new -----------------------------------------------------------------------------------------------------
@pytest.fixture
def tab(settings, tmp_path):
    engine = StudioEngine(settings)
    with gr.Blocks():
        shell = Shell(engine, settings, Live(engine, settings, tmp_path / "shown"), tmp_path / "shown",
                      gr.Dropdown([PERSON]), gr.Timer(1, active=False), gr.Tabs(), gr.State(0.0), gr.Textbox(),
                      gr.HTML(), gr.State(), gr.State(), gr.HTML())  # fmt: skip
        built = generate.build(shell)
    yield shell, built
    engine.close()


def test_a_refresh_has_a_value_for_every_output_and_says_nothing_twice(tab):
    shell, built = tab
    values, mark = built.refresh("", None)
    assert len(values) == len(built.outputs)
    assert built.refresh("", mark) is None
    values, mark = built.refresh(PERSON, mark)
    assert len(values) == len(built.outputs) and built.refresh(PERSON, mark) is None


def test_a_finished_drawing_shows_its_set(tab):
    shell, built = tab
    trained(shell.engine.store)
    _, mark = built.refresh(PERSON, None)
    shell.engine.drawing.clear()
    job = shell.live.submit(GenerateSpec(PERSON, BASE.id, presets=("navy-suit",), lora="latest"))
    while job.snapshot.preview is None:
        job.wait(0.01)
    values, mark = built.refresh(PERSON, mark)
    at = {output.elem_id: value for output, value in zip(built.outputs, values, strict=True)}
    assert at["generate-preview"]["picture"].startswith("data:image/")
    assert "shots" not in str(at["grid"]), "the results are left alone meanwhile"
    shell.engine.drawing.set()
    assert job.wait(20).state == "done"
    values, mark = built.refresh(PERSON, mark)
    at = {output.elem_id: value for output, value in zip(built.outputs, values, strict=True)}
    assert len(at["grid"]["shots"]) == 4 and at["generate-preview"]["picture"] == ""
    assert at["large"]["picture"] and at["facts"]["title"] == "Navy suit, grey studio"


def test_only_the_chosen_persons_pictures_are_shown(tab):
    shell, built = tab
    draw_set(shell.engine.store, GenerateSpec("bob", BASE.id, presets=("navy-suit",), count=3))
    values, _ = built.refresh(PERSON, None)
    at = {output.elem_id: value for output, value in zip(built.outputs, values, strict=True)}
    assert at["grid"]["shots"] == [] and at["large"]["picture"] == ""
