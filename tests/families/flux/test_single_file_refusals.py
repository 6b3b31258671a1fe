"""A single file that is no FLUX.1, or only half of one, is told in a sentence and hides nothing else."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Format
from safetensors.torch import load_file, save_file

from headshot_ui import doctor, families
from headshot_ui.errors import ModelError
from headshot_ui.families.bases import damaged_weights
from headshot_ui.settings import Settings
from tests.families.flux.single_files import PREFIX, State, in_dtype, in_gguf, original_state, transformer_state
from tests.families.flux.test_single_file import settings_of


@pytest.fixture(scope="module")
def state(models_dir: Path) -> State:
    """The tiny dev under original names."""
    return original_state(transformer_state(models_dir / "dev"))


@pytest.fixture
def models(models_dir: Path, tmp_path: Path) -> Settings:
    """A models folder with one that lends."""
    shutil.copytree(models_dir / "dev", tmp_path / "models" / "FLUX.1-dev")
    return settings_of(tmp_path / "models")


Write = Callable[[State, Path], object]
QKV = "double_blocks.0.img_attn.qkv.weight"


def half(state: State, folder: Path) -> None:
    in_dtype(torch.bfloat16)(state, folder / "wrong.safetensors")
    cut(folder / "wrong.safetensors")


def half_gguf(state: State, folder: Path) -> None:
    in_gguf(Format.Q8_0)(state, folder / "wrong.gguf")
    cut(folder / "wrong.gguf")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1000])


def no_header(state: State, folder: Path) -> None:
    (folder / "wrong-flux1.gguf").write_bytes(b"GGUF")


def changed(name: str, change: Callable[[State], State]) -> Write:
    def write(state: State, folder: Path) -> None:
        save_file({key: tensor.contiguous() for key, tensor in change(dict(state)).items()}, folder / name)

    return write


def without(name: str) -> Write:
    return changed("wrong.safetensors", lambda state: {key: value for key, value in state.items() if key != name})


def with_more(**tensors: torch.Tensor) -> Write:
    more = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return changed("wrong.safetensors", lambda state: state | more)


def wide_input(channels: int) -> Write:
    return changed(
        "wrong.safetensors", lambda state: state | {"img_in.weight": torch.zeros(len(state["img_in.weight"]), channels)}
    )  # fmt: skip


def unknown_format(state: State, folder: Path) -> None:
    """A format that llama.cpp knows and this program does not."""
    writer = gguf.GGUFWriter(folder / "wrong.gguf", "flux")
    for name, tensor in state.items():
        numbers = np.zeros((*tensor.shape[:-1], 256), dtype=np.float32) if name == QKV else tensor.float().numpy()
        kind = Format.TQ2_0 if name == QKV else Format.F32
        writer.add_tensor(name, gguf.quantize(numbers, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


WRONG: dict[str, tuple[Write, str, bool]] = {
    "half": (half, r"damaged \(\d+ bytes instead of \d+\): get it again", True),
    "half a GGUF": (half_gguf, r"damaged \(\d+ bytes instead of \d+\): get it again", True),
    "no header": (no_header, "damaged: get it again", True),
    "a tensor less": (
        without("single_blocks.1.linear2.bias"), "incomplete .“single_blocks.1.linear2.bias” is missing.", True
    ),
    "a part less": (without("txt_in.weight"), "incomplete .“txt_in.weight” is missing.", True),
    "a wrong size": (
        with_more(double_blocks__0__txt_mlp__2__bias=torch.zeros(7)), r"txt_mlp.2.bias” has \(7,\)", False
    ),
    "half of the blocks": (
        changed("wrong.safetensors", lambda state: {k: v for k, v in state.items() if "single_blocks" not in k}),
        "its second half is missing", True
    ),
    "flat": (with_more(img_in__weight=torch.zeros(7)), "not built like FLUX.1: choose", False),
    "odd heads": (
        with_more(double_blocks__0__img_attn__norm__query_norm__scale=torch.zeros(7)), "not built like FLUX.1: choose",
        False
    ),
    "Fill": (wide_input(384), "FLUX.1 Fill, which draws only with a mask: choose a file of FLUX.1-dev", False),
    "Depth": (wide_input(128), "FLUX.1 Depth or Canny", False),
    "Kontext": (changed("wrong-flux1-Kontext.safetensors", dict), "by its name FLUX.1 Kontext", False),
    "Redux": (changed("wrong.safetensors", lambda _: {"redux_up.weight": torch.zeros(1)}), "FLUX.1 Redux", False),
    "FLUX.2": (with_more(double_stream_modulation_img__lin__weight=torch.zeros(1)), "FLUX.2, another family", False),
    "Chroma": (with_more(distilled_guidance_layer__in_proj__weight=torch.zeros(1)), "Chroma, another family", False),
    "a ControlNet": (with_more(controlnet_blocks__0__weight=torch.zeros(1)), "ControlNet", False),
    "something more": (with_more(clip_in__weight=torch.zeros(1)), "more than FLUX.1 has .“clip_in.weight”", False),
    "NF4": (
        with_more(double_blocks__0__img_mlp__0__weight__absmax=torch.zeros(1)), "shortened for another program", False
    ),
    "bytes": (
        changed("wrong.safetensors", lambda state: state | {QKV: state[QKV].to(torch.uint8)}),
        "the number format U8, which this program does not read: get it in bf16, fp8 or GGUF", False
    ),
    "factors of blocks": (
        with_more(double_blocks__0__img_mlp__0__weight_scale=torch.zeros(128, 2)), "in a way that this program", False
    ),
    "an unknown format": (unknown_format, "the number format TQ2_0, which this program does not read", False),
}  # fmt: skip


@pytest.mark.parametrize(("write", "sentence", "damaged"), WRONG.values(), ids=WRONG)
def test_what_cannot_be_used_is_told(
    write: Write, sentence: str, damaged: bool, state: State, models: Settings
) -> None:
    write(state, models.models_dir)
    (path,) = models.models_dir.glob("wrong*")
    with pytest.raises(ModelError, match=sentence) as refused:
        families.find_base(path.name, models)
    assert str(refused.value).startswith(f"{path} is ") and str(refused.value).endswith(".")
    (misfit,) = families.all_misfits(models)
    assert misfit.reason == str(refused.value) and misfit.damaged is damaged
    assert [info.id for info in families.all_bases(models)] == ["tiny-flux"]
    (check,) = doctor.check_misfits(models)
    assert check.advice == misfit.reason


@pytest.mark.parametrize("prefix", ["", PREFIX])
def test_without_a_folder_that_lends_it_is_told_how_to_get_one(prefix: str, state: State, models: Settings) -> None:
    in_dtype(torch.bfloat16, prefix)(state, models.models_dir / "flux1.safetensors")
    assert len(families.all_bases(models)) == 2
    for path in (models.models_dir / "FLUX.1-dev").glob("vae/*.safetensors"):
        path.unlink()  # half a folder lends nothing
    with pytest.raises(ModelError, match="without the text encoders, VAE and tokenizers") as refused:
        families.find_base("flux1", models)
    assert "models get flux-encoders" in str(refused.value) and str(models.models_dir) in str(refused.value)
    (misfit,) = families.all_misfits(models)
    assert not misfit.damaged and misfit.reason == str(refused.value)


def test_one_for_other_texts_is_lent_nothing(state: State, models: Settings) -> None:
    other = state | {"txt_in.weight": torch.zeros(len(state["txt_in.weight"]), 40)}
    in_dtype(torch.bfloat16)(other, models.models_dir / "flux1.safetensors")
    with pytest.raises(ModelError, match="has none that fits"):
        families.find_base("flux1", models)


def test_a_file_that_changed_since_it_was_found_is_told(state: State, models: Settings) -> None:
    path = models.models_dir / "flux1.safetensors"
    in_dtype(torch.bfloat16)(state, path)
    info = families.find_base("flux1", models)
    families.check_base(info)
    cut(path)
    assert damaged_weights(info) == (path,)
    for look in (families.check_base, lambda info: families.load_base(info, models)):
        with pytest.raises(ModelError, match=r"flux1.safetensors is damaged \(\d+ bytes instead of"):
            look(info)
    path.unlink()
    with pytest.raises(ModelError, match="flux1.safetensors is missing"):
        families.load_base(info, models)


def test_one_that_is_damaged_while_it_is_in_use_is_told(state: State, models: Settings) -> None:
    path = models.models_dir / "flux1.gguf"
    in_gguf(Format.Q8_0)(state, path)
    loaded = families.load_base(families.find_base("flux1", models), models)
    loaded.shed()
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(ModelError, match="flux1.gguf is damaged"):
        loaded.checkpoint_gradients("full")  # reads the transformer


def test_what_lies_in_a_whole_folder_is_no_file_of_its_own(state: State, models: Settings) -> None:
    """As the hub has it: the same transformer beside ``model_index.json``."""
    in_dtype(torch.bfloat16)(state, models.models_dir / "FLUX.1-dev" / "flux1-dev.safetensors")
    assert [info.id for info in families.all_bases(models)] == ["tiny-flux"] and not families.all_misfits(models)
    vae = load_file(next((models.models_dir / "FLUX.1-dev" / "vae").glob("*.safetensors")))
    save_file(vae, models.models_dir / "ae.safetensors")
    assert all(misfit.quiet or "FLUX" not in misfit.reason for misfit in families.all_misfits(models))
