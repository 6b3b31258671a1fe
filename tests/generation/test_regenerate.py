"""On a tiny random SDXL: any picture can be drawn again from its PNG, bit for bit, and LoRAs leave nothing behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headshot_ui import families
from headshot_ui.errors import ModelError, SpecError
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.generation.presets import load_presets
from headshot_ui.generation.records import Picture, regenerate
from headshot_ui.generation.runner import generate
from headshot_ui.runs import change_run, create_run
from headshot_ui.specs import GenerateSpec, TrainSpec
from headshot_ui.store import Store
from tests.generation.fakes import Reports, make_store
from tests.tiny_models import make_tiny_sdxl

SPEC = GenerateSpec("robin", "tiny-sdxl", presets=("navy-suit", "teal-shirt-brick"), count=2, seed=40, lora="latest")


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, LoadedBase]:
    root = tmp_path_factory.mktemp("generate")
    make_tiny_sdxl(root / "models" / "tiny")
    store = make_store(root)
    loaded = families.load_base(families.find_base("tiny-sdxl", store.settings), store.settings)
    return store, loaded


def train(store: Store, loaded: LoadedBase, seed: int) -> Path:
    """A run whose LoRA is random but strong."""
    import torch

    run = create_run(store, TrainSpec("robin", "tiny-sdxl"))
    loaded.add_trainable_lora(rank=4, alpha=4.0, seed=seed)
    noise = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(t.shape, generator=noise) for name, t in loaded.trainable_lora_state().items()}
    path = run.folder / "lora.safetensors"
    loaded.save_lora(path, state, {"trigger": "tok"})
    loaded.use_loras(())
    change_run(run, state="done", lora=path.name)
    return path


def pixels(picture: Picture) -> np.ndarray:
    with Image.open(picture.path) as image:
        return np.asarray(image).copy()


def test_a_picture_is_drawn_again_from_its_png_bit_for_bit(workshop: tuple[Store, LoadedBase]):
    store, loaded = workshop
    train(store, loaded, seed=1)
    first = generate(SPEC, store, loaded, Reports())
    train(store, loaded, seed=2)  # "latest" now means another file
    for picture in first.pictures:
        spec = regenerate(picture.path, store)
        again = generate(spec, store, loaded, Reports()).pictures
        assert len(again) == 1
        assert again[0].prompt == picture.prompt
        assert (pixels(again[0]) == pixels(picture)).all()
    other = generate(SPEC, store, loaded, Reports())
    assert (pixels(other.pictures[0]) != pixels(first.pictures[0])).any(), "the LoRA makes a difference"


def test_a_picture_of_a_replaced_lora_is_refused(workshop: tuple[Store, LoadedBase]):
    store, loaded = workshop
    path = train(store, loaded, seed=3)
    picture = generate(replace(SPEC, presets=("navy-suit",), count=1), store, loaded, Reports()).pictures[0]
    path.write_bytes(train(store, loaded, seed=4).read_bytes())
    assert regenerate(picture.path).lora == path.parent.name
    with pytest.raises(ModelError, match="not the one"):
        regenerate(picture.path, store)


def test_seed_strength_and_prompt_make_a_difference_and_the_base_stays_as_it_was(workshop: tuple[Store, LoadedBase]):
    store, loaded = workshop
    train(store, loaded, seed=1)
    bare = replace(SPEC, presets=("navy-suit",), count=1, lora=None)

    def draw(spec: GenerateSpec) -> np.ndarray:
        return pixels(generate(spec, store, loaded, Reports()).pictures[0])

    before = draw(bare)
    assert (draw(replace(bare, seed=41)) != before).any()
    assert (draw(replace(bare, presets=("teal-shirt-brick",))) != before).any()
    full, half = draw(replace(bare, lora="latest")), draw(replace(bare, lora="latest", lora_scale=0.5))
    assert (full != before).any()
    assert (half != full).any()
    assert (draw(replace(bare, lora="latest", lora_scale=0.0)) == before).all()
    assert (draw(bare) == before).all()


def test_every_shipped_preset_can_be_drawn_and_unknown_words_are_named(workshop: tuple[Store, LoadedBase]):
    store, loaded = workshop
    result = generate(replace(SPEC, presets=(), count=1, steps=1, lora=None), store, loaded, Reports())
    assert {picture.preset for picture in result.pictures} == set(load_presets())
    assert all(picture.prompt.startswith("portrait of tok person, wearing a ") for picture in result.pictures)
    with pytest.raises(SpecError, match="“spacesuit”"):
        generate(replace(SPEC, presets=(), prompt="{subject} in a spacesuit", lora=None), store, loaded, Reports())
