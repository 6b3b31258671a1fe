"""LoRA files in both layouts: out, in, and out again, tensor by tensor; and what they do to prompts and pictures."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from headshot_ui.errors import ModelError
from headshot_ui.families import check_lora, lora_facts, lora_in_layout
from headshot_ui.families.lora_parts.layers import DIFFUSERS, KOHYA_LAYOUT, LoraLayer
from headshot_ui.families.lora_parts.writing import diffusers_tensors
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.families.sdxl_parts.lora import parts
from headshot_ui.families.sdxl_parts.lora_facts import place_in_files
from headshot_ui.families.sdxl_parts.lora_file import read_lora_file
from headshot_ui.families.sdxl_parts.lora_write import kohya_tensors, lora_bytes
from tests.families.lora_maker import PROMPT, bits, delta, draw, place, random_layers, same, usual_layers
from tests.families.rounding import ROUNDING, apart

LAYOUTS = (KOHYA_LAYOUT, DIFFUSERS)
FACTS = {"family": "sdxl", "base": "tiny-sdxl", "trigger": "tok", "steps": "40", "date": "2026-11-24T10:00:00Z"}


def header_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


def write(path: Path, layout: str, layers: dict[str, LoraLayer], loaded: LoadedBase) -> Path:
    path.write_bytes(lora_bytes(layout, layers, place(loaded).topology, FACTS, path.stem))
    return path


def everything(loaded: LoadedBase, rank: int = 4, alpha: float | None = None) -> dict[str, LoraLayer]:
    where = place(loaded)
    return random_layers(where, usual_layers(where), rank=rank, alpha=alpha)


# --- tensor by tensor ---------------------------------------------------------------------------------
@pytest.mark.parametrize("alpha", [None, 4.0, 2.0, 16.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_written_and_read_again_every_delta_is_the_same(
    layout: str, alpha: float | None, tiny: LoadedBase, tmp_path: Path
) -> None:
    layers = everything(tiny, alpha=alpha)
    read = read_lora_file(write(tmp_path / "a.safetensors", layout, layers, tiny), place(tiny), "sdxl")
    assert read.layout == layout and read.layers.keys() == layers.keys()
    assert all(torch.equal(delta(read.layers[layer]), delta(layers[layer])) for layer in layers)


def test_an_odd_alpha_is_exact_in_kohya_s_layout_and_rounded_once_in_diffusers(
    tiny: LoadedBase, tmp_path: Path
) -> None:
    layers = everything(tiny, rank=3, alpha=0.7)
    for layout, tolerance in ((KOHYA_LAYOUT, 0), (DIFFUSERS, 1e-7)):
        read = read_lora_file(write(tmp_path / "a.safetensors", layout, layers, tiny), place(tiny), "sdxl")
        for layer in layers:
            wanted = delta(layers[layer])
            assert (delta(read.layers[layer]) - wanted).abs().max() <= tolerance * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_kohya_file_comes_out_with_the_same_names_and_bytes(
    dtype: torch.dtype, tiny: LoadedBase, tmp_path: Path
) -> None:
    """As sd-scripts writes it: everything in one type, alpha too; a rank of its own here and there; convolutions."""
    where = place(tiny)
    layers = everything(tiny, alpha=2.0)
    layers |= random_layers(where, usual_layers(where, "text_encoder")[:3], seed=8, rank=2, alpha=1.0)
    convolutions = [layer for layer in where.shapes if len(where.shapes[layer]) == 4]
    layers |= random_layers(where, [*convolutions, "unet.add_embedding.linear_1", "unet.time_embedding.linear_2"],
                            seed=9, rank=3, alpha=1.5)  # fmt: skip
    source = {name: tensor.to(dtype) for name, tensor in kohya_tensors(layers, where.topology).items()}
    save_file(source, tmp_path / "theirs.safetensors", metadata={"ss_network_module": "networks.lora"})
    read = read_lora_file(tmp_path / "theirs.safetensors", where, "sdxl")
    assert same(kohya_tensors(read.layers, where.topology), source)
    again = tmp_path / "again.safetensors"
    again.write_bytes(lora_bytes(KOHYA_LAYOUT, read.layers, where.topology, {}, "again"))
    assert same(load_file(again), source)
    # There and back through diffusers' layout: alpha is multiplied in, the effect stays.
    back = tmp_path / "back.safetensors"
    back.write_bytes(lora_bytes(DIFFUSERS, read.layers, where.topology, {}, "back"))
    there = read_lora_file(back, where, "sdxl")
    assert all(torch.equal(delta(there.layers[layer]), delta(read.layers[layer])) for layer in layers)


def test_smaller_numbers_only_where_asked_for_and_never_infinite(tiny: LoadedBase) -> None:
    where = place(tiny)
    layers = everything(tiny, alpha=0.1)
    half = kohya_tensors(layers, where.topology, "float16")
    assert {t.dtype for name, t in half.items() if not name.endswith(".alpha")} == {torch.float16}
    assert {float(t) for name, t in half.items() if name.endswith(".alpha")} == {float(torch.tensor(0.1))}
    big = {layer: LoraLayer(found.down * 1e6, found.up) for layer, found in layers.items()}
    with pytest.raises(ModelError, match="export it as float32"):
        lora_bytes(KOHYA_LAYOUT, big, where.topology, {}, "big", "float16")


# --- what other programs write --------------------------------------------------------------------------
def other_spellings(layers: dict[str, LoraLayer], loaded: LoadedBase) -> dict[str, dict[str, torch.Tensor]]:
    """The same LoRA as other programs name it."""
    found: dict[str, dict[str, torch.Tensor]] = {name: {} for name in
        ("kohya with diffusers' names", "without text_model", "peft", "old diffusers", "oldest diffusers")}  # fmt: skip
    for layer, matrices in layers.items():
        part, _, path = layer.partition(".")
        prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[part]
        short = f"{part}.{path.removeprefix('text_model.')}"
        alpha = torch.tensor(matrices.strength)
        for kind, stem, down, up in (
            ("kohya with diffusers' names", prefix + path.replace(".", "_"), "lora_down", "lora_up"),
            ("without text_model", short, "lora_A", "lora_B"),
            ("peft", f"base_model.model.{layer}", "lora_A.default", "lora_B.default"),
            ("old diffusers", layer, *(("lora.down", "lora.up") if part == "unet" else
                                       ("lora_linear_layer.down", "lora_linear_layer.up"))),
        ):  # fmt: skip
            file = found[kind]
            file |= {f"{stem}.{down}.weight": matrices.down, f"{stem}.{up}.weight": matrices.up, f"{stem}.alpha": alpha}
        if part == "unet" and ".attn" in layer:
            attention, _, to = layer.removesuffix(".0").rpartition(".")
            stem = f"{attention}.processor.{to}_lora"
            found["oldest diffusers"] |= {f"{stem}.down.weight": matrices.down, f"{stem}.up.weight": matrices.up}
    return found


def test_other_spellings_are_the_same_lora(tiny: LoadedBase, tmp_path: Path) -> None:
    layers = everything(tiny, alpha=2.0)
    for kind, tensors in other_spellings(layers, tiny).items():
        path = tmp_path / "x.safetensors"
        save_file(tensors, path)
        read = read_lora_file(path, place(tiny), "sdxl").layers
        wanted = [layer for layer in layers if kind != "oldest diffusers" or ".attn" in layer]
        assert sorted(read) == sorted(wanted) != [], kind
        for layer, found in read.items():
            assert torch.equal(found.down, layers[layer].down) and torch.equal(found.up, layers[layer].up), kind
            assert found.strength == (2.0 if kind != "oldest diffusers" else 4.0)


def test_alpha_in_the_header_alone_is_found(tiny: LoadedBase, tmp_path: Path) -> None:
    """diffusers keeps it nowhere else; taken for equal to the rank, the LoRA would be too strong."""
    layers = random_layers(place(tiny), usual_layers(place(tiny)))
    first = usual_layers(place(tiny), "unet")[0]
    settings = {
        "unet.lora_alpha": 2.0,
        "unet.alpha_pattern": {first.removeprefix("unet."): 0.5},
        "text_encoder.lora_alpha": 4.0,
        "text_encoder.use_rslora": True,
    }
    tensors = diffusers_tensors(layers)
    save_file(tensors, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": json.dumps(settings)})
    read = read_lora_file(tmp_path / "x.safetensors", place(tiny), "sdxl").layers
    told = {layer: found.strength for layer, found in read.items()}
    assert told.pop(first) == 0.5
    for layer, strength in told.items():
        assert strength == {"unet": 2.0, "text_encoder": 8.0, "text_encoder_2": 4.0}[layer.partition(".")[0]]
    save_file(tensors, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": "{"})
    with pytest.raises(ModelError, match="header of the LoRA"):
        read_lora_file(tmp_path / "x.safetensors", place(tiny), "sdxl")


# --- the effect -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("strength", [1.0, 0.5, -1.0])
def test_prompts_and_pictures_are_as_with_the_deltas_added_by_hand(
    strength: float, tiny: LoadedBase, tmp_path: Path
) -> None:
    """UNet and both text encoders, convolutions too, all times the strength; and off again without a trace."""
    where = place(tiny)
    layers = random_layers(where, where.shapes, rank=3, alpha=2.0)
    path = write(tmp_path / "all.safetensors", KOHYA_LAYOUT, layers, tiny)
    before, plain, untouched = draw(tiny), tiny.encode_prompts([PROMPT]), bits(tiny)
    tiny.use_loras([(path, strength)])
    drawn, read = draw(tiny), tiny.encode_prompts([PROMPT])
    tiny.use_loras(())
    assert torch.equal(draw(tiny), before) and same(bits(tiny), untouched)
    assert same(dict(tiny.encode_prompts([PROMPT])), dict(plain))
    for part, module in parts(tiny.modules).items():
        for name, weight in module.named_modules():
            layer = layers.get(f"{part}.{name}") or layers.get(f"{part}.text_model.{name}")
            if layer is not None:
                weight.weight.data += (strength * delta(layer)).to(weight.weight.dtype)
    try:
        for name, tensor in tiny.encode_prompts([PROMPT]).items():
            assert apart(tensor, read[name]) < 10 * ROUNDING  # sums in another order, in all layers
            assert not torch.allclose(tensor, plain[name], atol=1e-2)
        assert apart(draw(tiny), drawn) < 10 * ROUNDING
        assert not torch.allclose(drawn, before, atol=1e-2)
    finally:
        for part, module in parts(tiny.modules).items():
            module.load_state_dict({name.removeprefix(f"{part}."): tensor for name, tensor in untouched.items()
                                    if name.startswith(f"{part}.")})  # fmt: skip
    assert torch.equal(draw(tiny), before)


def test_what_is_in_the_model_is_what_is_in_the_file(tiny: LoadedBase, tmp_path: Path) -> None:
    """Each layer its own rank and alpha, and two LoRAs at once that do not know of each other's layers."""
    where = place(tiny)
    unet, text = usual_layers(where, "unet"), usual_layers(where, "text_encoder")
    first = random_layers(where, unet[:4], rank=2, alpha=8.0) | random_layers(where, unet[4:], seed=5, rank=7)
    second = random_layers(where, text, seed=6, rank=3, alpha=1.0) | random_layers(where, unet[3:6], seed=7, rank=5)
    paths = [write(tmp_path / f"{n}.safetensors", KOHYA_LAYOUT, each, tiny) for n, each in enumerate((first, second))]
    tiny.use_loras([(paths[0], 0.5), (paths[1], 2.0)])
    modules = parts(tiny.modules)
    seen = 0
    for number, (layers, strength) in enumerate(((first, 0.5), (second, 2.0))):
        for layer, found in layers.items():
            part, _, path = layer.partition(".")
            module = modules[part]
            inner = module.get_submodule(path if hasattr(module, "text_model") else path.removeprefix("text_model."))
            name = f"lora_{number}"
            assert torch.equal(inner.lora_A[name].weight, found.down)
            assert torch.equal(inner.lora_B[name].weight, found.up)
            assert inner.scaling[name] == pytest.approx(strength * found.strength / found.rank, rel=1e-12)
            assert name in inner.active_adapters
            seen += 1
    assert seen == len(first) + len(second)
    assert not any(parameter.requires_grad for module in modules.values() for parameter in module.parameters())


