"""What other programs load without a word and without effect is refused here, or told to be without effect."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from headshot_ui.errors import ModelError
from headshot_ui.families.flux_parts import lora_facts
from headshot_ui.families.flux_parts.lora_write import kohya_tensors, save_lora
from headshot_ui.families.lora_parts.layers import LoraLayer
from headshot_ui.families.lora_parts.writing import diffusers_tensors
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.families.sdxl import FAMILY as SDXL
from tests.families.flux.flux_loras import (
    CLIP_CONFIG,
    T5_CONFIG,
    Tensors,
    by_hand,
    delta,
    make_place,
    make_transformer,
    random_layers,
)

BLOCK = "transformer.transformer_blocks.0"


def pair(stem: str, inside: int = 8, outside: int = 8, kohya: bool = True) -> Tensors:
    return by_hand(stem, torch.ones(2, inside), torch.ones(outside, 2), None, kohya)


@pytest.fixture(scope="module")
def info(tmp_path_factory: pytest.TempPathFactory) -> BaseInfo:
    """A base of which there are only configs."""
    folder = tmp_path_factory.mktemp("flux")
    make_transformer().save_config(folder / "transformer")
    for part, config in (("text_encoder", CLIP_CONFIG), ("text_encoder_2", T5_CONFIG)):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
    return BaseInfo("tiny-flux", "flux", "Tiny FLUX", folder, "FLUX.1 [dev] Non-Commercial License", "", 64)


@pytest.fixture(scope="module")
def good(info: BaseInfo) -> Tensors:
    """A LoRA that fits, in kohya's layout."""
    where = lora_facts.place_in_files(info)
    return kohya_tensors(random_layers(where, where.shapes), where)


@pytest.fixture
def refused(info: BaseInfo, tmp_path: Path) -> Callable[..., str]:
    def refused(content: Tensors, header: dict[str, str] | None = None) -> str:
        path = tmp_path / "x.safetensors"
        save_file(content, path, metadata=header)
        with pytest.raises(ModelError) as caught:
            lora_facts.check_lora(path, info)
        said = str(caught.value)
        assert said.endswith(".") and len(said) < 500 + len(str(path))
        return said.replace(str(path), "FILE")

    return refused


FOREIGN = {
    "Stable Diffusion XL": pair("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k", 2048),
    "Stable Diffusion XL, diffusers": pair("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", 2048,
                                           kohya=False),
    "Stable Diffusion XL or another": pair("lora_unet_input_blocks_4_1_proj_in"),
    "Stable Diffusion 1.5": pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768),
    "Stable Diffusion 3": pair("transformer.transformer_blocks.0.attn.to_q", 1536, 1536, kohya=False),
    "Stable Diffusion 3, large": pair("transformer.transformer_blocks.37.attn.add_q_proj", 2432, 2432, kohya=False),
    "Stable Diffusion 3, kohya": pair("lora_unet_joint_blocks_0_context_block_attn_qkv"),
    "FLUX.2": pair("transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", kohya=False),
    "FLUX.2, names of its own": pair("diffusion_model.double_stream_modulation_img.lin", kohya=False),
    "FLUX.2, wide": pair("diffusion_model.double_blocks.0.img_attn.qkv", 6144, 18432, kohya=False),
    "FLUX.2, klein": pair("lora_unet_single_blocks_0_linear2", 12288, 3072),
    "Qwen-Image": pair("transformer.transformer_blocks.0.img_mod.1", kohya=False),
    "Qwen-Image, attention": pair("transformer.transformer_blocks.59.attn.to_q", 3072, 3072, kohya=False),
    "Z-Image": pair("diffusion_model.noise_refiner.0.attention.to_q", kohya=False),
    "FLUX.2, feed-forward": pair("transformer.transformer_blocks.0.ff.linear_in", 3072, 18432, kohya=False),
    "Z-Image, layers alone": pair("diffusion_model.layers.3.attention.to_q", 3840, 3840, kohya=False),
    "HunyuanVideo": pair("diffusion_model.double_blocks.0.img_mlp.fc1", kohya=False),
    "Chroma": pair("diffusion_model.distilled_guidance_layer.in_proj", kohya=False),
    "a video model": pair("diffusion_model.blocks.0.cross_attn.q", kohya=False),
}  # fmt: skip


