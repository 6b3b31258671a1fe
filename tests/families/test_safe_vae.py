"""The VAE that float16 does not overflow: when it takes the place of the base's own, and that its pictures are its."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headshot_ui import families
from headshot_ui.errors import ModelError
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.families.sdxl_parts import source
from headshot_ui.families.sdxl_parts.files import SAFE_VAE
from headshot_ui.settings import Settings
from tests.tiny_models import make_tiny_sdxl

OWN_32 = (False, torch.float32)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose VAE must not compute in float16, as SDXL's, and the VAE of another beside it."""
    folder = tmp_path_factory.mktemp("models")
    make_tiny_sdxl(folder / "tiny")
    change(folder / "tiny" / "vae", force_upcast=True)
    shutil.copytree(make_tiny_sdxl(folder / "other", 5, base_id="other-sdxl") / "vae", folder / SAFE_VAE)
    return folder


@pytest.fixture
def base(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[BaseInfo, Settings]:
    """The base and the settings of a card that computes in float16, on files of this test's own."""
    shutil.copytree(models, tmp_path / "models")
    monkeypatch.setattr("headshot_ui.settings._usable", lambda device: True)
    settings = Settings.from_environment(root=tmp_path, device="cuda", dtype="float16", environment={})
    return families.find_base("tiny-sdxl", settings), settings


def change(vae: Path, **entries: object) -> None:
    config = vae / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text("utf-8")) | entries), "utf-8")


def chosen(base: tuple[BaseInfo, Settings]) -> tuple[bool, torch.dtype]:
    """(whether the safe one, the number format), and that the family tells the same of it."""
    info, settings = base
    found = source.Source.find(info, settings)
    told = families.other_vae(info, settings)
    assert (told is not None) is (found.vae_folder == settings.models_dir)
    return told is not None, found.vae_dtype


def test_in_float16_the_safe_one_decodes_where_it_is_installed(base: tuple[BaseInfo, Settings]) -> None:
    info, settings = base
    assert chosen(base) == (True, torch.float16)
    told = families.other_vae(info, settings)
    assert told is not None and told.id == SAFE_VAE
    assert told.weights == (settings.models_dir / SAFE_VAE / "diffusion_pytorch_model.safetensors",)
    shutil.rmtree(settings.models_dir / SAFE_VAE)
    assert chosen(base) == OWN_32


def of_other_latents(info: BaseInfo, settings: Settings) -> Settings:
    change(settings.models_dir / SAFE_VAE, scaling_factor=0.25)
    return settings


def with_a_vae_that_does_not_overflow(info: BaseInfo, settings: Settings) -> Settings:
    change(info.folder / "vae", force_upcast=False)
    return settings


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        (lambda _, settings: replace(settings, wanted_dtype="bfloat16"), OWN_32),
        (lambda _, settings: replace(settings, wanted_dtype="float32"), OWN_32),
        (lambda _, settings: replace(settings, wanted_device="cpu"), OWN_32),
        (of_other_latents, OWN_32),
        (with_a_vae_that_does_not_overflow, (False, torch.float16)),
    ],
)
def test_elsewhere_the_own_one_does(
    base: tuple[BaseInfo, Settings], changed: Callable[[BaseInfo, Settings], Settings], expected: tuple[bool, object]
) -> None:
    assert chosen((base[0], changed(*base))) == expected


def test_half_a_download_is_named(base: tuple[BaseInfo, Settings]) -> None:
    weights = base[1].models_dir / SAFE_VAE / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError, match=SAFE_VAE):
        families.load_base(*base)


def test_its_weights_are_those_that_decode(base: tuple[BaseInfo, Settings], monkeypatch: pytest.MonkeyPatch) -> None:
    info, card = base
    settings = replace(card, wanted_device="cpu", wanted_dtype="float32")
    own = families.load_base(info, settings)
    other = families.load_base(families.find_base("other-sdxl", settings), settings)
    monkeypatch.setattr(source, "choose_vae", lambda *_: (settings.models_dir, torch.float32))
    swapped = families.load_base(info, settings)
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pictures = [loaded.decode_latents(latents)[0].tobytes() for loaded in (own, other, swapped)]
    assert pictures[0] != pictures[1] == pictures[2]
    assert (own.other_vae, swapped.other_vae) == (None, families.other_vae(info, settings))
