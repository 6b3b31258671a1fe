"""Numbers out of GGUF's formats are those of llama.cpp's own package, to the last bit."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Format

from headshot_ui.families.flux_parts import dequantise
from headshot_ui.families.flux_parts.dequantise import TAKEN, dequantised, row_bytes
from headshot_ui.families.flux_parts.single_file import GGUF_FORMATS
from tests.families.flux.single_files import packed, unpacked

WRITTEN = ("BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal, or both no number."""
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(0), other.nan_to_num(0))


def test_what_is_found_usable_is_what_can_be_read() -> None:
    assert TAKEN == GGUF_FORMATS


@pytest.mark.parametrize("name", sorted(TAKEN - {"F32", "F16"}))
@pytest.mark.filterwarnings("ignore:invalid value")
def test_any_bytes_are_read_alike(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All values of every field, factors that are infinite or no number too."""
    monkeypatch.setattr(dequantise, "AT_A_TIME", 5 * 256)  # so that the last piece is a shorter one
    block, size = gguf.GGML_QUANT_SIZES[Format[name]]
    columns = max(block, 32) * 3
    raw = np.random.default_rng(1).integers(0, 256, (64, columns // block * size), dtype=np.uint8)
    assert row_bytes(name, columns) == raw.shape[1]
    wanted = torch.from_numpy(gguf.dequantize(raw, Format[name]).copy())
    flat = torch.from_numpy(raw).flatten()
    assert same_bits(dequantised(flat, name, (64, columns), torch.float32), wanted)
    assert same_bits(dequantised(flat, name, (64, columns), torch.bfloat16), wanted.bfloat16())


@pytest.mark.parametrize("name", WRITTEN)
def test_what_the_package_shortened_is_nearly_what_it_was(name: str) -> None:
    numbers = np.random.default_rng(2).standard_normal((16, 512)).astype(np.float32)
    raw = packed(numbers, Format[name])
    found = dequantised(torch.from_numpy(raw.view(np.uint8)).flatten(), name, (16, 512), torch.float32)
    assert torch.equal(found, torch.from_numpy(unpacked(raw, Format[name]).copy()))
    off = (found - torch.from_numpy(numbers)).abs().max()
    assert 0 < off < {"Q8_0": 0.03, "BF16": 0.02}.get(name, 0.4)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_plain_numbers_are_what_they_were(dtype: type) -> None:
    numbers = np.random.default_rng(3).standard_normal((4, 8)).astype(dtype)
    name = "F32" if dtype is np.float32 else "F16"
    found = dequantised(torch.from_numpy(numbers.view(np.uint8)).flatten(), name, (4, 8), torch.float32)
    assert torch.equal(found, torch.from_numpy(numbers.astype(np.float32)))
