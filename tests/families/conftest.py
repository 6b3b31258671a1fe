from __future__ import annotations

from pathlib import Path

import pytest

from headshot_ui import families
from headshot_ui.families.protocol import LoadedBase, LoadedRefiner
from headshot_ui.settings import Settings
from tests.tiny_models import make_tiny_refiner, make_tiny_sdxl


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_sdxl(folder / "tiny")
    make_tiny_sdxl(folder / "wider" / "sdxl", seed=1, base_id="wider-sdxl", width=24)
    make_tiny_sdxl(folder / "epsilon", seed=2, base_id="epsilon-sdxl", prediction_type="epsilon")
    make_tiny_refiner(folder / "refiner")
    make_tiny_refiner(
        folder / "epsilon-refiner",
        seed=8,
        refiner_id="epsilon-refiner",
        bases=("epsilon-sdxl",),
        prediction_type="epsilon",
        scored=False,
        zeros_for_empty_prompt=False,
    )
    return folder


@pytest.fixture(scope="session")
def settings(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings.from_environment(
        models_dir=models_dir, outputs_dir=tmp_path_factory.mktemp("outputs"), device="cpu", dtype="float32"
    )


@pytest.fixture(scope="session")
def _tiny(settings: Settings) -> LoadedBase:
    return families.load_base(families.find_base("tiny-sdxl", settings), settings)


@pytest.fixture
def tiny(_tiny: LoadedBase) -> LoadedBase:
    """The tiny base without any LoRA."""
    _tiny.use_loras(())
    return _tiny


@pytest.fixture(scope="session")
def refiner(settings: Settings) -> LoadedRefiner:
    """The tiny refiner of the tiny base."""
    base = families.find_base("tiny-sdxl", settings)
    return families.load_refiner(families.find_refiner(None, base, settings), settings)
