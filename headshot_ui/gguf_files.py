"""What a GGUF file holds, told from its header: names, sizes and number formats. Loads no torch and reads no tensor.

The layout (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), all little-endian: "GGUF", version, number of
tensors, number of entries; the entries (name, type, value); of each tensor name, sizes (the fastest first), type and
where it begins in the data; then the data, at the next multiple of ``general.alignment``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

SUFFIX = ".gguf"
_VERSIONS = (2, 3)
_ALIGNMENT, _ALIGNMENT_ENTRY = 32, "general.alignment"
_MOST_SIZES, _LONGEST_TEXT = 4, 2**27
#: Number → (name, numbers of a block, bytes of a block), as in ggml.h. A row consists of whole blocks.
FORMATS: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 30: ("BF16", 1, 2), 28: ("F64", 1, 8),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip
#: Formats that stand for fractions with fewer bits each.
SHORTENED = frozenset(name for name, block, _ in FORMATS.values() if block > 1)
#: Type of an entry → how ``struct`` reads it.
_NUMBERS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _LIST = 8, 9


@dataclass(frozen=True)
class GgufTensor:
    """One tensor of a GGUF file."""

    name: str
    format: str  # e.g. "Q4_K"; "type 99" for one that is not known here
    shape: tuple[int, ...]  # as torch has it: the fastest last
    start: int  # byte in the file; of an unknown format too
    stored_bytes: int  # 0 of an unknown format


@dataclass(frozen=True)
class GgufHeader:
    """All that is said of a file before its data."""

    tensors: tuple[GgufTensor, ...]
    expected_bytes: int  # how long the file must at least be


def read_gguf(path: Path) -> GgufHeader:
    """The header of a GGUF file. Raises ValueError where it is none or damaged, and OSError."""
    state = path.stat()
    return _header(path, state.st_size, state.st_mtime_ns)


def gguf_fault(path: Path) -> str:
    """What is wrong with a GGUF file, in a few words; "" when it is as long as its header says."""
    try:
        header, size = read_gguf(path), path.stat().st_size
    except (OSError, ValueError):
        return "damaged"
    return "" if size >= header.expected_bytes else f"damaged ({size} bytes instead of {header.expected_bytes})"


@lru_cache(maxsize=64)
def _header(path: Path, size: int, changed_ns: int) -> GgufHeader:
    """The same while size and time of change are."""
    with path.open("rb") as file:
        try:
            return _read(file)
        except (struct.error, UnicodeDecodeError, OverflowError, MemoryError, RecursionError) as error:
            raise ValueError(f"{path} is no GGUF file, or damaged") from error


def _read(file: BinaryIO) -> GgufHeader:
    if file.read(4) != b"GGUF":
        raise ValueError("no GGUF file")
    version = _number(file, "<I")
    if version not in _VERSIONS:
        raise ValueError(f"version {version} of GGUF is not known")
    count, entries = _number(file, "<Q"), _number(file, "<Q")
    alignment = _ALIGNMENT
    for _ in range(entries):
        name = _text(file)
        value = _value(file, _number(file, "<I"))
        if name == _ALIGNMENT_ENTRY:
            alignment = _checked_alignment(value)
    said = [_tensor(file) for _ in range(count)]
    data = -(-file.tell() // alignment) * alignment
    tensors = tuple(_placed(*one, data) for one in said)
    return GgufHeader(tensors, max((tensor.start + tensor.stored_bytes for tensor in tensors), default=data))


def _checked_alignment(value: Any) -> int:
    if not isinstance(value, int) or value <= 0 or value % 8:
        raise ValueError(f"an alignment of {value}")
    return value


def _tensor(file: BinaryIO) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, number of the format, and where it begins in the data."""
    name, sizes = _text(file), _number(file, "<I")
    if sizes > _MOST_SIZES:
        raise ValueError(f"“{name}” has {sizes} sizes")
    shape = tuple(_number(file, "<Q") for _ in range(sizes))
    return name, shape[::-1], _number(file, "<I"), _number(file, "<Q")


def _placed(name: str, shape: tuple[int, ...], number: int, offset: int, data: int) -> GgufTensor:
    format_, block, block_bytes = FORMATS.get(number, (f"type {number}", 1, 0))
    if shape and shape[-1] % block:
        raise ValueError(f"a row of “{name}” is no whole number of blocks")
    return GgufTensor(name, format_, shape, data + offset, math.prod(shape) // block * block_bytes)


def _number(file: BinaryIO, kind: str) -> int:
    (value,) = struct.unpack(kind, file.read(struct.calcsize(kind)))
    return value  # type: ignore[no-any-return]


def _text(file: BinaryIO) -> str:
    length = _number(file, "<Q")
    if length > _LONGEST_TEXT:
        raise ValueError("a text longer than any")
    found = file.read(length)
    if len(found) != length:
        raise ValueError("cut short")
    return found.decode("utf-8")


def _value(file: BinaryIO, kind: int) -> Any:
    """A number or text; lists, which nothing here needs, are passed over."""
    if kind == _TEXT:
        return _text(file)
    if kind == _LIST:
        inside, count = _number(file, "<I"), _number(file, "<Q")
        if inside in _NUMBERS:
            file.seek(count * struct.calcsize(_NUMBERS[inside]), 1)
            return None
        for _ in range(count):
            _value(file, inside)
        return None
    if kind not in _NUMBERS:
        raise ValueError(f"an entry of the unknown type {kind}")
    return _number(file, _NUMBERS[kind])
