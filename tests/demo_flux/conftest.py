"""Robin, learned by the demo FLUX, once for all tests that look at the result."""

from __future__ import annotations

from pathlib import Path

import pytest

from headshot_ui.settings import Settings
from tools.demo_models import measure_people
from tools.demo_models.measure_people import Bench, Learned

MODELS = Path(__file__).parents[2] / "models"


@pytest.fixture(scope="session")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """Detector, recogniser, classifier, gallery and held-back photos of the shipped demo."""
    settings = Settings.from_environment(models_dir=MODELS, outputs_dir=tmp_path_factory.mktemp("flux"), device="cpu")
    return measure_people.open_bench(settings, "demo-flux")


@pytest.fixture(scope="session")
def robin(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """The main demo person: 16 pictures before training, all default settings, 16 after."""
    return measure_people.learn(bench, "robin", tmp_path_factory.mktemp("robin"), each=2)
