"""A FLUX.1 in a single file through the whole program: listed, trained, gone on with, drawn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType as Format
from PIL import Image

from headshot_ui import families
from headshot_ui.cli import main
from headshot_ui.engine import Engine
from headshot_ui.families.flux_parts import found
from headshot_ui.logs import stop_log
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec, HeadshotsSpec, PrepareSpec, TrainSpec
from headshot_ui.store import Store, read_png_metadata
from tests.families.flux.single_files import Written, in_gguf, scaled
from tests.families.flux.test_flux_whole import without_faces
from tests.families.flux.test_single_file import make, settings_of
from tests.tiny_flux import make_tiny_flux
from tests.training.conftest import make_dataset, trained_to_the_end

TRAIN = TrainSpec("anna", "flux1", steps=4, rank=2, checkpoint_every=2, sample_every=100, batch_size=2, seed=3,
                  learning_rate=0.01)  # fmt: skip
GENERATE = GenerateSpec("anna", "flux1", prompt="portrait of {subject}", count=2, steps=2)


@pytest.fixture(autouse=True)
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(found, "SIZE_PX", 64)


@pytest.fixture(scope="module", params=["scaled float8", "Q8_0"])
def made(request: pytest.FixtureRequest, models_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Written:
    place = tmp_path_factory.mktemp("single")
    other = make_tiny_flux(tmp_path_factory.mktemp("other") / "other", seed=7)
    ways = {
        "scaled float8": ("flux1.safetensors", scaled("scale_weight", per_row=False)),
        "Q8_0": ("flux1.gguf", in_gguf(Format.Q8_0)),
    }
    return make(models_dir / "dev", other, place, ways[request.param])


@pytest.fixture
def settings(made: Written, tmp_path: Path) -> Settings:
    return replace(settings_of(made.file.parent), outputs_dir=tmp_path / "outputs")


@pytest.fixture
def engine(settings: Settings) -> Iterator[Engine]:
    with Engine(settings, without_faces) as engine:
        yield engine
    stop_log()


def test_the_command_line_knows_it_by_its_name(
    made: Written, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--models", str(made.file.parent), "--outputs", str(tmp_path), "--device", "cpu"]
    asked = ["generate", "--person", "anna", "--base", made.file.name, "--prompt", "portrait", "--plan", "--json"]
    code = main([*asked, *places])
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0 and told["fits"] is True, told
    assert main([*asked[:4], "nothing.gguf", *asked[5:], *places]) == 1
    assert "flux1" in capsys.readouterr().err, "it is among those that can be chosen"


def test_photos_become_a_lora_and_pictures(engine: Engine) -> None:
    train_ = TrainSpec("anna", "flux1", learning_rate=0.05, steps=2, rank=4)
    spec = HeadshotsSpec(PrepareSpec("anna", ("photos",), "flux1"), train_, replace(GENERATE, seed=4))
    assert engine.forecast(spec).fits
    last = engine.submit(spec).wait(120)
    assert last.error is None, engine.log_file and engine.log_file.read_text("utf-8")
    trained, generated = last.result.trained, last.result.generated
    with_lora = {picture.path.name: Image.open(picture.path).tobytes() for picture in generated.pictures}
    without = {path.name: Image.open(path).tobytes() for path in (trained.run_dir / "before").rglob("*-prompt-*.png")}
    assert len(with_lora) == 2 and with_lora.keys() == without.keys()
    assert all(with_lora[name] != without[name] for name in with_lora), "the LoRA changes the pictures"
    assert read_png_metadata(generated.pictures[0].path)["request"]["base"] == "flux1"


def test_a_stopped_training_ends_as_one_that_was_not_and_as_on_the_folder(
    made: Written, settings: Settings, tmp_path: Path
) -> None:
    dataset = make_dataset(tmp_path / "dataset", ((64, 64),) * 3)
    whole = settings_of(made.folder.parent)
    ends = []
    for name, at, cancel_at in (("flux1", settings, None), ("flux1", settings, 3), ("tiny-flux", whole, None)):
        loaded = families.load_base(families.find_base(name, at), at)
        store = Store(replace(settings, outputs_dir=tmp_path / f"{name} {cancel_at}"))
        ends.append(trained_to_the_end(replace(TRAIN, base=name), store, loaded, dataset, cancel_at))
    assert len(ends[0][0]) == 4 and ends[0] == ends[1]
    assert ends[0][0] == ends[2][0], "the folder with the same numbers learns the same"
    assert {name: ends[0][1][name] == ends[2][1][name] for name in ends[0][1]} == dict.fromkeys(ends[2][1], True)
