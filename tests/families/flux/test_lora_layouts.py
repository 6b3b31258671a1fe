"""LoRA files of FLUX.1 in every layout: in, out, and in again, tensor by tensor; and what they do to a transformer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from headshot_ui.families.flux_parts.lora_file import BFL, XLABS, Place, read_lora_file
from headshot_ui.families.flux_parts.lora_names import TRANSFORMER, bfl_layers, kohya_layers
from headshot_ui.families.flux_parts.lora_write import kohya_tensors, lora_bytes
from headshot_ui.families.lora_parts.fused import united
from headshot_ui.families.lora_parts.in_model import _put_on
from headshot_ui.families.lora_parts.layers import DIFFUSERS, KOHYA_LAYOUT, Layer, LoraLayer
from headshot_ui.families.lora_parts.relatives import Change, RelatedLayer
from headshot_ui.families.lora_parts.writing import diffusers_tensors
from headshot_ui.families.shared_parts.load import quiet
from tests.families.flux.flux_loras import (
    WIDTH,
    Tensors,
    by_hand,
    delta,
    make_place,
    make_transformer,
    part_of,
    random_layers,
    run,
)

FIRST = "transformer.transformer_blocks.0"
SINGLE = "transformer.single_transformer_blocks.1"
QKV = tuple(f"{FIRST}.attn.{to}" for to in ("to_q", "to_k", "to_v"))
FOUR = (*(f"{SINGLE}.attn.{to}" for to in ("to_q", "to_k", "to_v")), f"{SINGLE}.proj_mlp")


@pytest.fixture(scope="module")
def tiny() -> Place:
    return make_place()


@pytest.fixture
def read(tiny: Place, tmp_path: Path):
    def read(tensors: Tensors | bytes, header: dict[str, str] | None = None) -> dict[str, Layer]:
        path = tmp_path / "x.safetensors"
        if isinstance(tensors, bytes):
            path.write_bytes(tensors)
        else:
            save_file(tensors, path, metadata=header)
        return dict(read_lora_file(path, tiny, "flux").layers)

    return read


def same(found: dict[str, Layer], wanted: dict[str, LoraLayer]) -> bool:
    """Bit by bit, and of the same strength."""
    return found.keys() == wanted.keys() and all(
        isinstance(one := found[layer], LoraLayer)
        and one.down.dtype == wanted[layer].down.dtype
        and torch.equal(one.down, wanted[layer].down)
        and torch.equal(one.up, wanted[layer].up)
        and one.strength == wanted[layer].strength
        for layer in wanted
    )


# --- out and in again -----------------------------------------------------------------------------------
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("alpha", [None, 4.0, 2.0, 16.0, 0.9])
def test_separate_layers_come_back_bit_by_bit_from_kohya_s_layout(
    alpha: float | None, dtype: torch.dtype, tiny: Place, read
) -> None:
    """Transformer and both text encoders; query, key and value are one layer in between."""
    layers = random_layers(tiny, tiny.shapes, alpha=alpha, dtype=dtype)
    tensors = kohya_tensors(layers, tiny)
    assert tensors["lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight"].shape == (12, WIDTH)
    assert tensors["lora_unet_single_blocks_1_linear1.lora_up.weight"].shape == (7 * WIDTH, 16)
    assert same(read(tensors), layers)
    assert same(read(lora_bytes(KOHYA_LAYOUT, layers, tiny, {}, "x")), layers)


def test_ranks_of_their_own_layers_that_are_missing_and_zeros(tiny: Place, read) -> None:
    """HF's own script trains attention only; a gap in the fused layer is no layer with zeros."""
    layers: dict[str, LoraLayer] = {}
    for rank, layer in zip((3, 5, 2), QKV, strict=True):
        layers |= random_layers(tiny, [layer], rank=rank, alpha=2.0 * rank, seed=rank)
    layers |= random_layers(tiny, FOUR[:3], rank=4)
    layers |= random_layers(tiny, [f"{FIRST}.attn.add_k_proj"], rank=4)
    assert same(read(kohya_tensors(layers, tiny)), layers)
    layers[QKV[1]].up[:, 2] = 0  # numbers of a rank that happen to be zero
    layers[FOUR[1]].up[:, 0] = layers[FOUR[2]].up[:, 3] = 0
    assert same(read(kohya_tensors(layers, tiny)), layers)
    fresh = {layer: LoraLayer(one.down, torch.zeros_like(one.up)) for layer, one in layers.items()}
    assert all(not delta(one).any() for one in read(kohya_tensors(fresh, tiny)).values())