@pytest.mark.parametrize("alpha", [4.0, 1.0])
def test_diffusers_draws_the_very_same_with_our_files(
    alpha: float, tiny: LoadedBase, models_dir: Path, tmp_path: Path
) -> None:
    """Its own load_lora_weights on both layouts, UNet and text encoders: no difference in one bit.

    It leaves the matrices trainable, and torch multiplies by trainable ones in another order (2e-6 in the picture);
    so they are frozen first.
    """
    layers = everything(tiny, alpha=alpha)
    pipe = StableDiffusionXLPipeline.from_pretrained(models_dir / "tiny", dtype=torch.float32, use_safetensors=True)
    pipe.set_progress_bar_config(disable=True)
    common = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 64, "width": 64, "output_type": "latent"}
    drawings = []
    for layout in LAYOUTS:
        path = write(tmp_path / f"{layout}.safetensors", layout, layers, tiny)
        tiny.use_loras([(path, 1.0)])
        ours = draw(tiny)
        tiny.use_loras(())
        pipe.load_lora_weights(tmp_path, weight_name=path.name)
        assert set(pipe.get_list_adapters()) == {"unet", "text_encoder", "text_encoder_2"}
        for module in (pipe.unet, pipe.text_encoder, pipe.text_encoder_2):
            module.requires_grad_(False)
        theirs = pipe(PROMPT, generator=torch.Generator().manual_seed(1), **common).images
        pipe.unload_lora_weights()
        assert torch.equal(theirs, ours), layout
        drawings.append(ours)
    assert torch.equal(*drawings), "alpha over rank is a power of two here, so multiplying it in rounds nothing"
    assert not torch.allclose(drawings[0], draw(tiny), atol=1e-3)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_state_that_was_trained_and_the_exported_file_draw_the_same(
    layout: str, tiny: LoadedBase, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(4)
    for parameter in tiny.add_trainable_lora(rank=4, alpha=2.0, seed=0):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    trained = draw(tiny)
    source, target = tmp_path / "lora.safetensors", tmp_path / "out.safetensors"
    tiny.save_lora(source, tiny.trainable_lora_state(), {"rank": "4", "alpha": "2.0", "trigger": "tok"})
    target.write_bytes(lora_in_layout(layout, source, tiny.info, {"steps": "7"}, "anna"))
    tiny.use_loras([(target, 1.0)])
    assert torch.equal(draw(tiny), trained)


# --- the header -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_header_says_base_trigger_steps_and_date_and_no_path(layout: str, tiny: LoadedBase, tmp_path: Path) -> None:
    source, target = tmp_path / "lora.safetensors", tmp_path / "anna.safetensors"
    tiny.add_trainable_lora(rank=4, alpha=2.0, seed=0)
    told = {"rank": "4", "alpha": "2.0", "trigger": "tok", "class_word": "woman", "steps": "40",
            "date": "2026-11-24T10:00:00Z", "program": "headshot_ui 0.1.0"}  # fmt: skip
    tiny.save_lora(source, tiny.trainable_lora_state(), told)
    data = lora_in_layout(layout, source, tiny.info, {}, "anna", "float16")
    assert data == lora_in_layout(layout, source, tiny.info, {}, "anna", "float16"), "the same again, bit for bit"
    target.write_bytes(data)
    header = header_of(target)
    assert all(isinstance(name, str) and isinstance(text, str) for name, text in header.items())
    wanted = {
        "family": "sdxl", "base": "tiny-sdxl", "base_title": tiny.info.title, "trigger": "tok", "class_word": "woman",
        "steps": "40", "date": "2026-11-24T10:00:00Z", "program": "headshot_ui 0.1.0", "rank": "4", "alpha": "4",
        "trained_rank": "4", "trained_alpha": "2.0", "layout": layout, "prediction_type": "v_prediction",
        "modelspec.sai_model_spec": "1.0.0", "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.title": "anna", "modelspec.date": "2026-11-24T10:00:00Z", "modelspec.trigger_phrase": "tok",
        "modelspec.prediction_type": "v", "modelspec.resolution": "64x64",
    }  # fmt: skip
    if layout == KOHYA_LAYOUT:
        wanted |= {"ss_base_model_version": "sdxl_base_v1-0", "ss_network_module": "networks.lora",
                   "ss_network_dim": "4", "ss_network_alpha": "4", "ss_output_name": "anna",
                   "ss_v_parameterization": "True"}  # fmt: skip
    assert wanted.items() <= header.items()
    begin = 8 + int.from_bytes(data[:8], "little")
    assert header["modelspec.hash_sha256"] == f"0x{hashlib.sha256(data[begin:]).hexdigest()}"
    assert not any("/" in text for name, text in header.items()
                   if name not in ("modelspec.architecture", "modelspec.implementation"))  # fmt: skip
    facts = lora_facts(target)
    assert (facts.family, facts.layout, facts.rank, facts.dtype) == ("sdxl", layout, 4, "float16")
    assert facts.modules == {"UNet": len(usual_layers(place(tiny), "unet")) - len(_proj(tiny))} and facts.one_rank


def _proj(tiny: LoadedBase) -> list[str]:
    """Layers that our own training leaves alone."""
    return [layer for layer in usual_layers(place(tiny), "unet") if layer.endswith(("proj_in", "proj_out"))]


def test_the_network_alpha_is_the_one_beside_the_layers(tiny: LoadedBase, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", KOHYA_LAYOUT, everything(tiny, rank=4, alpha=1.0), tiny)
    header = header_of(path)
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("4", "1")
    facts = lora_facts(path)
    assert (facts.rank, facts.alpha) == (4, 1.0)
    assert facts.modules == {"UNet": len(usual_layers(place(tiny), "unet")), "first text encoder": 12,
                             "second text encoder": 12}  # fmt: skip


def test_the_place_read_from_configs_is_that_of_the_loaded_base(tiny: LoadedBase) -> None:
    assert place_in_files(tiny.info) == place(tiny)
    tiny.add_trainable_lora(2, 2.0, 0)
    assert place_in_files(tiny.info) == place(tiny), "whatever LoRA is on"


def test_a_lora_is_checked_without_loading_the_base(tiny: LoadedBase, tmp_path: Path) -> None:
    path = write(tmp_path / "x.safetensors", KOHYA_LAYOUT, everything(tiny), tiny)
    check_lora(path, tiny.info)
    tensors = load_file(path)
    tensors["lora_unet_input_blocks_1_1_proj_in.lora_down.weight"] = torch.zeros(4, 16)
    path.write_bytes(save(tensors))
    with pytest.raises(ModelError, match="input_blocks_1_1_proj_in"):
        check_lora(path, tiny.info)
