"""Names of layers in LoRA files, for FLUX.1 as it was published and for a tiny one."""

from __future__ import annotations

import re

import pytest

from headshot_ui.families.flux_parts.lora_file import Place
from headshot_ui.families.flux_parts.lora_names import (
    _PREFIXES,
    CLIP,
    PARTS,
    T5,
    TRANSFORMER,
    bfl_layers,
    known_stems,
    kohya_layers,
    part_of,
)
from tests.families.flux.flux_loras import make_place, make_published


@pytest.fixture(scope="module")
def published() -> Place:
    return make_published()


@pytest.fixture(scope="module")
def tiny() -> Place:
    return make_place()


def sd_scripts_names() -> dict[str, int]:
    """What sd-scripts trains of FLUX.1, and how many outputs each has, from the makers' own code alone.

    networks/lora_flux.py takes every linear layer of DoubleStreamBlock and SingleStreamBlock, of which there are 19 and
    38; they are 3072 wide, feed-forward layers four times as much (flux/util.py, flux/modules/layers.py).
    """
    width, wide = 3072, 4 * 3072
    double = {"mod_lin": 6 * width, "attn_qkv": 3 * width, "attn_proj": width, "mlp_0": wide, "mlp_2": width}
    single = {"linear1": 3 * width + wide, "linear2": width, "modulation_lin": 3 * width}
    names = {
        f"lora_unet_double_blocks_{n}_{stream}_{name}": out
        for n in range(19)
        for stream in ("img", "txt")
        for name, out in double.items()
    }
    return names | {f"lora_unet_single_blocks_{n}_{name}": out for n in range(38) for name, out in single.items()}


def test_the_names_of_the_published_transformer_are_the_304_of_sd_scripts(published: Place) -> None:
    wanted = sd_scripts_names()
    names = kohya_layers(published.shapes)
    inside = {name: pieces for name, pieces in names.items() if "_blocks_" in name}
    assert len(inside) == 304 and inside.keys() == wanted.keys()
    for name, pieces in inside.items():
        assert sum(published.shapes[piece.layer][0] for piece in pieces) == wanted[name], name
    assert sorted(names.keys() - inside.keys()) == sorted(
        f"lora_unet_{name}"
        for name in ("img_in", "txt_in", "final_layer_linear", "final_layer_adaLN_modulation_1")
        + tuple(f"{part}_in_{side}_layer" for part in ("time", "vector", "guidance") for side in ("in", "out"))
    )


def test_every_layer_is_in_exactly_one_of_the_makers_layers_and_fills_it(published: Place, tiny: Place) -> None:
    for place in (published, tiny):
        pieces = [piece for found in bfl_layers(place.shapes).values() for piece in found]
        layers = [layer for layer in place.shapes if layer.startswith("transformer.")]
        assert sorted(piece.layer for piece in pieces) == sorted(layers)
        for name, found in bfl_layers(place.shapes).items():
            rows = sorted(pair for piece in found for pair in piece.rows or ())
            total = sum(place.shapes[piece.layer][0] for piece in found)
            ends = [0, *(stop for _, stop in rows)]
            assert not rows or (ends[-1] == total and [start for start, _ in rows] == ends[:-1]), name
            assert len({place.shapes[piece.layer][1] for piece in found}) == 1, name
    assert len([layer for layer in published.shapes]) == 19 * 14 + 38 * 6 + 10


def test_every_layer_is_found_by_all_of_its_names_and_no_name_means_two(tiny: Place) -> None:
    known = known_stems(tiny.shapes)
    names = 0
    for layer in tiny.shapes:
        part, _, path = layer.partition(".")
        for inside in {path, path.removeprefix("text_model.")}:
            for prefix in _PREFIXES[part]:
                (piece,) = known[prefix + inside.replace(".", "_")]
                assert piece.layer == layer and piece.rows is None
                names += 1
    theirs = len(bfl_layers(tiny.shapes)) + 2 * 4 + 2 * 3  # XLabs' names of two double and two single blocks
    # A name that stood for two layers would have been overwritten by the second.
    assert len(known) == names + theirs * len(_PREFIXES[TRANSFORMER])
    assert known.keys() >= kohya_layers(tiny.shapes).keys()


def test_the_part_is_known_without_the_base(tiny: Place, published: Place) -> None:
    for place in (tiny, published):
        for stem, pieces in known_stems(place.shapes).items():
            assert part_of(stem) == pieces[0].layer.partition(".")[0], stem
    for other in ("lora_unet_input_blocks_4_1_proj_in", "lora_te2_text_model_encoder_layers_0_mlp_fc1", "unet_conv_in",
                  "text_encoder_2_text_model_encoder_layers_0_mlp_fc1", "lora_unet_joint_blocks_0_x_block_attn_qkv",
                  "transformer_single_transformer_blocks_0_attn_to_out_0", "transformer_transformer_blocks_0_img_mod_1",
                  "lora_unet_double_blocks_0_img_mlp_fc1"):  # fmt: skip
        assert part_of(other) is None, other


def test_text_encoders_have_the_names_other_programs_look_for(tiny: Place) -> None:
    names = kohya_layers(tiny.shapes)
    for stem, layer in (
        ("lora_te1_text_model_encoder_layers_1_mlp_fc2", f"{CLIP}.text_model.encoder.layers.1.mlp.fc2"),
        ("lora_te3_encoder_block_1_layer_0_SelfAttention_q", f"{T5}.encoder.block.1.layer.0.SelfAttention.q"),
        ("lora_te3_encoder_block_0_layer_1_DenseReluDense_wi_0", f"{T5}.encoder.block.0.layer.1.DenseReluDense.wi_0"),
    ):
        assert names[stem][0].layer == layer
    counts = {part: sum(layer.startswith(f"{part}.") for layer in tiny.shapes) for part in PARTS}
    assert counts == {TRANSFORMER: 2 * 14 + 2 * 6 + 10, CLIP: 12, T5: 14}
    assert not any(re.search(r"\bshared|embed_tokens", layer) for layer in tiny.shapes)


def test_a_transformer_that_lacks_layers_has_names_for_the_others(tiny: Place) -> None:
    shapes = {layer: shape for layer, shape in tiny.shapes.items() if "norm" not in layer and "guidance" not in layer}
    names = kohya_layers(shapes)
    assert "lora_unet_double_blocks_0_img_attn_qkv" in names and "lora_unet_double_blocks_0_img_mod_lin" not in names
    assert {piece.layer for pieces in names.values() for piece in pieces} == shapes.keys()
