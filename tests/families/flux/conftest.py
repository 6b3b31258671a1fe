from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from headshot_ui import families
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.settings import Settings
from tests.tiny_flux import make_tiny_flux


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux-models")
    make_tiny_flux(folder / "dev", shards=True)
    make_tiny_flux(folder / "schnell", seed=1, base_id="tiny-schnell", few_steps=True)
    return folder


@pytest.fixture(scope="session")
def settings(models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    return Settings.from_environment(
        models_dir=models_dir, outputs_dir=tmp_path_factory.mktemp("outputs"), device="cpu", dtype="float32"
    )


@pytest.fixture(scope="session")
def _tiny(settings: Settings) -> LoadedBase:
    return families.load_base(families.find_base("tiny-flux", settings), settings)


@pytest.fixture
def tiny(_tiny: LoadedBase) -> LoadedBase:
    """Like FLUX.1-dev, without any LoRA."""
    _tiny.use_loras(())
    return _tiny


@pytest.fixture(scope="session")
def schnell(settings: Settings) -> LoadedBase:
    """Like FLUX.1-schnell."""
    return families.load_base(families.find_base("tiny-schnell", settings), settings)


def pipeline_of(folder: Path) -> Any:
    """diffusers' own, which a test compares with."""
    from diffusers import FluxPipeline

    from headshot_ui.families.shared_parts.load import quiet

    with quiet():
        pipeline = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
