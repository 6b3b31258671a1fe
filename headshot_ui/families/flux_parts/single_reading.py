"""Single tensors out of a file with a FLUX.1 transformer, under diffusers' names: cut, multiplied, unpacked on the way.

The file is mapped: of one tensor no more is touched than is asked for, and a piece that is stored as it is wanted is
never copied. Shortened numbers (float8, GGUF) become ``dtype`` one tensor at a time, computed in float32 and rounded
once; others keep their number format.
"""

from __future__ import annotations

import mmap
import warnings
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.flux_parts.dequantise import AT_A_TIME, dequantised, row_bytes
from headshot_ui.families.flux_parts.original_names import Piece
from headshot_ui.families.flux_parts.single_file import FACTORS, FLOAT8, is_gguf, usable
from headshot_ui.gguf_files import GgufTensor, read_gguf

_FLOAT8 = tuple(getattr(torch, name) for name in FLOAT8.values())


class _Rows(Protocol):
    """Rows of a tensor by its name in the file."""

    def __call__(self, name: str, start: int, stop: int) -> torch.Tensor:
        """In main memory or where it was unpacked. Raises KeyError, SafetensorError or OSError."""


class SingleFile:
    """Reads single tensors by diffusers' names inside a ``with``. ``work_on``: where shortened numbers are unpacked."""

    def __init__(self, path: Path, dtype: torch.dtype, work_on: torch.device | str = "cpu") -> None:
        self._path, self._dtype, self._work_on = path, dtype, work_on
        self._files = ExitStack()
        self._rows: _Rows | None = None
        self._pieces: Mapping[str, Piece] = {}
        self._prefix = ""

    def __enter__(self) -> SingleFile:
        from safetensors import SafetensorError

        found = usable(self._path)
        self._prefix, self._pieces = found.prefix, found.layout.pieces
        try:
            opened = _Gguf if is_gguf(self._path) else _Safetensors
            self._rows = opened(self._path, self._dtype, self._work_on, self._files)
        except (SafetensorError, OSError, ValueError) as error:
            self._files.close()
            raise ModelError(f"{self._path} is damaged: remove it and get it again.") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._rows = None
        self._files.close()

    def __call__(self, name: str) -> torch.Tensor:
        """See ``reading.Reader``. Raises ModelError where it is not there."""
        piece = self._pieces.get(name)
        if piece is None or self._rows is None:
            raise ModelError(f"{self._path} lacks the weights “{name}”: get the model again.")
        try:
            found = self._rows(self._prefix + piece.name, piece.start, piece.stop)
        except Exception as error:  # whatever the file's reader raises, it is not what its header said
            raise ModelError(f"The weights “{piece.name}” in {self._path} cannot be read: get it again.") from error
        return torch.cat(found.chunk(2)[::-1]) if piece.swapped else found


class _Safetensors:
    """Mapped tensors; float8 is multiplied by the factor of its layer where there is one."""

    def __init__(self, path: Path, dtype: torch.dtype, work_on: torch.device | str, files: ExitStack) -> None:
        from safetensors import safe_open

        self._dtype, self._work_on = dtype, work_on
        self._file: Any = files.enter_context(safe_open(path, framework="pt"))
        self._names = frozenset(self._file.keys())

    def __call__(self, name: str, start: int, stop: int) -> torch.Tensor:
        found: torch.Tensor = self._file.get_tensor(name)[start:stop]
        factor = self._factor(name, start, stop)
        if factor is not None:
            return _multiplied(found.to(self._work_on), factor.to(self._work_on).float(), self._dtype)
        return found.to(self._work_on).to(self._dtype) if found.dtype in _FLOAT8 else found

    def _factor(self, name: str, start: int, stop: int) -> torch.Tensor | None:
        """() or (rows, 1); None where there is none. It belongs to weights: biases are never in float8 with one."""
        layer, _, last = name.rpartition(".")
        known = next((f"{layer}.{factor}" for factor in FACTORS if f"{layer}.{factor}" in self._names), None)
        if known is None or last != "weight":
            return None
        factor: torch.Tensor = self._file.get_tensor(known)
        return factor.reshape(()) if factor.numel() == 1 else factor.reshape(-1, 1)[start:stop]


def _multiplied(stored: torch.Tensor, factor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """In float32, a few rows at a time; ``factor`` is () or (rows, 1)."""
    out = torch.empty(stored.shape, dtype=dtype, device=stored.device)
    step = max(1, AT_A_TIME * len(stored) // max(1, stored.numel()))
    for start in range(0, len(stored), step):
        some = slice(start, start + step)
        out[some] = stored[some].float() * (factor if factor.dim() == 0 else factor[some])
    return out


class _Gguf:
    """Rows out of a mapped GGUF file, unpacked; a row is a whole number of blocks."""

    def __init__(self, path: Path, dtype: torch.dtype, work_on: torch.device | str, files: ExitStack) -> None:
        self._dtype, self._work_on = dtype, work_on
        self._tensors: dict[str, GgufTensor] = {tensor.name: tensor for tensor in read_gguf(path).tensors}
        with path.open("rb") as file:
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns that it cannot be written to, and nothing does
            self._bytes = torch.frombuffer(mapped, dtype=torch.uint8)  # keeps the mapping for as long as it is needed

    def __call__(self, name: str, start: int, stop: int) -> torch.Tensor:
        tensor = self._tensors[name]
        a_row = row_bytes(tensor.format, tensor.shape[-1] if len(tensor.shape) > 1 else 1)
        first = tensor.start + start * a_row
        raw = self._bytes[first : first + (stop - start) * a_row]
        shape = (stop - start, *tensor.shape[1:])
        return dequantised(raw.to(self._work_on), tensor.format, shape, self._dtype)
