"""A transformer made to fit while it is read: no more than one layer is ever in memory in 16 bit.

In order: an empty transformer (``torch.device("meta")``), ``modulation.table`` or ``rows_for`` and ``modulation.drop``,
``eight_bit.shrink``, then ``fill`` for what is left, each with the same ``reader``; last ``streaming.stream``.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.flux_parts.single_reading import SingleFile

Read = Callable[[str], torch.Tensor]


def opened(place: Path, dtype: torch.dtype, work_on: torch.device | str = "cpu") -> AbstractContextManager[Read]:
    """What reads the weights in ``place`` by name: a folder in diffusers layout, or a single file (see ``SingleFile``).

    ``dtype`` is what shortened numbers become, which is done on ``work_on``; others are read in their own format.
    """
    return Reader(place) if place.is_dir() else SingleFile(place, dtype, work_on)


class Reader:
    """Reads single tensors of a folder's safetensors files by name; closes them at the end of a ``with``."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._files = folder, ExitStack()
        self._where: dict[str, Any] = {}

    def __enter__(self) -> Reader:
        from safetensors import SafetensorError, safe_open

        paths = sorted(self._folder.glob("*.safetensors"))
        try:
            for path in paths:
                file = self._files.enter_context(safe_open(path, framework="pt"))
                self._where |= dict.fromkeys(file.keys(), file)
        except (SafetensorError, OSError) as error:
            self._files.close()
            raise ModelError(f"{path} is damaged: remove it and get it again.") from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._where.clear()
        self._files.close()

    def __call__(self, name: str) -> torch.Tensor:
        """In main memory, in the file's number format. Raises ModelError where it is not there."""
        if name not in self._where:
            raise ModelError(f"{self._folder} lacks the weights “{name}”: get the model again.")
        tensor: torch.Tensor = self._where[name].get_tensor(name)
        return tensor


def fill(
    module: torch.nn.Module,
    read: Read,
    dtype: torch.dtype,
    stay_on: torch.device | str = "cpu",
    told: Callable[[int, int], None] | None = None,
) -> None:
    """Read every parameter without weights to ``stay_on``, frozen and in ``dtype``; those that have some stay.

    ``told`` is called with (parameters done, parameters in all) and may raise; what is done stays done then.
    """
    missing = [(name, weight) for name, weight in module.named_parameters() if weight.is_meta]
    for done, (name, weight) in enumerate(missing):
        if told is not None:
            told(done, len(missing))
        found = read(name)
        if found.shape != weight.shape:
            sizes = f"{tuple(found.shape)} instead of {tuple(weight.shape)}"
            raise ModelError(f"The weights “{name}” are of the size {sizes}: get the model again.")
        owner, _, last = name.rpartition(".")
        made = torch.nn.Parameter(found.to(stay_on, dtype), requires_grad=False)
        module.get_submodule(owner).register_parameter(last, made)
    if told is not None and missing:
        told(len(missing), len(missing))
