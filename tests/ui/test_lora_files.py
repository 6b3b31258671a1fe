"""A LoRA file from elsewhere: looked at before it is used, kept with the person, chosen in the form."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from headshot_ui import families
from headshot_ui.errors import SpecError
from headshot_ui.store import Store
from headshot_ui.ui import generate_request
from headshot_ui.ui.generate_request import FIELDS, FILE, FILE_OF, NO_LORA, filled_from
from headshot_ui.ui.generate_request import generate_request as request
from headshot_ui.ui.lora_files import about_lora, add_lora, find_lora, lora_files
from tests.ui.studio_stub import BASE, PERSON, studio_settings

DEMO = Path(__file__).parents[2] / "models" / "demo" / "sdxl"
OUT = 128  # how wide both layers named here are
OURS = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k.lora_A.weight"
FLUX = "transformer.single_transformer_blocks.0.attn.to_k.lora_A.weight"
KOHYA = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.lora_down.weight"


@pytest.fixture
def base():
    return replace(BASE, folder=DEMO)


@pytest.fixture
def store(tmp_path, base, monkeypatch):
    monkeypatch.setattr(families, "all_bases", lambda settings: (base,))
    return Store(studio_settings(tmp_path))


def lora(folder, name="style.safetensors", key=OURS, width=224, **header):
    path = folder / name
    other = key.replace("lora_A", "lora_B").replace("lora_down", "lora_up")
    tensors = {other: np.zeros((OUT, 4), np.float32), key: np.zeros((4, width), np.float32)}
    save_file(tensors, path, metadata=header or None)
    return path


@pytest.mark.parametrize("key", [OURS, KOHYA])
def test_a_file_that_fits_is_kept_once_and_offered(key, store, base, tmp_path):
    given = lora(tmp_path, key=key, trigger="ohwx")
    kept = add_lora(store, PERSON, given, base)
    assert kept == store.person_dir(PERSON) / "loras" / "style.safetensors"
    assert add_lora(store, PERSON, lora(tmp_path, "same.safetensors", key, trigger="ohwx"), base) == kept
    other = add_lora(store, PERSON, lora(tmp_path, key=key), base)
    assert other.name == "style-2.safetensors" and lora_files(store, PERSON) == (other, kept)
    assert "“ohwx” is put in the place of {subject}" in about_lora(kept)
    assert "does not say which word" in about_lora(other)
    values = [value for _, value in generate_request.lora_choices((), lora_files(store, PERSON))]
    assert values == [FILE_OF + other.name, FILE_OF + kept.name, NO_LORA, FILE]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"width": 2048}, "of another size or kind than “Demo"),
        ({"key": FLUX}, "^“style.safetensors” was made for FLUX"),
        ({"family": "flux"}, "trained for the family “flux”"),
        ({"key": "model.diffusion_model.input_blocks.0.weight"}, "is a whole model and not a LoRA"),
    ],
)
def test_a_file_that_does_not_fit_is_told_and_not_kept(changes, sentence, store, base, tmp_path):
    with pytest.raises(SpecError, match=sentence) as caught:
        add_lora(store, PERSON, lora(tmp_path, **changes), base)
    assert caught.value.field == "lora" and lora_files(store, PERSON) == ()


def test_what_is_no_safetensors_file_is_told(store, base, tmp_path):
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"\xff" * 100)
    with pytest.raises(SpecError, match="is damaged"):
        add_lora(store, PERSON, damaged, base)
    with pytest.raises(SpecError, match="no .safetensors file"):
        add_lora(store, PERSON, tmp_path / "x.pt", base)
    with pytest.raises(SpecError, match="Choose a person"):
        add_lora(store, "", damaged, base)


def test_the_form_names_the_file_and_comes_back_to_it(store, base, tmp_path):
    kept = add_lora(store, PERSON, lora(tmp_path), base)
    values = dict.fromkeys(FIELDS) | {"prompt": "a {subject}", "base": base.id, "lora": FILE_OF + kept.name}
    spec = request(PERSON, values, store.settings)
    assert spec.lora == str(kept)
    assert filled_from(spec, base, [])["lora"] == FILE_OF + kept.name
    kept.unlink()
    for chosen, sentence in (
        (FILE_OF + kept.name, "no longer there"),
        (FILE_OF + "../x", "no longer"),
        (FILE, "first"),
    ):
        with pytest.raises(SpecError, match=sentence) as caught:
            request(PERSON, values | {"lora": chosen}, store.settings)
        assert caught.value.field == "lora"


def test_a_file_put_there_by_hand_is_looked_at_when_it_is_used(store, base, tmp_path):
    folder = store.person_dir(PERSON) / "loras"
    folder.mkdir(parents=True)
    lora(folder, width=768)
    with pytest.raises(SpecError, match="^“style.safetensors” was made for Stable Diffusion 1.5"):
        find_lora(store, PERSON, "style.safetensors", base)
