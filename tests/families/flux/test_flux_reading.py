"""A transformer that is made to fit while it is read is the one that is read and then made to fit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.flux_parts import eight_bit, modulation, reading, streaming
from tests.families.flux.flux_tiny import drawn, inputs, tiny_transformer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """In two files, as FLUX.1 is in three."""
    place = tmp_path_factory.mktemp("transformer")
    tiny_transformer(dtype=torch.bfloat16).save_pretrained(place, max_shard_size="150KB")
    assert len(list(place.glob("*.safetensors"))) >= 2
    return place


def empty(folder: Path) -> torch.nn.Module:
    from diffusers import FluxTransformer2DModel

    with torch.device("meta"):
        made: torch.nn.Module = FluxTransformer2DModel.from_config(FluxTransformer2DModel.load_config(folder))
    return made.eval().requires_grad_(False)


def test_filling_an_empty_transformer(folder: Path) -> None:
    model = empty(folder)
    with reading.Reader(folder) as read:
        reading.fill(model, read, torch.bfloat16)
    given = inputs(1, dtype=torch.bfloat16)
    assert torch.equal(drawn(model, given), drawn(tiny_transformer(dtype=torch.bfloat16), given))


def test_every_way_to_make_it_fit_while_it_is_read(folder: Path) -> None:
    given = inputs(1, dtype=torch.bfloat16)
    condition = modulation.Condition(given["timestep"], given["guidance"], given["pooled_projections"])
    ordinary = tiny_transformer(dtype=torch.bfloat16)
    rows = modulation.table(ordinary, [condition], "cpu", torch.bfloat16)
    dropped = modulation.drop(ordinary)
    eight_bit.shrink(ordinary, torch.bfloat16)
    dropped.use(rows[0])
    wanted = drawn(ordinary, given)

    model = empty(folder)
    read_names: list[str] = []
    with reading.Reader(folder) as reader:

        def read(name: str) -> torch.Tensor:
            read_names.append(name)
            return reader(name)

        again = modulation.table(model, [condition], "cpu", torch.bfloat16, read)
        small = modulation.drop(model, let_go=True)
        eight_bit.shrink(model, torch.bfloat16, read=read)
        reading.fill(model, read, torch.bfloat16)
    streaming.stream(model, streaming.chosen_blocks(model, 4), "cpu")
    assert torch.equal(again, rows)
    small.use(again[0])
    assert torch.equal(drawn(model, given), wanted)
    embedder = [name for name in read_names if name.startswith("time_text_embed")]
    assert len(set(read_names)) == len(tiny_transformer().state_dict())
    assert len(read_names) == len(set(read_names)) + len(set(embedder))  # only these small ones are read twice


def test_what_is_missing_or_damaged_is_said(folder: Path, tmp_path: Path) -> None:
    with reading.Reader(folder) as read:
        with pytest.raises(ModelError, match="lacks the weights “nothing”"):
            read("nothing")
        with pytest.raises(ModelError, match=r"of the size \(32, 16\) instead of \(2, 2\)"):
            reading.fill(torch.nn.ModuleDict({"x_embedder": torch.nn.Linear(2, 2, device="meta")}), read, torch.float32)
    (tmp_path / "a.safetensors").write_bytes(b"nonsense")
    with pytest.raises(ModelError, match="damaged"), reading.Reader(tmp_path):
        pass
