"""Names and cuts of Black Forest Labs' files are those that diffusers' own conversion knows."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel
from diffusers.loaders.single_file_utils import convert_flux_transformer_checkpoint_to_diffusers

from headshot_ui.families.flux_parts.original_names import Layout, diffusers_layout, original_layout
from headshot_ui.families.flux_parts.single_file import tell
from headshot_ui.families.flux_parts.sizes import shape_of
from headshot_ui.memory import StoredTensor
from tests.families.flux.single_files import original_state, transformer_state


def cut(state: dict[str, torch.Tensor], layout: Layout) -> dict[str, torch.Tensor]:
    out = {}
    for name, piece in layout.pieces.items():
        rows = state[piece.name][piece.start : piece.stop]
        out[name] = torch.cat(rows.chunk(2)[::-1]) if piece.swapped else rows
    return out


@pytest.mark.parametrize(("guided", "count"), [(True, 780), (False, 776)])
def test_the_published_sizes_are_those_of_diffusers(guided: bool, count: int) -> None:
    """dev is published with 780 tensors, schnell with 776."""
    shape = shape_of({"guidance_embeds": guided})
    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=guided)
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    layout = original_layout(shape)
    assert len(layout.sizes) == count
    assert {
        name: (piece.stop - piece.start, *layout.sizes[piece.name][1:]) for name, piece in layout.pieces.items()
    } == wanted
    assert diffusers_layout(shape).sizes == wanted
    assert {piece.rows for piece in layout.pieces.values()} == {size[0] for size in layout.sizes.values()}
    for sizes in (layout.sizes, wanted):
        tensors = {name: StoredTensor(name, "BF16", size, 0) for name, size in sizes.items()}
        found = tell(tensors, "flux1-dev.safetensors")
        assert found is not None and not found.told and found.shape == shape


def test_each_row_goes_where_diffusers_puts_it() -> None:
    """At the published widths, which their conversion takes for granted; of each row one number, all different."""
    layout = original_layout(shape_of({"guidance_embeds": True}))
    state, start = {}, 0.0
    for name, (rows, *_) in layout.sizes.items():
        state[name] = (torch.arange(rows, dtype=torch.float64) + start)[:, None]
        start += rows
    wanted = convert_flux_transformer_checkpoint_to_diffusers(dict(state))
    found = cut(state, layout)
    assert found.keys() == wanted.keys()
    assert not [name for name in wanted if not torch.equal(found[name], wanted[name])]


def test_the_tests_own_files_are_cut_back_to_what_they_were_written_of(models_dir: Path) -> None:
    state = transformer_state(models_dir / "dev")
    shape = shape_of(
        {"attention_head_dim": 16, "num_attention_heads": 2, "num_layers": 1, "num_single_layers": 2,
         "joint_attention_dim": 24, "pooled_projection_dim": 16, "guidance_embeds": True}
    )  # fmt: skip
    there = original_state(state)
    layout = original_layout(shape)
    assert {name: tuple(tensor.shape) for name, tensor in there.items()} == layout.sizes
    found = cut(there, layout)
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)
