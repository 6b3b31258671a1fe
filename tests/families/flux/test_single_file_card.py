"""On a card, numbers of single files are unpacked there, and are what the processor makes of them."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Format

from headshot_ui.families.flux_parts.dequantise import TAKEN, dequantised
from headshot_ui.families.flux_parts.reading import opened
from tests.families.flux.single_files import Writer, in_gguf, original_state, scaled, transformer_state

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU"),
]


@pytest.mark.parametrize("name", sorted(TAKEN - {"F32", "F16"}))
def test_a_card_unpacks_what_the_processor_unpacks(name: str) -> None:
    block, size = gguf.GGML_QUANT_SIZES[Format[name]]
    raw = np.random.default_rng(1).integers(0, 256, 4096 * size, dtype=np.uint8)
    flat, shape = torch.from_numpy(raw), (4096, block)
    wanted = dequantised(flat, name, shape, torch.float32)
    found = dequantised(flat.cuda(), name, shape, torch.float32).cpu()
    assert torch.equal(found.isnan(), wanted.isnan()) and torch.equal(found.nan_to_num(0), wanted.nan_to_num(0))


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.safetensors", scaled("scale_weight", per_row=True)), ("a.gguf", in_gguf(Format.Q8_0))],
    ids=["scaled", "Q8_0"],
)
def test_a_file_is_read_alike_on_both(name: str, write: Writer, models_dir: Path, tmp_path: Path) -> None:
    state = transformer_state(models_dir / "dev")
    write(original_state(state), tmp_path / name)
    path = tmp_path / name
    with opened(path, torch.bfloat16) as here, opened(path, torch.bfloat16, "cuda") as there:
        for tensor in state:
            assert torch.equal(here(tensor), there(tensor).cpu()), tensor
