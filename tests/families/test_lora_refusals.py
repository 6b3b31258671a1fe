"""What other programs load without a word and without effect is refused here, in a sentence that says what it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file

from headshot_ui import families
from headshot_ui.errors import ModelError
from headshot_ui.families.lora_parts.writing import diffusers_tensors
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.families.sdxl import FAMILY
from headshot_ui.families.sdxl_parts.lora_write import kohya_tensors
from headshot_ui.settings import Settings
from tests.families.lora_maker import place, random_layers, usual_layers

Tensors = dict[str, torch.Tensor]


def pair(stem: str, inside: int = 8, outside: int = 8, kohya: bool = True) -> Tensors:
    down, up = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    return {f"{stem}.{down}.weight": torch.ones(2, inside), f"{stem}.{up}.weight": torch.ones(outside, 2)}


@pytest.fixture
def good(tiny: LoadedBase) -> Tensors:
    """A LoRA that fits, in kohya's layout."""
    where = place(tiny)
    return kohya_tensors(random_layers(where, usual_layers(where)), where.topology)


@pytest.fixture
def refused(tiny: LoadedBase, tmp_path: Path) -> Callable[..., str]:
    """The sentence for a file; it must be the same from the loaded base and from configs, and leave no LoRA on."""

    def refused(content: Tensors | bytes, header: dict[str, str] | None = None, name: str = "x.safetensors") -> str:
        path = tmp_path / name
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            save_file(content, path, metadata=header)
        with pytest.raises(ModelError) as loading:
            tiny.use_loras([(path, 1.0)])
        with pytest.raises(ModelError) as checking:
            families.check_lora(path, tiny.info)
        assert str(loading.value) == str(checking.value)
        assert not getattr(tiny.modules.unet, "peft_config", None)
        said = str(loading.value)
        assert str(path) in said and said.endswith(".") and len(said) < 400 + len(str(path))
        return said.replace(str(path), "FILE")

    return refused


FOREIGN = {
    "FLUX": pair("transformer.single_transformer_blocks.0.attn.to_q", kohya=False),
    "FLUX, kohya": pair("lora_unet_double_blocks_0_img_attn_qkv"),
    "Stable Diffusion 3": pair("transformer.transformer_blocks.0.attn.add_q_proj", kohya=False),
    "Stable Diffusion 3, kohya": pair("lora_unet_joint_blocks_0_context_block_attn_qkv"),
    "Stable Diffusion 1.5": pair("lora_te_text_model_encoder_layers_0_self_attn_q_proj"),
    "Stable Diffusion 1.5, UNet": pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768),
    "Stable Diffusion 1.5, diffusers": pair("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", 768,
                                            kohya=False),
    "Stable Diffusion 2": pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 1024),
    "Stable Diffusion XL's refiner": pair("lora_unet_input_blocks_4_1_transformer_blocks_3_attn2_to_k", 1280),
    "Qwen-Image": pair("transformer.transformer_blocks.0.img_mod.1", kohya=False),
    "Z-Image": pair("diffusion_model.noise_refiner.0.attention.to_q", kohya=False),
    "a video model": pair("diffusion_model.blocks.0.cross_attn.q", kohya=False),
}  # fmt: skip


@pytest.mark.parametrize("family", FOREIGN)
def test_a_lora_of_another_family_is_named(family: str, refused: Callable[..., str], tmp_path: Path) -> None:
    said = refused(FOREIGN[family])
    assert said.startswith(f"FILE was made for {family.partition(',')[0]}") and "choose another LoRA" in said
    if family == "FLUX":  # which is a family of its own
        assert families.lora_facts(tmp_path / "x.safetensors").family == "flux"
        return
    with pytest.raises(ModelError, match=family.partition(",")[0]):
        FAMILY.lora_facts(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("entry", "told", "named"),
    [("ss_base_model_version", "sd_v1", "Stable Diffusion 1.5"),
     ("ss_base_model_version", "sd_v2_v", "Stable Diffusion 2"),
     ("ss_base_model_version", "flux1", "FLUX.1"), ("modelspec.architecture", "flux-2-dev/lora", "FLUX.2"),
     ("modelspec.architecture", "stable-diffusion-v3-medium/lora", "Stable Diffusion 3"),
     ("modelspec.architecture", "stable-diffusion-xl-v1-refiner/lora", "Stable Diffusion XL's refiner"),
     ("ss_base_model_version", "brand_new_1", "“brand_new_1”")],
)  # fmt: skip
def test_the_header_names_the_family_where_the_layers_do_not(
    entry: str, told: str, named: str, refused: Callable[..., str]
) -> None:
    said = refused(pair("lora_unet_down_blocks_7_attentions_0_proj_in"), {entry: told})
    assert said.startswith(f"FILE was made for {named}, not for a base model like “Tiny")


def test_a_header_alone_keeps_no_fitting_lora_out(good: Tensors, tiny: LoadedBase, tmp_path: Path) -> None:
    """Relatives of SDXL have names of their own; what fits in every layer is used."""
    save_file(good, tmp_path / "x.safetensors", metadata={"ss_base_model_version": "some_sdxl_child"})
    tiny.use_loras([(tmp_path / "x.safetensors", 1.0)])
    save_file(good, tmp_path / "x.safetensors", metadata={"ss_base_model_version": "nobody_knows"})
    tiny.use_loras([(tmp_path / "x.safetensors", 1.0)])
    assert families.lora_facts(tmp_path / "x.safetensors").family == "sdxl"


