"""Prompts as a base model has read them, kept on disk, so that the same prompt needs no text encoder again.

Only for bases that say what decides their reading (``LoadedBase.text_key``): where encoders are large, FLUX.1's T5 of
4.7 billion parameters, getting them into memory takes far longer than the picture's last steps. An entry is one file
of the person's folder ``prompts``, called by a SHA-256 of the text and of everything else that decides its bits, so
that another encoder, number format or device never meets it. 512 tokens of FLUX.1 are 4 MB.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.errors import StoreError
from headshot_ui.families.protocol import PromptEmbeds, TextKey
from headshot_ui.store import told_plainly, write_bytes_atomic

if TYPE_CHECKING:
    import torch

#: Of all entries of a person together; the longest unused go first. 128 prompts of FLUX.1-dev.
MOST_BYTES = 512 * 2**20
#: Rises when texts are read otherwise by this program itself.
_VERSION = 1
#: A file up to this size is told by all its bytes. A larger one by its size, the time of its last change, its
#: beginning (in safetensors the names and shapes of all tensors) and samples: reading 10 GB whole would take as long
#: as what is saved here.
_WHOLE_BYTES = 2**25
_BEGINNING_BYTES, _SAMPLES, _SAMPLE_BYTES = 2**20, 64, 2**12
_SUFFIX, _SUM = ".safetensors", "sha256"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class KeptPrompts:
    """What one base model has read for one person."""

    folder: Path
    read_by: str  # SHA-256 of all that decides an entry beside its text
    most_bytes: int = MOST_BYTES

    @classmethod
    def of(cls, folder: Path, key: TextKey | None) -> KeptPrompts | None:
        """None for a base whose reading is not kept. Raises StoreError for a file of the base that is gone."""
        if key is None:
            return None
        files = [f"{path.name} {_mark_of(path)}" for path in key.files]
        libraries = [f"{name} {version(name)}" for name in ("torch", "transformers")]
        return cls(folder, _sha256_of(json.dumps([_VERSION, *libraries, *files, *key.rest])))

    def find(self, text: str) -> PromptEmbeds | None:
        """The entry of ``text``, first dimension 1, to the last bit as it was kept; it counts as used now.

        None where there is none, or a damaged one, which the log names.
        """
        path = self._path(text)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            _log.warning("A kept prompt is read anew: %s (%s)", path, error)
            return None
        embeds = _unpacked(data)
        if embeds is None:
            _log.warning("A kept prompt is damaged and read anew: %s", path)
            return None
        with suppress(OSError):  # the time is only for the order in which entries go
            os.utime(path)
        return embeds

    def keep(self, text: str, embeds: PromptEmbeds) -> None:
        """Keep what was read, and let the longest unused go. A disk that is full is only logged: nothing is lost."""
        try:
            write_bytes_atomic(self._path(text), _packed(embeds))
        except StoreError as error:
            _log.warning("A prompt is not kept: %s", error)
        self._let_go()

    def _path(self, text: str) -> Path:
        return self.folder / f"{_sha256_of(json.dumps([self.read_by, text]))}{_SUFFIX}"

    def _let_go(self) -> None:
        """Another program may be doing the same: what is gone already is no problem."""
        entries = sorted(_entries(self.folder), reverse=True)  # used last first
        total = 0
        for _, size, path in entries:
            total += size
            if total > self.most_bytes:
                with suppress(OSError):
                    path.unlink()


def _entries(folder: Path) -> Iterator[tuple[int, int, Path]]:
    """(when it was used, bytes, path) of every entry there is."""
    for path in folder.glob(f"*{_SUFFIX}"):
        with suppress(OSError):
            state = path.stat()
            yield state.st_mtime_ns, state.st_size, path


# --- an entry -------------------------------------------------------------------------------------
def _packed(embeds: PromptEmbeds) -> bytes:
    from safetensors.torch import save

    tensors = {name: tensor.detach().contiguous() for name, tensor in embeds.items()}
    data: bytes = save(tensors, {_SUM: _sum_of(tensors)})
    return data


def _unpacked(data: bytes) -> PromptEmbeds | None:
    """None for anything but a whole entry."""
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        length = int.from_bytes(data[:8], "little")
        told = json.loads(data[8 : 8 + length])["__metadata__"][_SUM]
        tensors: dict[str, torch.Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None
    return tensors if told == _sum_of(tensors) else None


def _sum_of(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, number formats, shapes and all bytes."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


# --- what decides it ------------------------------------------------------------------------------
def _mark_of(path: Path) -> str:
    """A SHA-256 by which a file is told from another one. Raises StoreError."""
    with told_plainly(path, "read"):
        state = path.stat()
    return _mark(path, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=64)
def _mark(path: Path, size: int, changed_ns: int) -> str:
    digest = hashlib.sha256(str(size).encode())
    with told_plainly(path, "read"), path.open("rb") as file:
        if size <= _WHOLE_BYTES:
            digest.update(file.read())
            return digest.hexdigest()
        digest.update(f" {changed_ns} ".encode())
        digest.update(file.read(_BEGINNING_BYTES))
        for sample in range(_SAMPLES):
            file.seek((size - _SAMPLE_BYTES) * sample // (_SAMPLES - 1))
            digest.update(file.read(_SAMPLE_BYTES))
    return digest.hexdigest()


def _sha256_of(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