@pytest.mark.parametrize("family", FOREIGN)
def test_a_lora_of_another_family_is_named(family: str, refused: Callable[..., str], tmp_path: Path) -> None:
    said = refused(FOREIGN[family])
    assert said.startswith(f"FILE was made for {family.partition(',')[0]}") and "choose another LoRA" in said
    with pytest.raises(ModelError, match=family.partition(",")[0]):
        lora_facts.lora_facts(tmp_path / "x.safetensors", "flux")


def test_sdxl_names_it_the_other_way_round(good: Tensors, tmp_path: Path) -> None:
    save_file(good, tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="was made for FLUX.1"):
        SDXL.lora_facts(tmp_path / "x.safetensors")
    assert lora_facts.lora_facts(tmp_path / "x.safetensors", "flux").family == "flux"


def test_the_header_names_the_family_where_the_layers_do_not(refused: Callable[..., str]) -> None:
    strange = pair("lora_unet_double_blocks_7_img_mlp_0", 32, 128)
    for told, named in (("flux-2-dev/lora", "FLUX.2"), ("stable-diffusion-xl-v1-base/lora", "Stable Diffusion XL,"),
                        ("brand_new_1", "“brand_new_1”")):  # fmt: skip
        assert refused(strange, {"modelspec.architecture": told}).startswith(f"FILE was made for {named}")
    assert "another size or kind" in refused(strange, {"modelspec.architecture": "flux-1-dev/lora"})
    assert "trained for the family “sdxl”, not for “flux”" in refused(strange, {"family": "sdxl"})


def test_nothing_that_has_an_effect_is_passed_over(good: Tensors, refused: Callable[..., str]) -> None:
    for more in (
        pair("lora_unet_double_blocks_2_img_mlp_0", 32, 128),
        pair("lora_unet_single_blocks_9_linear1", 32, 224),
        pair("lora_te1_text_model_encoder_layers_99_mlp_fc1", 16, 32),
        pair("lora_te3_encoder_block_99_layer_0_SelfAttention_q", 24, 16),
        pair("lora_te1_text_model_embeddings_position_embedding", 16, 77),
        pair("lora_te3_shared", 24, 64),
    ):
        said = refused(good | more)
        assert f"(“{next(iter(more))}” does not fit)" in said
    name = "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"
    stem = name.removesuffix(".lora_down.weight")
    assert f"“{stem}” does not fit" in refused(good | {name: torch.ones(12, 33)})
    up = name.replace("down", "up")
    said = refused({key: tensor for key, tensor in good.items() if key != up})
    assert "half of “transformer_blocks.0.attn.to_q” in the transformer is missing" in said
    assert "not finite" in refused(good | {up: good[up] * math.nan})


def test_a_layer_is_said_once(good: Tensors, refused: Callable[..., str]) -> None:
    """Files exist that hold two layouts at once; which one counts is anybody's guess."""
    twice = pair(f"{BLOCK}.attn.to_q", 32, 32, kohya=False)
    assert f"says twice how “{BLOCK}.attn.to_q” changes" in refused(good | twice)
    same = {"lora_unet_img_in.lora_A.weight": torch.ones(2, 64)}
    assert "says twice how “lora_unet_img_in” changes" in refused(good | same)


def test_other_kinds_and_what_cannot_be_taken_apart(good: Tensors, refused: Callable[..., str]) -> None:
    control = {"img_in.lora_A.weight": torch.ones(2, 64), "img_in.lora_B.weight": torch.ones(32, 2),
               "img_in.lora_B.bias": torch.ones(32)}  # fmt: skip
    assert refused(control).startswith("FILE is a LoRA with biases")
    assert "whole differences" in refused(good | {"lora_unet_img_in.diff_b": torch.ones(32)})
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    by_input = pair(stem, 32, 96) | {f"{stem}.dora_scale": torch.ones(1, 32)}
    said = refused(by_input)
    assert "cannot be told apart exactly" in said and f"“{BLOCK}.attn.to_k”" in said


def test_what_has_no_effect_keeps_no_lora_out(good: Tensors, info: BaseInfo, tmp_path: Path) -> None:
    """Some programs write zeros beside a LoRA; and CLIP's last layer is not in FLUX.1's way."""
    zero = pair("lora_te3_shared", 24, 64)
    zero = {name: torch.zeros_like(tensor) if "up" in name else tensor for name, tensor in zero.items()}
    more = zero | pair("lora_te1_text_projection", 16, 16) | {"lora_unet_img_in.diff_b": torch.zeros(32)}
    path = tmp_path / "x.safetensors"
    save_file(good | more, path)
    lora_facts.check_lora(path, info)
    assert lora_facts.lora_facts(path, "flux").family == "flux"
    save_file(zero, path)
    with pytest.raises(ModelError, match="does not fit"):
        lora_facts.check_lora(path, info)
    with pytest.raises(ModelError, match="another kind of base model"):
        lora_facts.lora_facts(path, "flux")


