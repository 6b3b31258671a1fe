from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from headshot_ui import families
from headshot_ui.dataset.types import Dataset, PreparedPhoto
from headshot_ui.errors import Cancelled
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.settings import Settings
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store
from headshot_ui.training.runner import train
from tests.tiny_models import make_tiny_sdxl


@pytest.fixture(scope="session")
def models_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_sdxl(folder / "tiny")
    return folder


@pytest.fixture(scope="session")
def loaded(models_dir: Path) -> LoadedBase:
    settings = Settings.from_environment(models_dir=models_dir, device="cpu", dtype="float32")
    return families.load_base(families.find_base("tiny-sdxl", settings), settings)


@pytest.fixture
def store(models_dir: Path, tmp_path: Path) -> Store:
    return Store(
        Settings.from_environment(
            models_dir=models_dir, outputs_dir=tmp_path / "outputs", device="cpu", dtype="float32"
        )
    )


def make_dataset(folder: Path, sizes: tuple[tuple[int, int], ...] = ((64, 64),) * 5) -> Dataset:
    """One colourful noise picture per (height, width), the same each time."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = []
    for number, (height, width) in enumerate(sizes):
        pixels = np.random.default_rng(number).integers(0, 255, (height, width, 3), dtype=np.uint8)
        name = f"{number}.png"
        Image.fromarray(pixels).save(folder / name)
        caption = f"portrait of tok person, {('soft light', 'warm light', 'close-up')[number % 3]}"
        photos.append(
            PreparedPhoto(
                f"IMG_{number}.jpg", "train", "", crop=name, caption=caption, original_size=(height * 3, width * 3)
            )
        )
    photos.append(PreparedPhoto("IMG_blurred.jpg", "rejected", "It is blurred: take it again."))
    return Dataset("anna", folder, 64, "tok", "person", tuple(photos))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return make_dataset(tmp_path / "dataset")


@dataclass
class Listener:
    """A Reporter that keeps everything and, when told to, cancels at one step of a stage."""

    cancel_at: int | None = None
    cancel_in: str = "Training"
    heard: list[tuple[str, int, int]] = field(default_factory=list)
    previews: list[Path] = field(default_factory=list)
    metrics: list[Mapping[str, float]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __call__(
        self,
        stage: str,
        step: int,
        total: int,
        preview: Path | None = None,
        metrics: Mapping[str, float] | None = None,
        note: str | None = None,
    ) -> None:
        if note is not None:
            self.notes.append(note)
        self.heard.append((stage, step, total))
        if preview is not None:
            self.previews.append(preview)
        if metrics is not None:
            self.metrics.append(metrics)
        if stage == self.cancel_in and step == self.cancel_at:
            raise Cancelled

    def steps(self, stage: str) -> list[int]:
        return [step for heard, step, _ in self.heard if heard == stage]


def trained_to_the_end(
    spec: TrainSpec, store: Store, loaded: LoadedBase, dataset: Dataset, cancel_at: int | None = None
) -> tuple[Any, dict[str, bytes]]:
    """Losses and the bytes of every tensor of the LoRA; ``cancel_at``: stopped at that step, then gone on with."""
    if cancel_at:
        with pytest.raises(Cancelled):
            train(spec, store, loaded, dataset, Listener(cancel_at=cancel_at))
        spec = replace(spec, run=next(store.settings.outputs_dir.rglob("checkpoints")).parent.name)
    done = train(spec, store, loaded, dataset, Listener())
    return done.losses, {name: tensor.numpy().tobytes() for name, tensor in load_file(done.lora_path).items()}
