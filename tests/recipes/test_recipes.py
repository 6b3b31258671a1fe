"""Recipes: what the shipped ones say, which setting counts first, and which files are refused."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest

import headshot_ui.families
from headshot_ui.errors import SpecError, StoreError
from headshot_ui.families.protocol import BaseDefaults, BaseInfo
from headshot_ui.recipes import Recipe, load_recipes, read_recipe, with_recipe
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec, PrepareSpec, TrainSpec
from headshot_ui.training.plan import complete, resolve

SDXL = BaseInfo("sdxl", "sdxl", "Stable Diffusion XL", Path("x"), "", "", 1024)
SMALL = dataclasses.replace(SDXL, id="small", title="Small", size_px=256, defaults=BaseDefaults(rank=16))
_CONFIGS = Path(headshot_ui.families.__file__).parent / "flux_parts" / "published"  # from which its abilities are known
FLUX = dataclasses.replace(SDXL, id="flux-dev", family="flux", title="FLUX.1 [dev]", folder=_CONFIGS)
DEMO = dataclasses.replace(SDXL, id="demo", title="Demo", demo=True)
RECIPES = load_recipes()
TRAIN, GENERATE = TrainSpec("anna", "sdxl"), GenerateSpec("anna", "sdxl")
#: Words that change who is in the picture; people complain of programs that forbid them.
OF_A_FACE = """
face facial eye eyes nose mouth lips teeth chin jaw cheek ear ears hair beard moustache bald grey gray skin wrinkle
wrinkles mole moles spot spots freckle freckles scar pimple acne glasses fat thin slim old young age aged ugly pretty
beautiful handsome deformed disfigured mutated asymmetric asymmetry anatomy squint smile expression male female man
woman black white asian double extra missing blue green brown dark pale
"""


# --- what the shipped ones say ---------------------------------------------------------------------
def test_the_original_is_as_its_author_ran_it() -> None:
    """AutoTrain's DreamBooth trainer has rank 4 unless told otherwise, and an alpha equal to it."""
    spec = resolve(dataclasses.replace(TRAIN, recipe="original"), SDXL, RECIPES)
    assert (spec.steps, spec.gradient_accumulation, spec.batch_size) == (1000, 4, 1)
    assert (spec.rank, spec.alpha, spec.learning_rate) == (4, 4.0, 1e-4)
    assert (spec.size_px, spec.optimizer, spec.checkpoint_every, spec.caption_dropout) == (512, "adamw8bit", 500, 0.0)
    assert (spec.min_snr_gamma, spec.prior_preservation, spec.recipe) == (None, False, "original")
    drawn = with_recipe(dataclasses.replace(GENERATE, recipe="original"), SDXL, RECIPES)
    assert (drawn.steps, drawn.guidance_scale, drawn.recipe) == (100, 6.5, "original")


def test_the_original_of_flux_is_as_it_was_run_elsewhere() -> None:
    spec = resolve(dataclasses.replace(TRAIN, recipe="flux-original"), FLUX, RECIPES)
    assert (spec.steps, spec.rank, spec.alpha, spec.learning_rate) == (2000, 16, 16.0, 4e-4)
    assert (spec.batch_size, spec.gradient_accumulation, spec.optimizer) == (1, 1, "adamw8bit")
    assert (spec.resolutions, spec.size_px, spec.caption_dropout) == ((512, 768, 1024), 1024, 0.05)
    photos = with_recipe(PrepareSpec("anna", ("x",), "flux-dev", recipe="flux-original"), FLUX, RECIPES)
    assert (photos.captions, photos.trigger, photos.held_out) == ("automatic", "TOK", None)


def test_a_recipe_is_offered_only_for_the_bases_it_is_for() -> None:
    offered = {info.id: [name for name, recipe in RECIPES.items() if recipe.suits(info)] for info in (SDXL, FLUX)}
    assert offered == {"sdxl": ["default", "original", "quick"], "flux-dev": ["default", "flux-original"]}
    for other in (
        dataclasses.replace(FLUX, id="flux-schnell"), dataclasses.replace(FLUX, size_px=768),
        dataclasses.replace(FLUX, id="demo-flux", demo=True),
    ):  # fmt: skip
        with pytest.raises(SpecError, match="“flux-original” is not meant for .*; choose from default\\."):
            with_recipe(dataclasses.replace(TRAIN, recipe="flux-original"), other, RECIPES)


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=lambda recipe: recipe.id)
def test_no_negative_prompt_has_a_word_that_changes_a_face(recipe: Recipe) -> None:
    words = re.findall(r"[a-z]+", str(recipe.generate.get("negative_prompt", "")).lower())
    assert not set(words) & set(OF_A_FACE.split())
    assert len(words) < 50, "CLIP reads 75 tokens"
    assert words or recipe.id != "original"


