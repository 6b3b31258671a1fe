"""The header of a GGUF file, as llama.cpp's own package writes it, and what is said of one that is damaged."""

from __future__ import annotations

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import weights_fault
from headshot_ui.gguf_files import FORMATS, SHORTENED, read_gguf
from headshot_ui.memory import file_bytes, read_header


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """With entries of every kind, an alignment of its own and two tensors."""
    made = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(made, "flux")
    writer.add_custom_alignment(64)
    writer.add_bool("one.bool", True)
    writer.add_float64("one.number", 0.5)
    writer.add_array("some.numbers", [1, 2, 3])
    writer.add_array("some.words", ["a", "bc", "ü"])
    writer.add_tensor("plain", np.arange(10, dtype=np.float32).reshape(2, 5))
    rows = gguf.quantize(np.ones((3, 64), dtype=np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("short", rows, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return made


def test_formats_are_those_of_llama_cpp() -> None:
    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()}
    assert dict(FORMATS) == theirs
    assert "Q4_K" in SHORTENED and not SHORTENED & {"F32", "F16", "BF16", "I8"}


def test_tensors_are_where_the_package_finds_them(path: Path) -> None:
    header = read_gguf(path)
    theirs = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert [tensor.name for tensor in header.tensors] == ["plain", "short"]
    for tensor in header.tensors:
        their = theirs[tensor.name]
        assert (tensor.start, tensor.stored_bytes) == (their.data_offset, their.n_bytes)
        assert tensor.format == their.tensor_type.name and tensor.shape == tuple(reversed(their.shape.tolist()))
    assert header.tensors[1].start % 64 == 0 and not weights_fault(path)


def test_its_bytes_in_memory_are_counted_by_its_numbers(path: Path) -> None:
    plain, short = read_header(path)
    assert (short.dtype, short.shape, short.stored_bytes) == ("Q8_0", (3, 64), 3 * 2 * 34)
    assert (plain.loaded_bytes("float16"), short.loaded_bytes("float16"), short.loaded_bytes("float32")) == (
        20,
        384,
        768,
    )
    assert file_bytes(path, "float16") == path.stat().st_size, "a network of another kind, by its size"


def test_one_that_is_cut_short_is_told(path: Path) -> None:
    whole = path.read_bytes()
    expected = read_gguf(path).expected_bytes
    path.write_bytes(whole[: expected - 1])
    assert weights_fault(path) == f"damaged ({expected - 1} bytes instead of {expected})"
    for length in range(0, read_gguf(path).tensors[0].start - 64):  # in the header, wherever
        path.write_bytes(whole[:length])
        assert weights_fault(path) == "damaged", length
        with pytest.raises(ModelError, match="is damaged: remove it and get it again"):
            read_header(path)


@pytest.mark.parametrize(
    "start",
    [
        b"GGML" + bytes(60),
        b"GGUF" + struct.pack("<IQQ", 1, 1, 1) + bytes(60),  # an old version with other sizes
        b"GGUF" + struct.pack(">IQQ", 3, 1, 1) + bytes(60),  # the other order of bytes
        b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60) + struct.pack("<Q", 2**62) + bytes(60),
        b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + struct.pack("<Q", 1) + b"a" + struct.pack("<I", 9) + bytes(60),
    ],
)
def test_what_is_none_is_told(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(start)
    assert weights_fault(path) == "damaged"