def test_ours_says_for_which_family_it_was_trained(good: Tensors, refused: Callable[..., str]) -> None:
    assert refused(good, {"family": "flux"}).startswith("FILE was trained for the family “flux”, not for “sdxl”")


# --- another topology ------------------------------------------------------------------------------------
def test_another_topology_is_refused_even_for_a_single_layer(good: Tensors, refused: Callable[..., str]) -> None:
    """diffusers applies the rest and warns in its log; here the whole file is refused."""
    stem = "lora_unet_input_blocks_99_1_proj_in"
    assert f"(“{stem}.lora_down.weight” does not fit)" in refused(good | pair(stem, 16, 16))
    name = next(name for name in good if name.endswith("proj_in.lora_down.weight"))
    assert "another size or kind" in refused(good | {name: torch.ones(4, 17)})
    assert "another size or kind" in refused(good | {name: torch.ones(3, *good[name].shape[1:])}), "ranks disagree"


def test_a_lora_for_the_full_size_is_refused_by_a_small_base(
    tiny: LoadedBase, settings: Settings, refused: Callable[..., str]
) -> None:
    wider = families.load_base(families.find_base("wider-sdxl", settings), settings)
    where = place(wider)
    assert "another size or kind" in refused(diffusers_tensors(random_layers(where, usual_layers(where, "unet"))))


def test_text_encoder_keys_are_never_dropped(good: Tensors, refused: Callable[..., str]) -> None:
    assert "does not fit" in refused(good | pair("lora_te1_text_model_encoder_layers_99_mlp_fc1", 16, 32))
    assert "does not fit" in refused(good | pair("lora_te3_encoder_block_0", 16, 32))


# --- other kinds -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("kind", "names"),
    [("an OFT", ("oft_blocks",)), ("an (IA)³", ("weight", "on_input")),
     ("a file of whole differences", ("diff",)),
     ("a LoRA with biases", ("lora_A.weight", "lora_B.weight", "lora_B.bias"))],
)  # fmt: skip
def test_relatives_of_lora_are_called_by_their_name(
    kind: str, names: tuple[str, ...], refused: Callable[..., str]
) -> None:
    stem = "lora_unet_middle_block_1_proj_in"
    said = refused({f"{stem}.{name}": torch.ones(2, 2) for name in (*names, "alpha")})
    assert said.startswith(f"FILE is {kind}") and "choose a plain LoRA" in said


def test_a_plain_locon_is_taken(tiny: LoadedBase, tmp_path: Path) -> None:
    """Convolutions with two matrices are LoRA like any other."""
    where = place(tiny)
    layers = [layer for layer in where.shapes if len(where.shapes[layer]) == 4]
    save_file(kohya_tensors(random_layers(where, layers), where.topology), tmp_path / "x.safetensors")
    tiny.use_loras([(tmp_path / "x.safetensors", 1.0)])
    assert len(layers) > 10


# --- no LoRA at all ----------------------------------------------------------------------------------------
def test_whole_models_embeddings_and_empty_files(tiny: LoadedBase, refused: Callable[..., str]) -> None:
    checkpoint = {"model.diffusion_model.input_blocks.0.0.weight": torch.ones(1), "first_stage_model.x": torch.ones(1)}
    assert refused(checkpoint).startswith("FILE is a whole model and not a LoRA: put it among the base models")
    unet = {name: tensor.contiguous() for name, tensor in tiny.modules.unet.state_dict().items()}
    assert "is a whole model" in refused(unet)
    assert "is an embedding (textual inversion)" in refused(
        {"clip_l": torch.ones(2, 768), "clip_g": torch.ones(2, 1280)}
    )
    assert "holds no tensor at all" in refused({})
    assert "is no LoRA" in refused({"something": torch.ones(2)})
    assert "damaged (an empty file)" in refused(b"")


def test_damaged_files(good: Tensors, refused: Callable[..., str]) -> None:
    data = save(good)
    assert "is damaged (" in refused(data[:-100]) and "bytes instead of" in refused(data[:-100])
    assert "is damaged" in refused(data[:100])
    assert "is damaged" in refused(b"<!DOCTYPE html><title>Not found</title>" * 10)
    up = next(name for name in good if name.endswith(".lora_up.weight"))
    assert "is incomplete (half of “" in refused({name: tensor for name, tensor in good.items() if name != up})
    assert "not finite" in refused(good | {up: good[up] * torch.nan})


@pytest.mark.parametrize("name", ["x.pt", "x.bin", "x.ckpt", "x.pth", "x.safetensors"])
def test_pickles_are_refused_whatever_they_are_called(
    name: str, good: Tensors, refused: Callable[..., str], tmp_path: Path
) -> None:
    for new in (True, False):
        torch.save(good, tmp_path / "pickle", _use_new_zipfile_serialization=new)
        said = refused((tmp_path / "pickle").read_bytes(), name=name)
        assert "is a pickle file" in said and "take the .safetensors file" in said


def test_no_safetensors_file_looks_like_a_pickle(good: Tensors, tiny: LoadedBase, tmp_path: Path) -> None:
    """Its first bytes are the length of the header: 0x02…80 of it begins like a pickle."""
    data = save(good)
    begin = 8 + int.from_bytes(data[:8], "little")
    for length in (0x40280, 0x40380, 0x40480):
        header = json.dumps(json.loads(data[8:begin])).encode()
        assert len(header) < length
        path = tmp_path / "x.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + header.ljust(length) + data[begin:])
        families.check_lora(path, tiny.info)


def test_a_lora_that_is_not_there(tiny: LoadedBase, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not there: train one, or choose another"):
        families.check_lora(tmp_path / "none.safetensors", tiny.info)
