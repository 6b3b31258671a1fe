"""A picture says which VAE made it where that was not the base's own, and is only drawn again with the same."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from headshot_ui import families
from headshot_ui.errors import ModelError
from headshot_ui.families.sdxl_parts import source
from headshot_ui.families.sdxl_parts.files import SAFE_VAE
from headshot_ui.generation.records import RANKING, Picture, regenerate
from headshot_ui.generation.runner import generate
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import Store, read_json, read_png_metadata, save_png, sha256_of
from tests.families.test_safe_vae import change
from tests.generation.fakes import Reports, make_store
from tests.tiny_models import make_tiny_sdxl

SPEC = GenerateSpec("robin", "tiny-sdxl", presets=("navy-suit",), count=1, seed=40, steps=1)
CHOOSE = source.choose_vae


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    """A base whose VAE asks for float32, as SDXL's does."""
    monkeypatch.setattr("headshot_ui.settings._usable", lambda device: True)
    change(make_tiny_sdxl(tmp_path / "models" / "tiny") / "vae", force_upcast=True)
    return make_store(tmp_path)


def install(store: Store, seed: int) -> Path:
    """Another VAE where the float16-safe one belongs; its weights."""
    folder = store.settings.models_dir / SAFE_VAE
    shutil.rmtree(folder, ignore_errors=True)
    made = make_tiny_sdxl(store.settings.models_dir.parent / f"made-{seed}", seed)
    shutil.copytree(made / "vae", folder)
    return folder / "diffusion_pytorch_model.safetensors"


def draw(store: Store, spec: GenerateSpec = SPEC) -> Picture:
    loaded = families.load_base(families.find_base("tiny-sdxl", store.settings), store.settings)
    return generate(spec, store, loaded, Reports()).pictures[0]


def pixels(picture: Picture) -> bytes:
    with Image.open(picture.path) as image:
        return image.tobytes()


def on_a_card(store: Store) -> Store:
    """The same folders on a card that computes in float16."""
    return Store(replace(store.settings, wanted_device="cuda", wanted_dtype="float16"))


def test_a_picture_by_another_vae_says_so_and_is_drawn_again_with_it(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = draw(store)
    weights = install(store, seed=5)
    # What is chosen on a card in float16, computed here in the numbers of a CPU.
    card = on_a_card(store).settings
    monkeypatch.setattr(source, "choose_vae", lambda folder, _: (CHOOSE(folder, card)[0], torch.float32))
    picture = draw(store)
    mark = {"id": SAFE_VAE, "sha256": sha256_of(weights)}
    assert read_png_metadata(picture.path)["vae"] == read_json(picture.path.parent / RANKING)["vae"] == mark
    again = draw(store, regenerate(picture.path, store))
    assert pixels(again) == pixels(picture) != pixels(own)
    install(store, seed=6)
    with pytest.raises(ModelError, match=f"“{SAFE_VAE}” .*but here the VAE “{SAFE_VAE}” .* draw a new picture"):
        regenerate(picture.path, store)
    shutil.rmtree(weights.parent)
    with pytest.raises(ModelError, match="but here the base model's own VAE would make it"):
        regenerate(picture.path, store)
    assert regenerate(picture.path).seed == picture.seed


def test_a_vae_installed_since_is_told(store: Store, tmp_path: Path) -> None:
    picture = draw(store)
    data = read_png_metadata(picture.path)
    assert data["vae"] is None and read_json(picture.path.parent / RANKING)["vae"] is None
    card = on_a_card(store)
    assert regenerate(picture.path, card).seed == picture.seed
    install(store, seed=5)
    with pytest.raises(ModelError, match="made with the base model's own VAE, but here the VAE “sdxl-vae-fp16-fix”"):
        regenerate(picture.path, card)
    assert regenerate(picture.path, store).seed == picture.seed, "on the CPU the base's own makes it still"
    del data["vae"]  # as pictures were written before
    with Image.open(picture.path) as image:
        save_png(tmp_path / "old.png", image, data)
    assert regenerate(tmp_path / "old.png", card).seed == picture.seed
