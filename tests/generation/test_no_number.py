"""A denoiser whose numbers overflow: said in words, and no black picture is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from headshot_ui import families
from headshot_ui.errors import ModelError
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.generation.records import read_ranking
from headshot_ui.generation.runner import generate
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import Store
from tests.generation.fakes import Reports, make_store
from tests.tiny_models import make_tiny_sdxl

SPEC = GenerateSpec("robin", "tiny-sdxl", presets=("navy-suit",), count=3, seed=7, steps=2)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    make_tiny_sdxl(tmp_path / "models" / "tiny")
    return make_store(tmp_path)


@pytest.fixture
def loaded(store: Store) -> LoadedBase:
    return families.load_base(families.find_base("tiny-sdxl", store.settings), store.settings)


def overflow_from(loaded: LoadedBase, call: int) -> None:
    """From this pass on the UNet answers with what a float16 that is too large becomes."""
    unet, passes = loaded.modules.unet, []

    def broken(module: torch.nn.Module, arguments: object, answer: tuple[torch.Tensor, ...]) -> object:
        passes.append(1)
        return tuple(tensor * float("inf") for tensor in answer) if len(passes) >= call else answer

    unet.register_forward_hook(broken)


def test_it_is_told_and_leaves_nothing(store: Store, loaded: LoadedBase) -> None:
    overflow_from(loaded, 1)
    with pytest.raises(ModelError, match="“not a number” while computing in float32, and would be black: choose"):
        generate(SPEC, store, loaded, Reports())
    left = store.headshots_dir("robin")
    assert [path.name for path in left.rglob("*") if path.name != "preview.png"] == []


def test_pictures_drawn_before_it_are_kept(store: Store, loaded: LoadedBase) -> None:
    overflow_from(loaded, SPEC.steps + 1)  # on the CPU one picture after the other: the second is broken
    with pytest.raises(ModelError, match="not a number"):
        generate(SPEC, store, loaded, Reports())
    (folder,) = (path for path in store.headshots_dir("robin").iterdir() if path.is_dir())
    (picture,) = read_ranking(folder)
    assert picture.seed == 7 and list(folder.glob("*.png")) == [picture.path]
    with Image.open(picture.path) as image:
        assert max(high for _, high in image.convert("RGB").getextrema()) > 0
