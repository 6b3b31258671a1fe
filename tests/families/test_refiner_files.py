"""Refiners are found, fitted to their base, and refused with a sentence that names the file when something is wrong."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from headshot_ui import families
from headshot_ui.errors import ModelError
from headshot_ui.families.bases import read_base, read_refiner
from headshot_ui.families.protocol import BaseInfo, LoadedBase, LoadedRefiner, RefinerInfo
from headshot_ui.settings import Settings
from tests.tiny_models import make_tiny_refiner

WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def base(settings: Settings) -> BaseInfo:
    return families.find_base("tiny-sdxl", settings)


@pytest.fixture
def folder(models_dir: Path, tmp_path: Path) -> Path:
    """A models folder with one base and one refiner to spoil."""
    shutil.copytree(models_dir / "tiny", tmp_path / "tiny")
    return Path(shutil.copytree(models_dir / "refiner", tmp_path / "refiner"))


@pytest.fixture
def here(folder: Path) -> Settings:
    return Settings.from_environment(models_dir=folder.parent, device="cpu", dtype="float32")


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def refused(here: Settings, folder: Path, words: str) -> str:
    """The same sentence where it is looked for and, if it comes that far, where it is loaded."""
    with pytest.raises(ModelError, match=words) as caught:
        families.find_refiner("tiny-refiner", families.find_base("tiny-sdxl", here), here)
    return str(caught.value)


# --- discovery ------------------------------------------------------------------------------------------
def test_refiners_are_found_each_with_its_base(settings: Settings, base: BaseInfo) -> None:
    assert {info.id for info in families.all_refiners(settings)} == {"tiny-refiner", "epsilon-refiner"}
    info = families.find_refiner(None, base, settings)
    assert (info.id, info.bases, info.demo) == ("tiny-refiner", ("tiny-sdxl",), True)
    assert info.folder == settings.models_dir / "refiner"
    assert families.find_refiner("tiny-refiner", base, settings) == info
    epsilon = families.find_base("epsilon-sdxl", settings)
    assert families.find_refiner(None, epsilon, settings).id == "epsilon-refiner"
    facts = families.refiner_facts(info, base)
    assert facts.weights == (info.folder / WEIGHTS,)
    assert facts.zeros_for_empty_prompt and facts.same_schedule


def test_one_made_for_the_base_goes_before_one_for_any(here: Settings, folder: Path) -> None:
    make_tiny_refiner(folder.parent / "a-any", refiner_id="any", bases=())
    tiny = families.find_base("tiny-sdxl", here)
    assert [info.id for info in families.refiners_for(tiny, here)] == ["tiny-refiner", "any"]
    assert families.find_refiner(None, tiny, here).id == "tiny-refiner"
    shutil.rmtree(folder)
    assert families.find_refiner(None, tiny, here).id == "any"


def test_a_broken_one_does_not_stand_before_a_good_one(here: Settings, folder: Path) -> None:
    make_tiny_refiner(folder.parent / "any", refiner_id="any", bases=())
    (folder / WEIGHTS).unlink()
    tiny = families.find_base("tiny-sdxl", here)
    assert families.find_refiner(None, tiny, here).id == "any"
    with pytest.raises(ModelError, match="missing"):
        families.find_refiner("tiny-refiner", tiny, here)


def test_an_unknown_one_and_one_for_another_base_are_told(settings: Settings, base: BaseInfo) -> None:
    with pytest.raises(ModelError, match="no refiner “grand-refiner”.*draw without"):
        families.find_refiner("grand-refiner", base, settings)
    with pytest.raises(ModelError, match="“epsilon-refiner” is for epsilon-sdxl, not for “tiny-sdxl”"):
        families.find_refiner("epsilon-refiner", base, settings)
    wider = families.find_base("wider-sdxl", settings)
    with pytest.raises(ModelError, match="There is no refiner for"):
        families.find_refiner(None, wider, settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "damaged"),
        ("[]", "damaged"),
        ('{"id": "tiny-refiner", "colour": 1}', "“colour”"),
        ('{"id": "tiny-refiner"}', "“family” is missing"),
        ('{"id": "tiny-refiner", "bases": "tiny-sdxl"}', "“bases”"),
        ('{"id": "tiny-refiner", "bases": [1]}', "“bases”"),
        ('{"id": "tiny-refiner", "title": 1}', "“title”"),
    ],
)
def test_a_damaged_description_is_named_and_hides_no_other(text: str, words: str, here: Settings, folder: Path) -> None:
    make_tiny_refiner(folder.parent / "any", refiner_id="any", bases=())
    (folder / "refiner.json").write_text(text)
    with pytest.raises(ModelError, match=words):
        read_refiner(folder / "refiner.json")
    assert [info.id for info in families.all_refiners(here)] == ["any"]
    assert "refiner.json" in refused(here, folder, r"refiner\.json")


@pytest.mark.parametrize("entry", [{"refine": "twice"}, {"refiner_switch": 1}, {"refiner_strength": 0}])
def test_defaults_no_request_could_have_are_refused(entry: dict, folder: Path) -> None:
    path = folder.parent / "tiny" / "base.json"
    change(path, defaults=entry)
    with pytest.raises(ModelError, match=f"“{next(iter(entry))}”"):
        read_base(path)


# --- files ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["unet/config.json", WEIGHTS, "scheduler/scheduler_config.json"])
def test_a_missing_file_is_named(name: str, here: Settings, folder: Path) -> None:
    (folder / name).unlink()
    assert str(folder / name) in refused(here, folder, "missing")
    with pytest.raises(ModelError, match="missing"):
        families.load_refiner(read_refiner(folder / "refiner.json"), here)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-100]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not a model" * 50),
    ],
)
@pytest.mark.parametrize("name", [WEIGHTS, "unet/config.json", "scheduler/scheduler_config.json"])
def test_a_damaged_file_is_named(name: str, spoil: Callable[[Path], int], here: Settings, folder: Path) -> None:
    spoil(folder / name)
    assert str(folder / name) in refused(here, folder, "damaged")


def test_what_a_full_download_brings_beside_is_not_looked_at(here: Settings, folder: Path) -> None:
    for name in ("vae", "text_encoder_2", "tokenizer_2"):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text("{")
    (folder / "model_index.json").unlink()
    info = families.find_refiner(None, families.find_base("tiny-sdxl", here), here)
    assert families.load_refiner(info, here).info == info


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"_class_name": "FluxTransformer2DModel"}, "another kind of model"),
        ({"addition_embed_type": None}, "another kind of model"),
        ({"cross_attention_dim": "wide"}, "“cross_attention_dim”"),
        ({"cross_attention_dim": 16}, "texts 16 numbers wide, not 24"),
        ({"projection_class_embeddings_input_dim": 24 + 4 * 8}, "other size conditions"),
        ({"projection_class_embeddings_input_dim": 24 + 5 * 8 + 1}, "other size conditions"),
        ({"addition_time_embed_dim": 0}, "other size conditions"),
        ({"in_channels": 16}, "number of channels"),
    ],
)
def test_another_kind_of_model_is_refused(entries: dict, words: str, here: Settings, folder: Path) -> None:
    change(folder / "unet" / "config.json", **entries)
    refused(here, folder, words)


def test_the_unet_of_a_base_is_no_refiner(here: Settings, folder: Path) -> None:
    shutil.rmtree(folder / "unet")
    shutil.copytree(folder.parent / "tiny" / "unet", folder / "unet")
    assert str(folder / "unet") in refused(here, folder, "UNet of a base model")


def test_missing_tensors_are_not_filled_with_noise(here: Settings, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["conv_out.weight"]
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"conv_out\.weight"):
        families.load_refiner(read_refiner(folder / "refiner.json"), here)


def test_a_schedule_that_makes_no_sense_is_named(here: Settings, folder: Path) -> None:
    change(folder / "scheduler" / "scheduler_config.json", prediction_type="guess")
    with pytest.raises(ModelError, match=r"scheduler_config\.json cannot be used"):
        families.load_refiner(read_refiner(folder / "refiner.json"), here)


def test_another_schedule_is_noticed(here: Settings, folder: Path) -> None:
    info: RefinerInfo = read_refiner(folder / "refiner.json")
    tiny = families.find_base("tiny-sdxl", here)
    change(folder / "scheduler" / "scheduler_config.json", prediction_type="epsilon")  # the refiner's own matter
    assert families.refiner_facts(info, tiny).same_schedule
    change(folder / "scheduler" / "scheduler_config.json", rescale_betas_zero_snr=False)
    assert not families.refiner_facts(info, tiny).same_schedule


def test_shards_are_read_and_a_missing_one_is_named(here: Settings, folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    names, shards = sorted(tensors), ("a.safetensors", "b.safetensors")
    (folder / WEIGHTS).unlink()
    for half, shard in enumerate(shards):
        part = {name: tensors[name] for name in names[half::2]}
        save_file(part, folder / "unet" / shard, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: shards[number % 2] for number, name in enumerate(names)}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    tiny = families.find_base("tiny-sdxl", here)
    info = families.find_refiner(None, tiny, here)
    assert families.refiner_facts(info, tiny).weights == tuple(folder / "unet" / shard for shard in shards)
    assert families.load_refiner(info, here).info.id == "tiny-refiner"
    (folder / "unet" / "b.safetensors").unlink()
    assert "b.safetensors" in refused(here, folder, "missing")


def test_half_precision_names_are_read(here: Settings, folder: Path) -> None:
    (folder / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    info = families.find_refiner(None, families.find_base("tiny-sdxl", here), here)
    assert families.load_refiner(info, here).info.id == "tiny-refiner"


def test_a_loaded_one_is_frozen_float32_and_silent(
    settings: Settings, base: BaseInfo, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        refiner: LoadedRefiner = families.load_refiner(families.find_refiner(None, base, settings), settings)
    assert (*capfd.readouterr(), caplog.records) == ("", "", [])
    assert refiner.unet.dtype == torch.float32 and not refiner.unet.training
    assert not any(parameter.requires_grad for parameter in refiner.unet.parameters())
    refiner.release()
    assert not hasattr(refiner, "unet")


# --- words without weights ----------------------------------------------------------------------------
def test_the_vocabulary_needs_no_weights_and_says_the_same(tiny: LoadedBase, here: Settings, folder: Path) -> None:
    (folder.parent / "tiny" / WEIGHTS).unlink()
    words = families.vocabulary(families.find_base("tiny-sdxl", here))
    for text in ("portrait of tok person", "Portrait of a Zebra, wearing a pink hat, pink; close-up", ""):
        assert words.unknown_words(text) == tiny.unknown_words(text)
    assert words.unknown_words("a zebra") == ("zebra",)
    (folder.parent / "tiny" / "tokenizer_2" / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match="tokenizer_2.*missing"):
        families.vocabulary(families.find_base("tiny-sdxl", here))
