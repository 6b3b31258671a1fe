"""What was prepared is what training learns: crops of several shapes, and captions edited by hand."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from headshot_ui import families, runs
from headshot_ui.dataset.prepare import load_dataset, prepare
from headshot_ui.dataset.types import Dataset
from headshot_ui.errors import Cancelled
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.settings import Settings
from headshot_ui.specs import PrepareSpec, TrainSpec
from headshot_ui.store import Store
from headshot_ui.training.cache import cache_photos, encode_texts
from headshot_ui.training.runner import train
from tests.dataset.drawn_faces import ColourDetector, jpeg, make_photo
from tests.tiny_models import make_tiny_sdxl
from tests.training.conftest import Listener

SPEC = TrainSpec(person="robin", base="tiny-sdxl", steps=5, rank=2, checkpoint_every=2, sample_every=100, seed=3)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedBase:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_sdxl(folder / "tiny")
    settings = Settings.from_environment(models_dir=folder, device="cpu", dtype="float32")
    return families.load_base(families.find_base("tiny-sdxl", settings), settings)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Settings.from_environment(outputs_dir=tmp_path / "outputs", device="cpu", dtype="float32"))


@pytest.fixture
def dataset(tmp_path: Path, store: Store, loaded: LoadedBase) -> Dataset:
    """Two nearly square photos, two from an upright phone and a wide one, for a base of 128 pixels."""
    album = tmp_path / "album"
    album.mkdir()
    sizes = ((260, 270), (270, 260), (270, 420), (280, 430), (420, 260))
    for seed, size in enumerate(sizes, start=1):
        (album / f"{seed}.jpg").write_bytes(jpeg(make_photo(seed, size=size, height=110)))
    info = dataclasses.replace(loaded.info, size_px=128)
    spec = PrepareSpec("robin", (str(album),), info.id, held_out=0)
    return prepare(spec, store, info, ColourDetector(), Listener())


def test_crops_of_several_shapes_are_learned_and_a_stopped_run_ends_bit_equal(
    dataset: Dataset, store: Store, loaded: LoadedBase
) -> None:
    sizes = []
    for photo in dataset.photos:
        with Image.open(dataset.folder / photo.crop) as crop:
            sizes.append(crop.size)
        height, width = photo.original_size
        assert height / width == pytest.approx(crop.height / crop.width, rel=0.01)
    assert sizes == [(128, 128), (128, 128), (96, 160), (96, 160), (160, 96)]
    texts = encode_texts(loaded, [photo.caption for photo in dataset.photos], Listener())
    items = cache_photos(loaded, dataset, texts, Listener())
    assert [item.size_px for item in items] == [(height, width) for width, height in sizes]
    assert len({item.shape for item in items}) == 3
    whole = train(SPEC, store, loaded, dataset, Listener())
    with pytest.raises(Cancelled):
        train(SPEC, store, loaded, dataset, Listener(cancel_at=3))
    run = runs.list_runs(store, "robin")[0]
    assert run.state == "cancelled"
    again = train(dataclasses.replace(SPEC, run=run.name), store, loaded, dataset, Listener())
    assert again.losses == whole.losses
    first, second = load_file(whole.lora_path), load_file(again.lora_path)
    assert all(first[name].equal(second[name]) for name in first) and first.keys() == second.keys()


def test_a_caption_edited_in_its_text_file_is_the_one_that_is_learned(
    dataset: Dataset, store: Store, loaded: LoadedBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    from headshot_ui.training import runner

    read: list[str] = []

    def listening(base, texts, report):
        read.extend(texts)
        return encode_texts(base, texts, report)

    monkeypatch.setattr(runner, "encode_texts", listening)
    (dataset.folder / "003.txt").write_text("portrait of tok person, in soft light\n", encoding="utf-8")
    (dataset.folder / "004.txt").write_text("portrait of tok person, warm light", encoding="utf-16")
    edited = load_dataset(store.dataset_dir("robin"))
    first = train(dataclasses.replace(SPEC, steps=1), store, loaded, edited, Listener())
    assert {"portrait of tok person, in soft light", "portrait of tok person, warm light"} <= set(read)
    assert not {photo.caption for photo in dataset.photos[2:4]} & set(read[2:])
    assert runs.load_run(first.run_dir).facts["dataset"] != runner.fingerprint(dataset)