def test_a_lora_with_guidance_is_refused_by_a_base_without(tmp_path: Path) -> None:
    from headshot_ui.families.flux_parts.lora_file import read_lora_file

    save_file(pair("lora_unet_guidance_in_in_layer", 256, 32), tmp_path / "x.safetensors")
    read_lora_file(tmp_path / "x.safetensors", make_place(guided=True), "flux")
    with pytest.raises(ModelError, match="lora_unet_guidance_in_in_layer.lora_down.weight” does not fit"):
        read_lora_file(tmp_path / "x.safetensors", make_place(guided=False), "flux")


def test_clip_alone_is_of_no_known_family(tmp_path: Path) -> None:
    """SDXL's first text encoder has the same names."""
    save_file(pair("lora_te1_text_model_encoder_layers_0_mlp_fc1"), tmp_path / "x.safetensors")
    with pytest.raises(ModelError, match="changes CLIP only"):
        lora_facts.lora_facts(tmp_path / "x.safetensors", "flux")


# --- facts and writing ----------------------------------------------------------------------------------
def test_facts_of_a_file(good: Tensors, info: BaseInfo, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in good.items()}, path, metadata={"ss_steps": "7"})
    facts = lora_facts.lora_facts(path, "flux")
    assert facts.modules == {"transformer": 2 * 10 + 2 * 3 + 10, "CLIP text encoder": 12, "T5 text encoder": 14}
    assert (facts.layout, facts.rank, facts.alpha, facts.one_rank) == ("kohya", 4, 4.0, False)
    assert (facts.dtype, facts.kind, facts.header) == ("bfloat16", "LoRA", {"ss_steps": "7"})
    where = lora_facts.place_in_files(info)
    save_file(diffusers_tensors(random_layers(where, where.shapes)), path)
    facts = lora_facts.lora_facts(path, "flux")
    assert facts.modules["transformer"] == 2 * 14 + 2 * 6 + 10
    assert (facts.layout, facts.rank, facts.alpha, facts.one_rank) == ("diffusers", 4, None, True)


def test_a_training_is_written_for_others_with_its_licence(info: BaseInfo, tmp_path: Path) -> None:
    where = lora_facts.place_in_files(info)
    layers = random_layers(where, [layer for layer in where.shapes if "attn" in layer and "text" not in layer])
    state = diffusers_tensors(layers)
    source = tmp_path / "run.safetensors"
    save_lora(
        source, state, {"rank": "4", "alpha": "8", "trigger": "tok", "steps": "20", "date": "2026-12-01T00:00:00Z"}
    )
    for layout in ("kohya", "diffusers"):
        data = lora_facts.lora_in_layout(layout, source, info, {"base": info.id, "base_title": info.title}, "me", None)
        assert data == lora_facts.lora_in_layout(
            layout, source, info, {"base": info.id, "base_title": info.title}, "me", None
        )
        path = tmp_path / "out.safetensors"
        path.write_bytes(data)
        lora_facts.check_lora(path, info)
        with safe_open(path, "pt") as file:
            header = file.metadata()
        assert header["modelspec.license"] == header["licence"] == "FLUX.1 [dev] Non-Commercial License"
        assert header["modelspec.architecture"] == "flux-1-dev/lora" and header["family"] == "flux"
        assert (header["trigger"], header["steps"], header["trained_rank"], header["trained_alpha"]) == (
            "tok", "20", "4", "8",
        )  # fmt: skip
        assert header.get("ss_base_model_version") == ("flux1" if layout == "kohya" else None)
        found = lora_facts.read_lora_file(path, where, "flux").layers
        for layer, one in layers.items():
            wanted = 2 * delta(one)  # alpha over rank
            read = found[layer]
            assert isinstance(read, LoraLayer) and torch.equal(delta(read), wanted)
    half = lora_facts.lora_in_layout("kohya", source, info, {}, "me", "float16")
    (tmp_path / "half.safetensors").write_bytes(half)
    tensors = load_file(tmp_path / "half.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    with pytest.raises(ModelError, match="no LoRA layout “a1111”"):
        lora_facts.lora_in_layout("a1111", source, info, {}, "me", None)