@pytest.mark.parametrize("info", [SDXL, SMALL, DEMO], ids=lambda info: info.id)
def test_the_default_changes_nothing_for_any_base(info: BaseInfo) -> None:
    for chosen in (None, "default"):
        spec = resolve(dataclasses.replace(TRAIN, recipe=chosen), info, RECIPES)
        assert spec == dataclasses.replace(complete(TRAIN, info), recipe="default")
        drawn = with_recipe(dataclasses.replace(GENERATE, recipe=chosen), info, RECIPES)
        assert drawn == dataclasses.replace(GENERATE, recipe="default")
    assert (spec.rank, spec.learning_rate) == (info.defaults.rank, 1e-4)
    assert (spec.optimizer, spec.gradient_accumulation, spec.caption_dropout) == ("adamw", 1, 0.05)
    assert spec.size_px == info.size_px


# --- what counts first -----------------------------------------------------------------------------
def test_ones_own_setting_counts_before_the_recipe_and_that_before_the_base() -> None:
    own = dataclasses.replace(
        TRAIN, recipe="original", rank=8, gradient_accumulation=1, caption_dropout=0.1, size_px=1024, optimizer="adamw"
    )
    spec = resolve(own, SDXL, RECIPES)
    assert (spec.rank, spec.alpha, spec.gradient_accumulation, spec.caption_dropout) == (8, 8.0, 1, 0.1)
    assert (spec.size_px, spec.optimizer) == (1024, "adamw")
    assert spec.checkpoint_every == 500, "the recipe's"
    assert spec.sample_every == SDXL.defaults.sample_every, "the base's"
    drawn = with_recipe(dataclasses.replace(GENERATE, recipe="original", steps=20, negative_prompt=""), SDXL, RECIPES)
    assert (drawn.steps, drawn.negative_prompt, drawn.guidance_scale) == (20, "", 6.5)


def test_one_size_set_by_a_person_counts_before_the_several_of_a_recipe() -> None:
    spec = resolve(dataclasses.replace(TRAIN, recipe="flux-original", size_px=512), FLUX, RECIPES)
    assert (spec.size_px, spec.resolutions) == (512, (512,))
    spec = resolve(dataclasses.replace(TRAIN, recipe="original", resolutions=(512, 1024)), SDXL, RECIPES)
    assert (spec.size_px, spec.resolutions) == (1024, (512, 1024))
    with pytest.raises(SpecError, match="2048, but “FLUX.1 .* is made for 1024") as raised:
        resolve(dataclasses.replace(TRAIN, resolutions=(512, 2048)), FLUX, RECIPES)
    assert raised.value.field == "resolutions"


def test_resolving_twice_changes_nothing_more() -> None:
    for recipe, info in (("original", SDXL), ("flux-original", FLUX)):
        once = resolve(dataclasses.replace(TRAIN, recipe=recipe), info, RECIPES)
        assert resolve(once, info, RECIPES) == once == complete(once, info)


@pytest.mark.parametrize("spec", [TRAIN, GENERATE], ids=["train", "generate"])
def test_an_unknown_recipe_is_refused_with_those_there_are(spec: TrainSpec | GenerateSpec) -> None:
    with pytest.raises(SpecError, match="no recipe “orignal”; choose from default, original, quick") as raised:
        with_recipe(dataclasses.replace(spec, recipe="orignal"), SDXL, RECIPES)
    assert raised.value.field == "recipe"


@pytest.mark.parametrize("info", [SMALL, DEMO, dataclasses.replace(SDXL, family="other")], ids=["size", "demo", "kind"])
def test_a_recipe_is_refused_for_a_base_it_is_not_meant_for(info: BaseInfo) -> None:
    with pytest.raises(SpecError, match="“original” is not meant for .*; choose from default\\.") as raised:
        with_recipe(dataclasses.replace(TRAIN, recipe="original"), info, RECIPES)
    assert raised.value.field == "recipe"


