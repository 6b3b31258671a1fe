"""At the real size of FLUX.1-dev, what is read is what diffusers' own converters make of the same file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from diffusers import FluxPipeline
from diffusers.loaders import lora_conversion_utils as theirs
from safetensors.torch import load_file, save_file

from headshot_ui.families.flux_parts.lora_file import Place, read_lora_file
from headshot_ui.families.flux_parts.lora_names import bfl_layers, kohya_layers
from headshot_ui.families.flux_parts.lora_write import lora_bytes
from headshot_ui.families.lora_parts.fused import Piece
from headshot_ui.families.lora_parts.layers import DIFFUSERS, KOHYA_LAYOUT, LoraLayer
from tests.families.flux.flux_loras import Tensors, by_hand, make_published

RANK = 2


@pytest.fixture(scope="module")
def published() -> Place:
    return make_published()


def matrices(place: Place, layers: list[str], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """A pair for layers that are one in a file."""
    out = sum(place.shapes[layer][0] for layer in layers)
    down = torch.randn(RANK, place.shapes[layers[0]][1], generator=generator)
    return down, torch.randn(out, RANK, generator=generator)


def assert_same(place: Place, path: Path, state: Tensors) -> None:
    """Every layer's effect on a random input, in float64: diffusers multiplies alpha into a matrix."""
    file = read_lora_file(path, place, "flux")
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in state.items():
        layer, _, role = name.removesuffix(".weight").rpartition(".")
        pairs.setdefault(layer if layer.startswith("transformer.") else f"transformer.{layer}", {})[role] = tensor
    assert pairs.keys() == file.layers.keys()
    generator = torch.Generator().manual_seed(9)
    for layer, pair in pairs.items():
        x = torch.randn(place.shapes[layer][1], generator=generator, dtype=torch.float64)
        wanted = pair["lora_B"].double() @ (pair["lora_A"].double() @ x)
        one = file.layers[layer]
        assert isinstance(one, LoraLayer)
        found = one.strength / one.rank * (one.up.double() @ (one.down.double() @ x))
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-5 * float(wanted.abs().max())), layer


def some(names: Mapping[str, Sequence[Piece]]) -> dict[str, list[str]]:
    """First and last blocks, and all that is outside of blocks."""
    wanted = re.compile(r"blocks.0\D|double_blocks.18\D|single_blocks.37\D")
    kept = {name: pieces for name, pieces in names.items() if "blocks" not in name or wanted.search(name)}
    return {name: [piece.layer for piece in pieces] for name, pieces in kept.items()}


@pytest.mark.parametrize("alpha", [None, 1.0])
def test_kohya(alpha: float | None, published: Place, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(1)
    tensors: Tensors = {}
    for stem, layers in some(kohya_layers(published.shapes)).items():
        # diffusers forgets the alpha of the last layers.
        told = None if "final_layer" in stem else alpha
        tensors |= by_hand(stem, *matrices(published, layers, generator), told)
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    assert_same(published, path, theirs._convert_kohya_flux_lora_to_diffusers(dict(tensors)))


def test_what_is_written_for_others_is_read_by_diffusers(published: Place, tmp_path: Path) -> None:
    """Through the pipeline's own way in; ranks of query, key and value added up, which it takes apart again."""
    generator = torch.Generator().manual_seed(2)
    wanted = [layer for layers in some(kohya_layers(published.shapes)).values() for layer in layers]
    layers = {layer: LoraLayer(*matrices(published, [layer], generator), torch.tensor(float(RANK))) for layer in wanted}
    path = tmp_path / "x.safetensors"
    for layout in (KOHYA_LAYOUT, DIFFUSERS):
        path.write_bytes(lora_bytes(layout, layers, published, {}, "x"))
        state = FluxPipeline.lora_state_dict(load_file(path))
        assert_same(published, path, state[0] if isinstance(state, tuple) else state)


def test_xlabs(published: Place, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(3)
    tensors: Tensors = {}
    for name, layers in (
        ("double_blocks.3.processor.qkv_lora1", [f"transformer_blocks.3.attn.to_{x}" for x in "qkv"]),
        ("double_blocks.3.processor.qkv_lora2", [f"transformer_blocks.3.attn.add_{x}_proj" for x in "qkv"]),
        ("double_blocks.3.processor.proj_lora1", ["transformer_blocks.3.attn.to_out.0"]),
        ("double_blocks.3.processor.proj_lora2", ["transformer_blocks.3.attn.to_add_out"]),
        ("single_blocks.5.processor.qkv_lora", [f"single_transformer_blocks.5.attn.to_{x}" for x in "qkv"]),
        ("single_blocks.5.processor.proj_lora", ["single_transformer_blocks.5.proj_out"]),
    ):
        down, up = matrices(published, [f"transformer.{layer}" for layer in layers], generator)
        tensors |= {f"{name}.down.weight": down, f"{name}.up.weight": up}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    assert_same(published, path, theirs._convert_xlabs_flux_lora_to_diffusers(dict(tensors)))


def test_fal(published: Place, tmp_path: Path) -> None:
    """Its converter wants every layer inside the blocks and the last one; each is one column and one row here."""
    generator = torch.Generator().manual_seed(4)
    tensors: Tensors = {}
    for name, pieces in bfl_layers(published.shapes).items():
        if "blocks" in name or name == "final_layer.linear":
            down = torch.randn(1, published.shapes[pieces[0].layer][1], generator=generator)
            up = torch.randn(sum(published.shapes[piece.layer][0] for piece in pieces), 1, generator=generator)
            tensors |= by_hand(f"base_model.model.{name}", down, up, None, kohya=False)
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    assert_same(published, path, theirs._convert_fal_kontext_lora_to_diffusers(dict(tensors)))
