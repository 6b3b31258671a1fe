"""Names of layers in LoRA files, for the SDXL UNet as it was published and for the tiny one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from headshot_ui.families.protocol import LoadedBase
from headshot_ui.families.sdxl_parts.lora_file import place_of
from headshot_ui.families.sdxl_parts.lora_names import Topology, known_stems, kohya_stem, sgm_path
from tests.families.lora_maker import place, usual_layers

#: The entries of stabilityai/stable-diffusion-xl-base-1.0's unet/config.json that decide its shape.
PUBLISHED: dict[str, Any] = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}


@pytest.fixture(scope="module")
def published() -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**PUBLISHED)


def sd_scripts_names() -> set[str]:
    """What sd-scripts trains of SDXL's UNet, from the topology of Stability AI's own code alone.

    Nine input blocks, a middle and nine output blocks; channels multiply by 1, 2, 4 and two resnets stand on each
    level. Transformers are on the second (depth 2) and third level (depth 10): input blocks 4, 5 and 7, 8, the
    middle, output blocks 0 to 2 and 3 to 5.
    """
    depths = {f"input_blocks_{n}": 2 if n < 6 else 10 for n in (4, 5, 7, 8)} | {"middle_block": 10}
    depths |= {f"output_blocks_{n}": 10 if n < 3 else 2 for n in range(6)}
    names = set()
    for block, depth in depths.items():
        stem = f"lora_unet_{block}_1"
        names |= {f"{stem}_proj_in", f"{stem}_proj_out"}
        for number in range(depth):
            inner = f"{stem}_transformer_blocks_{number}"
            names |= {
                f"{inner}_{attn}_{to}" for attn in ("attn1", "attn2") for to in ("to_q", "to_k", "to_v", "to_out_0")
            }
            names |= {f"{inner}_ff_net_0_proj", f"{inner}_ff_net_2"}
    return names


def test_the_names_of_the_published_unet_are_the_722_of_sd_scripts(published: UNet2DConditionModel) -> None:
    topology = Topology.of(published.config)
    where = place_of("SDXL", {"unet": published}, topology)
    names = [kohya_stem(layer, topology) for layer in usual_layers(where)]
    assert len(names) == 722
    assert set(names) == sd_scripts_names()


def test_every_layer_has_a_name_of_its_own_and_is_found_by_all_of_them(published: UNet2DConditionModel) -> None:
    """Convolutions and embeddings too: 794 linear layers and convolutions in all."""
    topology = Topology.of(published.config)
    where = place_of("SDXL", {"unet": published}, topology)
    stems = [kohya_stem(layer, topology) for layer in where.shapes]
    assert None not in stems and len(set(stems)) == len(where.shapes) == 794
    known = known_stems(where.shapes, topology)
    for layer, stem in zip(where.shapes, stems, strict=True):
        path = layer.removeprefix("unet.")
        flat = path.replace(".", "_")
        for name in (stem, f"lora_unet_{flat}", f"unet_{flat}", f"diffusion_model_{flat}", f"lycoris_{flat}"):
            assert known[name] == layer
    # A name that stood for two layers would have been overwritten by the second.
    assert len(known) == sum(4 * (2 if sgm_path(layer[5:], topology) != layer[5:] else 1) for layer in where.shapes)


@pytest.mark.parametrize("tiny_one", [False, True])
def test_diffusers_reads_every_name_back_as_its_own(
    tiny_one: bool, published: UNet2DConditionModel, request: pytest.FixtureRequest
) -> None:
    """Its converter knows resnets, samplers and embeddings as well: an independent check of the formula."""
    unet = request.getfixturevalue("tiny").modules.unet if tiny_one else published
    topology = Topology.of(unet.config)
    where = place_of("SDXL", {"unet": unet}, topology)
    file = {}
    for index, layer in enumerate(where.shapes):
        stem = kohya_stem(layer, topology)
        file[f"{stem}.lora_down.weight"] = file[f"{stem}.lora_up.weight"] = torch.full((1, 1), float(index))
        file[f"{stem}.alpha"] = torch.tensor(1.0)
    state, _ = StableDiffusionXLPipeline.lora_state_dict(file, unet_config=unet.config)
    theirs = {}
    for name, tensor in state.items():
        stem = name.removesuffix(".weight").removesuffix(".down").removesuffix(".up")
        for ending in (".lora_A", ".lora_B", ".lora", "_lora", ".lora_linear_layer"):
            stem = stem.removesuffix(ending)
        theirs.setdefault(stem.replace(".processor.", "."), int(tensor))
    wrong = {layer: index for index, layer in enumerate(where.shapes)
             if theirs.get(layer, theirs.get(layer.removesuffix(".0"))) != index}  # fmt: skip
    assert not wrong


def test_text_encoders_keep_the_name_other_programs_look_for(tiny: LoadedBase) -> None:
    """transformers 5 calls the first encoder's layers ``encoder.…``; in files it is ``text_model.encoder.…``."""
    where = place(tiny)
    known = known_stems(where.shapes, where.topology)
    for number, part in ((1, "text_encoder"), (2, "text_encoder_2")):
        layer = f"{part}.text_model.encoder.layers.0.self_attn.q_proj"
        assert kohya_stem(layer, where.topology) == f"lora_te{number}_text_model_encoder_layers_0_self_attn_q_proj"
        for inside in ("text_model_", ""):
            for prefix in (f"lora_te{number}_", f"{part}_"):
                assert known[f"{prefix}{inside}encoder_layers_0_self_attn_q_proj"] == layer
    assert len(usual_layers(where, "text_encoder")) == len(usual_layers(where, "text_encoder_2")) == 12
    assert "text_encoder_2.text_projection" in where.shapes


def test_blocks_that_are_not_numbered_through_are_no_topology() -> None:
    with pytest.raises(ValueError, match="numbered"):
        Topology.of({"layers_per_block": [2, 2, 2], "up_block_types": ["UpBlock2D"]})
