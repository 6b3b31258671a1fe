"""The captioner for photographs: the real classes with random weights, and every file that can be missing or wrong."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from headshot_ui import discovery
from headshot_ui.captioners import all_captioners, find_captioner, florence2
from headshot_ui.captioners.florence2 import CAPTIONER
from headshot_ui.downloads.catalogue import load_catalogue
from headshot_ui.downloads.states import path_of
from headshot_ui.errors import ModelError
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.settings import Settings

BASE = BaseInfo("sdxl", "sdxl", "SDXL", Path("x"), "", "", 1024)
PHOTO = Image.linear_gradient("L").convert("RGB").resize((90, 70))


def make_tiny_florence(folder: Path, seed: int = 0) -> None:
    """Florence-2 from its config: a vision tower, a BART of one layer each, and a tokenizer that knows every byte."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import (
        BartConfig,
        BartTokenizer,
        CLIPImageProcessor,
        Florence2Config,
        Florence2ForConditionalGeneration,
        Florence2Processor,
        Florence2VisionConfig,
    )

    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<image>", *sorted(ByteLevel.alphabet())]
    tokenizer = BartTokenizer(
        vocab={token: number for number, token in enumerate(tokens)}, merges=[],
        extra_special_tokens={"image_token": "<image>"},
    )  # fmt: skip
    side = {"height": 32, "width": 32}
    pictures = CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False)
    pictures.image_seq_length = 2  # one cell of the tower, and the mean over time
    text = BartConfig(
        vocab_size=len(tokens), d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=256,
    )  # fmt: skip
    vision = Florence2VisionConfig(
        depths=(1, 1, 1, 1), embed_dim=(8, 8, 8, 16), num_heads=(1, 1, 1, 2), num_groups=(1, 1, 1, 2), window_size=2,
        projection_dim=16,
    )  # fmt: skip
    torch.manual_seed(seed)
    config = Florence2Config(
        text_config=text.to_dict(), vision_config=vision.to_dict(), image_token_id=tokenizer.image_token_id
    )
    Florence2ForConditionalGeneration(config).save_pretrained(folder)
    Florence2Processor(pictures, tokenizer).save_pretrained(folder)
    saved = json.loads((folder / "processor_config.json").read_text())  # as published: how pictures are read apart
    (folder / "preprocessor_config.json").write_text(json.dumps(saved.pop("image_processor")))
    (folder / "processor_config.json").write_text(json.dumps(saved))


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    models = tmp_path_factory.mktemp("models")
    make_tiny_florence(models / "florence-2")
    return Settings.from_environment(models_dir=models, device="cpu", environment={})


@pytest.fixture
def damaged(settings: Settings, tmp_path: Path) -> Settings:
    """A copy to damage."""
    folder = tmp_path / "florence-2"
    folder.mkdir()
    for path in CAPTIONER.folder(settings).iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return replace(settings, models_dir=tmp_path)


def test_text_and_a_photo_go_in_and_text_comes_out(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(florence2, "MOST_TOKENS", 6)
    captioner = CAPTIONER.load(settings)
    asked: list[dict] = []
    real = captioner._net.generate
    monkeypatch.setattr(captioner._net, "generate", lambda **given: asked.append(given) or real(**given))
    said = captioner.describe(PHOTO)
    assert isinstance(said, str) and said and captioner.describe(PHOTO) == said
    assert captioner.describe(PHOTO.convert("L")) == said, "any picture is read as RGB"
    (ids,), pixels = asked[0]["input_ids"], asked[0]["pixel_values"]
    prompt = captioner._processor.tokenizer.decode(ids, skip_special_tokens=True)
    assert prompt == "Describe with a paragraph what is shown in the image." and pixels.shape == (1, 3, 32, 32)
    assert int((ids == captioner._net.config.image_token_id).sum()) == 2, "a place for every cell of the picture"
    assert not captioner._net.training
    captioner.keep(frozenset())
    assert captioner.describe(PHOTO) == said, "it comes back by itself"


def test_the_network_sees_the_photo(settings: Settings) -> None:
    import torch

    captioner = CAPTIONER.load(settings)
    inputs = [captioner._processor(text=florence2.TASK, images=image, return_tensors="pt")
              for image in (PHOTO, PHOTO.transpose(Image.Transpose.ROTATE_180))]  # fmt: skip
    with torch.inference_mode():
        first, second = (captioner._net(**each, decoder_input_ids=torch.tensor([[2]])).logits for each in inputs)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("name", [*florence2.NEEDED, florence2.PICTURES[0]])
def test_a_missing_file_is_named(damaged: Settings, name: str) -> None:
    (CAPTIONER.folder(damaged) / name).unlink()
    if name == florence2.PICTURES[0]:
        (CAPTIONER.folder(damaged) / florence2.PICTURES[1]).unlink()
    with pytest.raises(ModelError, match=f"{name} is missing, so photos cannot be described: get it under Models"):
        CAPTIONER.load(damaged)
    said = "No captioner is installed" if name == florence2.WEIGHTS else f"is not complete .*{name}"
    with pytest.raises(ModelError, match=f"{said}.*models get florence-2.*or take the fixed phrase"):
        find_captioner(damaged, BASE)


def test_damaged_files_are_told(damaged: Settings) -> None:
    from safetensors.torch import load_file, save_file

    folder = CAPTIONER.folder(damaged)
    whole = load_file(folder / florence2.WEIGHTS)
    save_file(dict(list(whole.items())[3:]), folder / florence2.WEIGHTS, {"format": "pt"})
    with pytest.raises(ModelError, match="does not hold all weights"):
        CAPTIONER.load(damaged)
    (folder / florence2.WEIGHTS).write_bytes(b"nothing")
    with pytest.raises(ModelError, match="is damaged: get it under Models"):
        CAPTIONER.load(damaged)


def test_words_of_another_network_are_told(damaged: Settings) -> None:
    path = CAPTIONER.folder(damaged) / "config.json"
    path.write_text(path.read_text().replace('"image_token_id": 5', '"image_token_id": 9'))
    with pytest.raises(ModelError, match=r"tokenizer.json are not those of its network"):
        CAPTIONER.load(damaged)


# --- discovery --------------------------------------------------------------------------------------
def test_the_installed_captioner_is_found_for_photographs_only(settings: Settings) -> None:
    assert find_captioner(settings, BASE) is CAPTIONER and CAPTIONER in all_captioners()
    with pytest.raises(ModelError, match="Nothing here can describe photos for “Demo”: take the fixed phrase"):
        find_captioner(settings, replace(BASE, title="Demo", demo=True))


def test_none_is_found_where_none_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    empty = Settings.from_environment(models_dir=tmp_path, device="cpu", environment={})
    with pytest.raises(ModelError, match="No captioner is installed, so captions cannot be written automatically"):
        find_captioner(empty, BASE)
    monkeypatch.setattr(discovery.pkgutil, "iter_modules", lambda path: [type("M", (), {"name": "florence2"})] * 2)
    with pytest.raises(ValueError, match="two captioners are called florence-2"):
        all_captioners()


def test_the_catalogue_puts_it_where_it_is_looked_for(tmp_path: Path) -> None:
    settings = Settings.from_environment(models_dir=tmp_path, device="cpu", environment={})
    entry = load_catalogue()[CAPTIONER.id]
    assert entry.kind == "captioner"
    places = {path_of(file.place, settings) for file in entry.files}
    assert {*CAPTIONER.weights(settings), *CAPTIONER.missing(settings)} <= places
