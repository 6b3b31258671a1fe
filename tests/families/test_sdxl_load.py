"""A broken base model is refused with a sentence that names the file, before it can draw nonsense."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from headshot_ui import families
from headshot_ui.errors import ModelError
from headshot_ui.families.bases import read_base
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.settings import Settings


@pytest.fixture
def copy(models_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models_dir / "tiny", tmp_path / "copy"))


def load(folder: Path, settings: Settings) -> LoadedBase:
    return families.load_base(read_base(folder / "base.json"), settings)


@pytest.mark.parametrize(
    "name",
    [
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
        "text_encoder/config.json",
        "text_encoder_2/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer_2/tokenizer_config.json",
    ],
)
def test_a_missing_file_is_named(name: str, copy: Path, settings: Settings) -> None:
    (copy / name).unlink()
    with pytest.raises(ModelError, match="missing") as caught:
        load(copy, settings)
    assert str(copy / name) in str(caught.value)


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def garbage(path: Path) -> None:
    path.write_bytes(b"not a model" * 50)


@pytest.mark.parametrize("spoil", [cut_short, empty, garbage])
@pytest.mark.parametrize("name", ["unet/diffusion_pytorch_model.safetensors", "text_encoder/model.safetensors"])
def test_damaged_weights_are_named(name: str, spoil: Callable[[Path], None], copy: Path, settings: Settings) -> None:
    spoil(copy / name)
    with pytest.raises(ModelError, match="damaged") as caught:
        load(copy, settings)
    assert str(copy / name) in str(caught.value)


def test_a_damaged_config_is_named(copy: Path, settings: Settings) -> None:
    (copy / "unet" / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"unet.config\.json is damaged"):
        load(copy, settings)


@pytest.mark.parametrize("entry", [{"prediction_type": "guess"}, {"beta_schedule": "wild"}, {"beta_start": "x"}])
def test_a_schedule_that_makes_no_sense_is_named(entry: dict[str, str], copy: Path, settings: Settings) -> None:
    path = copy / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | entry))
    with pytest.raises(ModelError, match=r"scheduler_config\.json cannot be used"):
        load(copy, settings)


def test_missing_tensors_are_not_filled_with_noise(copy: Path, settings: Settings) -> None:
    path = copy / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    del tensors["conv_out.weight"]
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"conv_out\.weight"):
        load(copy, settings)


def test_a_tokenizer_of_another_size_is_refused(copy: Path, settings: Settings) -> None:
    path = copy / "tokenizer" / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"] = {**data["model"], "merges": [], "vocab": {"a": 0, "b": 1}}
    path.write_text(json.dumps(data))
    with pytest.raises(ModelError, match="tokenizer"):
        load(copy, settings)


def test_parts_of_two_models_are_refused(copy: Path, settings: Settings) -> None:
    shutil.rmtree(copy / "text_encoder")
    shutil.copytree(copy / "text_encoder_2", copy / "text_encoder")
    with pytest.raises(ModelError):
        load(copy, settings)


def test_half_precision_file_names_are_read(copy: Path, settings: Settings) -> None:
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        (copy / part / f"{stem}.safetensors").rename(copy / part / f"{stem}.fp16.safetensors")
    assert load(copy, settings).info.id == "tiny-sdxl"


def test_float16_files_compute_in_float32_on_the_cpu(tiny: LoadedBase, models_dir: Path) -> None:
    stored = load_file(models_dir / "tiny" / "unet" / "diffusion_pytorch_model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    modules = tiny.modules
    for model in (modules.unet, modules.vae, *modules.text_encoders):
        assert model.dtype == torch.float32
        assert not model.training
        assert not any(parameter.requires_grad for parameter in model.parameters())


def test_loading_is_silent(
    models_dir: Path, settings: Settings, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        load(models_dir / "tiny", settings)
    out, err = capfd.readouterr()
    assert (out, err, caplog.records) == ("", "", [])