def test_a_file_put_together_by_sd_scripts_comes_out_with_the_same_bytes(tiny: Place, read) -> None:
    """As its converter writes it: everything in one type, alpha too, which is the sum of the ranks."""
    layers = random_layers(tiny, tiny.shapes, alpha=4.0, dtype=torch.bfloat16)
    source = kohya_tensors(layers, tiny)
    assert {tensor.dtype for tensor in source.values()} == {torch.bfloat16}
    stem = "lora_unet_double_blocks_0_img_attn_qkv"
    assert float(source[f"{stem}.alpha"]) == 12
    found = {layer: one for layer, one in read(source).items() if isinstance(one, LoraLayer)}
    again = kohya_tensors(found, tiny)
    assert again.keys() == source.keys()
    assert all(again[name].dtype == torch.bfloat16 and torch.equal(again[name], source[name]) for name in source)


def test_layers_of_different_strength_are_as_strong_in_one(tiny: Place, read) -> None:
    layers = {**random_layers(tiny, QKV[:1], alpha=1.0), **random_layers(tiny, QKV[1:], alpha=8.0, seed=4)}
    found = read(kohya_tensors(layers, tiny))
    assert all(torch.equal(delta(found[layer]), delta(layers[layer])) for layer in QKV), "powers of two are exact"
    layers[QKV[0]] = LoraLayer(layers[QKV[0]].down, layers[QKV[0]].up, torch.tensor(0.7))
    found = read(kohya_tensors(layers, tiny))
    for layer in QKV:
        wanted = delta(layers[layer])
        assert (delta(found[layer]) - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_file_of_sd_scripts_comes_out_with_the_same_names_and_bytes(dtype: torch.dtype, tiny: Place, read) -> None:
    """Trained in one piece: query, key and value share what goes down."""
    source: Tensors = {}
    generator = torch.Generator().manual_seed(1)
    for stem, pieces in kohya_layers(tiny.shapes).items():
        out = sum(tiny.shapes[piece.layer][0] for piece in pieces)
        down = torch.randn(4, tiny.shapes[pieces[0].layer][1], generator=generator).to(dtype)
        up = torch.randn(out, 4, generator=generator).to(dtype)
        source |= by_hand(stem, down, up, None) | {f"{stem}.alpha": torch.tensor(2.0, dtype=dtype)}
    found = read(source)
    assert found.keys() == tiny.shapes.keys()
    again = kohya_tensors({layer: one for layer, one in found.items() if isinstance(one, LoraLayer)}, tiny)
    assert again.keys() == source.keys()
    swapped = "lora_unet_final_layer_adaLN_modulation_1"
    for name, tensor in source.items():
        if name.startswith(swapped) and "up" in name:
            layer = found["transformer.norm_out.linear"]
            assert torch.equal(torch.cat(layer.up.chunk(2)[::-1]), tensor)
        assert torch.equal(again[name], tensor) and again[name].dtype == dtype, name
    plain = {layer: one for layer, one in found.items() if isinstance(one, LoraLayer)}
    back = read(diffusers_tensors(plain))
    assert all(torch.equal(delta(back[layer]), delta(plain[layer])) for layer in plain)


def test_split_is_the_rows_of_the_whole_and_put_together_is_the_whole(tiny: Place, read) -> None:
    """ΔW itself, layer by layer of Black Forest Labs' code, whichever way the LoRA was trained."""
    sizes = {layer: shape[0] for layer, shape in tiny.shapes.items()}
    for shared in (True, False):
        layers = random_layers(tiny, part_of(tiny, TRANSFORMER), alpha=3.0)
        for name, pieces in bfl_layers(tiny.shapes).items():
            if shared:
                down = layers[pieces[0].layer].down
                layers |= {p.layer: LoraLayer(down, layers[p.layer].up, torch.tensor(3.0)) for p in pieces}
            whole = united(layers, pieces, sizes)
            assert whole is not None and whole.rank == (4 if shared else 4 * len(pieces))
            made = delta(whole)
            for piece in pieces:
                rows = torch.cat([made[start:stop] for start, stop in piece.rows or ((0, len(made)),)])
                assert torch.allclose(rows, delta(layers[piece.layer]), rtol=0, atol=1e-12), name
            assert name.startswith("final_layer.adaLN") or len(pieces) in (1, 3, 4)


# --- what other programs write ----------------------------------------------------------------------------
def flat(text: str) -> str:
    return text.replace(".", "_")


#: Diffusers' names as programs write them: name of a layer of a part, whether kohya's matrices.
SPELLINGS = {
    "diffusers, ai-toolkit, SimpleTuner": ("transformer.{path}", False),
    "peft": ("base_model.model.transformer.{path}", False),
    "DiffSynth": ("{path}", False),
    "OneTrainer, the first ai-toolkit": ("lora_transformer_{flat}", True),
    "kohya with diffusers' names": ("lora_unet_{flat}", True),
    "ComfyUI": ("diffusion_model.{path}", False),
    "diffusers' names, kohya's matrices": ("transformer.{path}", True),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_other_spellings_of_diffusers_names_are_the_same_lora(spelling: str, tiny: Place, read) -> None:
    layers = random_layers(tiny, part_of(tiny, TRANSFORMER), alpha=2.0)
    pattern, kohya = SPELLINGS[spelling]
    tensors: Tensors = {}
    for layer, one in layers.items():
        path = layer.removeprefix("transformer.")
        tensors |= by_hand(pattern.format(path=path, flat=flat(path)), one.down, one.up, 2.0, kohya)
    assert same(read(tensors), layers)


BFL_SPELLINGS = {
    "ComfyUI": "diffusion_model.{path}",
    "fal": "base_model.model.{path}",
    "Black Forest Labs": "{path}",
}


@pytest.mark.parametrize("spelling", BFL_SPELLINGS)
def test_the_makers_names_with_peft_s_matrices(spelling: str, tiny: Place, tmp_path: Path) -> None:
    layers = random_layers(tiny, part_of(tiny, TRANSFORMER))
    sizes = {layer: shape[0] for layer, shape in tiny.shapes.items()}
    tensors: Tensors = {}
    for name, pieces in bfl_layers(tiny.shapes).items():
        whole = united(layers, pieces, sizes)
        assert whole is not None
        tensors |= by_hand(BFL_SPELLINGS[spelling].format(path=name), whole.down, whole.up, None, kohya=False)
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    file = read_lora_file(path, tiny, "flux")
    assert file.layout == BFL and same(dict(file.layers), layers)


def test_xlabs_names(tiny: Place, tmp_path: Path) -> None:
    tensors, wanted = {}, {}
    generator = torch.Generator().manual_seed(2)
    single = "transformer.single_transformer_blocks.1"
    for name, layers in (
        ("double_blocks.0.processor.qkv_lora1", QKV),
        ("double_blocks.0.processor.qkv_lora2", [f"{FIRST}.attn.add_{x}_proj" for x in "qkv"]),
        ("double_blocks.0.processor.proj_lora1", [f"{FIRST}.attn.to_out.0"]),
        ("double_blocks.0.processor.proj_lora2", [f"{FIRST}.attn.to_add_out"]),
        ("single_blocks.1.processor.qkv_lora", [f"{single}.attn.to_{x}" for x in "qkv"]),
        ("single_blocks.1.processor.proj_lora", [f"{single}.proj_out"]),
    ):
        down = torch.randn(4, tiny.shapes[layers[0]][1], generator=generator)
        ups = [torch.randn(tiny.shapes[layer][0], 4, generator=generator) for layer in layers]
        tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": torch.cat(ups)}
        wanted |= {layer: LoraLayer(down, up) for layer, up in zip(layers, ups, strict=True)}
    for prefix in ("", "diffusion_model."):
        save_file({prefix + name: tensor for name, tensor in tensors.items()}, tmp_path / "x.safetensors")
        file = read_lora_file(tmp_path / "x.safetensors", tiny, "flux")
        assert file.layout == XLABS and same(dict(file.layers), wanted)
    # ComfyUI has another name for the three of a single block, as it has for all that lies in ``linear1``.
    down, up = (tensors[f"single_blocks.1.processor.qkv_lora.{side}.weight"] for side in ("down", "up"))
    comfy = by_hand("diffusion_model.single_blocks.1.linear1_qkv", down, up, None)
    save_file(comfy, tmp_path / "x.safetensors")
    assert same(dict(read_lora_file(tmp_path / "x.safetensors", tiny, "flux").layers),
                {layer: one for layer, one in wanted.items() if layer.startswith(f"{single}.attn")})  # fmt: skip


def test_text_encoders_in_all_their_spellings(tiny: Place, read) -> None:
    clip = "text_encoder.text_model.encoder.layers.0.mlp.fc1"
    t5 = "text_encoder_2.encoder.block.1.layer.0.SelfAttention.o"
    layers = random_layers(tiny, [clip, t5], alpha=2.0)
    for first, second in (
        ("lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_te2_encoder_block_1_layer_0_SelfAttention_o"),
        ("lora_te_text_model_encoder_layers_0_mlp_fc1", "lora_te3_encoder_block_1_layer_0_SelfAttention_o"),
        (clip, t5),
        (clip.replace("text_model.", ""), t5),
        ("text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
         "text_encoders.t5xxl.transformer.encoder.block.1.layer.0.SelfAttention.o"),
    ):  # fmt: skip
        tensors = by_hand(first, layers[clip].down, layers[clip].up, 2.0)
        assert same(read(tensors | by_hand(second, layers[t5].down, layers[t5].up, 2.0)), layers), first


def test_alpha_in_the_header_alone_is_found(tiny: Place, read) -> None:
    layers = random_layers(tiny, QKV)
    tensors: Tensors = {}
    for layer, one in layers.items():
        tensors |= by_hand(layer, one.down, one.up, None, kohya=False)
    found = read(tensors, {"lora_adapter_metadata": '{"transformer.lora_alpha": 2.0, "transformer.r": 4}'})
    assert [one.strength for one in found.values() if isinstance(one, LoraLayer)] == [2.0, 2.0, 2.0]


# --- relatives of LoRA --------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "LoKr, whole", "DoRA"])
def test_relatives_in_one_piece_are_divided_by_rows(kind: str, tiny: Place, read) -> None:
    """32, 32, 32 and 128 outputs lie across the blocks that a LoKr multiplies."""
    generator = torch.Generator().manual_seed(4)
    rows, inside = 7 * WIDTH, WIDTH
    shapes = {
        "LoHa": {"hada_w1_a": (rows, 2), "hada_w1_b": (2, inside), "hada_w2_a": (rows, 2), "hada_w2_b": (2, inside)},
        "LoKr": {"lokr_w1": (14, 4), "lokr_w2_a": (16, 2), "lokr_w2_b": (2, 8)},
        "LoKr, whole": {"lokr_w1": (28, 4), "lokr_w2": (8, 8)},
        "DoRA": {"lora_down.weight": (4, inside), "lora_up.weight": (rows, 4), "dora_scale": (rows, 1)},
    }[kind]
    made = {name: torch.randn(*shape, generator=generator) * 0.3 for name, shape in shapes.items()}
    stem = "lora_unet_single_blocks_1_linear1"
    found = read({f"{stem}.{name}": tensor for name, tensor in made.items()} | {f"{stem}.alpha": torch.tensor(1.0)})
    assert list(found) == list(FOUR)
    weights = {layer: torch.randn(tiny.shapes[layer], generator=generator) for layer in FOUR}
    whole = torch.cat(list(weights.values()))
    if kind == "LoHa":
        wanted = (made["hada_w1_a"] @ made["hada_w1_b"]) * (made["hada_w2_a"] @ made["hada_w2_b"]) / 2
    elif kind == "LoKr":
        wanted = torch.kron(made["lokr_w1"], made["lokr_w2_a"] @ made["lokr_w2_b"]) / 2
    elif kind == "LoKr, whole":
        wanted = torch.kron(made["lokr_w1"], made["lokr_w2"])
    else:
        summed = whole + made["lora_up.weight"] @ made["lora_down.weight"] / 4
        wanted = made["dora_scale"] * summed / summed.norm(dim=1, keepdim=True) - whole
    changes = []
    for layer, weight in weights.items():
        base = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        base.weight.data = weight
        one = found[layer]
        assert isinstance(one, RelatedLayer)
        changes.append(Change(base, one).change())
    assert torch.allclose(torch.cat(changes), wanted, atol=1e-5)


# --- the effect -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", [KOHYA_LAYOUT, DIFFUSERS])
def test_a_lora_from_a_file_does_what_its_deltas_do_and_diffusers_agrees(
    layout: str, tiny: Place, tmp_path: Path
) -> None:
    layers = random_layers(tiny, part_of(tiny, TRANSFORMER), rank=3, alpha=2.0)
    path = tmp_path / "x.safetensors"
    path.write_bytes(lora_bytes(layout, layers, tiny, {}, "x"))
    file = read_lora_file(path, tiny, "flux")
    assert file.layout == layout
    ours = make_transformer()
    before = run(ours)
    _put_on(ours, {"x": file.of_part(TRANSFORMER)}, {"x": 0.5})
    drawn = run(ours)
    by_hand = make_transformer()
    for layer, one in layers.items():
        by_hand.get_submodule(layer.removeprefix("transformer.")).weight.data += (0.5 * delta(one)).float()
    assert torch.allclose(drawn, run(by_hand), atol=1e-4)
    assert not torch.allclose(drawn, before, atol=1e-2)
    if layout == DIFFUSERS:
        theirs = make_transformer()
        theirs.load_lora_adapter(load_file(path), prefix="transformer", adapter_name="x")
        theirs.set_adapters(["x"], [0.5])
        assert torch.allclose(run(theirs), drawn, atol=1e-5)


def test_a_name_that_is_the_end_of_others_means_one_layer(tiny: Place, read) -> None:  # type: ignore[no-untyped-def]
    """``proj_out`` alone is the last layer, and not that of every single block."""
    layers = random_layers(tiny, ["transformer.proj_out", "transformer.norm_out.linear"])
    transformer = make_transformer()
    found = {layer.removeprefix("transformer."): one for layer, one in read(kohya_tensors(layers, tiny)).items()}
    with quiet():
        _put_on(transformer, {"x": found}, {"x": 1.0})
    assert {name for name, module in transformer.named_modules() if hasattr(module, "base_layer")} == found.keys()