def test_photos_larger_than_the_base_are_refused() -> None:
    with pytest.raises(SpecError, match="1024, but “Small” is made for 256") as raised:
        resolve(dataclasses.replace(TRAIN, size_px=1024), SMALL, RECIPES)
    assert raised.value.field == "size_px"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("size_px", 500, "multiple of 64"), ("size_px", 32, "from 64"), ("optimizer", "lion", "adamw or adamw8bit"),
     ("resolutions", (512, 500), "multiple of 64"), ("resolutions", (4096,), "from 64"), ("resolutions", (), "one"),
     ("resolutions", (512, 512), "each of them once")],
)  # fmt: skip
def test_wrong_settings_name_their_field(field: str, value: object, words: str) -> None:
    with pytest.raises(SpecError, match=words) as raised:
        TrainSpec("anna", "sdxl", **{field: value})  # type: ignore[arg-type]
    assert raised.value.field == field


def test_requests_keep_their_recipe_in_json() -> None:
    for recipe, info in (("original", SDXL), ("flux-original", FLUX)):
        spec = resolve(dataclasses.replace(TRAIN, recipe=recipe), info, RECIPES)
        assert TrainSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    with pytest.raises(SpecError, match="size of the photos is 512, but the largest resolution is 1024"):
        dataclasses.replace(TRAIN, size_px=512, resolutions=(512, 1024))
    drawn = with_recipe(dataclasses.replace(GENERATE, recipe="original"), SDXL, RECIPES)
    assert GenerateSpec.from_json(json.loads(json.dumps(drawn.to_json()))) == drawn


# --- files ------------------------------------------------------------------------------------------
def written(folder: Path, **data: object) -> Path:
    path = folder / "recipes" / "mine.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"id": "mine", "title": "Mine", "note": "My own.", **data}), encoding="utf-8")
    return path


def test_ones_own_recipes_are_found_and_replace_a_shipped_one(tmp_path: Path) -> None:
    written(tmp_path, train={"rank": 64})
    settings = Settings.from_environment(outputs_dir=tmp_path)
    assert [*load_recipes(settings)] == ["default", "flux-original", "original", "quick", "mine"]
    assert resolve(dataclasses.replace(TRAIN, recipe="mine"), DEMO, load_recipes(settings)).rank == 64
    written(tmp_path, id="quick", train={"learning_rate": 1})
    assert load_recipes(settings)["quick"].train == {"learning_rate": 1}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"train": {"person": "bea"}}, "“person” in “train” is no setting"),
        ({"train": {"seed": 3}}, "“seed” in “train” is no setting"),
        ({"generate": {"lora": "latest"}}, "“lora” in “generate” is no setting"),
        ({"train": {"rank": 0}}, "from 1 to 256"),
        ({"train": {"rank": True}}, "wrong kind"),
        ({"train": {"steps": 2.5}}, "wrong kind"),
        ({"train": {"size_px": 500}}, "multiple of 64"),
        ({"train": [1]}, "“train” must be"),
        ({"families": "sdxl"}, "“families” is not a list"),
        ({"not_for": "sdxl"}, "“not_for” is not a list"),
        ({"prepare": {"captions": "poems"}}, "no captions “poems”"),
        ({"prepare": {"photos": ["x"]}}, "“photos” in “prepare” is no setting"),
        ({"prepare": {"held_out": 3}}, "“held_out” in “prepare” is no setting"),
        ({"train": {"resolutions": 512}}, "“resolutions” in “train” is of the wrong kind"),
        ({"train": {"resolutions": [512, "768"]}}, "wrong kind"),
        ({"train": {"resolutions": [512, 500]}}, "multiple of 64"),
        ({"train": {"rank": [4]}}, "wrong kind"),
        ({"demo": 1}, "“demo” is neither"),
        ({"id": "My Own"}, "not an id"),
        ({"note": ""}, "“note” is missing"),
        ({"author": "me"}, "“author” is not known"),
    ],
)
def test_a_wrong_file_is_named_with_what_is_wrong(data: dict[str, object], words: str, tmp_path: Path) -> None:
    path = written(tmp_path, **data)
    with pytest.raises(StoreError, match=words) as raised:
        read_recipe(path)
    assert str(path) in str(raised.value)


def test_half_a_file_is_named(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text()[:20])
    with pytest.raises(StoreError, match="not valid JSON"):
        read_recipe(path)
