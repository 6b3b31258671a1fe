"""Where network files lie and how they are read: safetensors, or a .pth from which nothing but tensors is taken."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.errors import ModelError

if TYPE_CHECKING:
    import torch
    from spandrel import ArchRegistry

SUFFIXES = (".safetensors", ".pth")


def find_file(folder: Path, stems: Sequence[str], default_suffix: str = ".pth") -> Path:
    """The first file of these names that is there, else the place where the first one belongs."""
    places = [folder / f"{stem}{suffix}" for stem in stems for suffix in SUFFIXES]
    return next((place for place in places if place.is_file()), folder / f"{stems[0]}{default_suffix}")


def read_spandrel(path: Path, registry: ArchRegistry, what: str) -> torch.nn.Module:
    """The network that spandrel recognises in a file, one of ``registry`` only. Raises ModelError.

    spandrel's reader of .pth files refuses everything but tensors; its descriptor is left behind, because calling
    that passes neither a fidelity weight nor the range of values that CodeFormer was trained with.
    """
    from spandrel import ModelLoader, UnsupportedModelError

    state = _read(path, what, lambda: ModelLoader("cpu").load_state_dict_from_file(path))
    try:
        net: torch.nn.Module = registry.load(state).model
        return net
    except (UnsupportedModelError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(f"{path} does not hold {what}: replace it by the right file.") from error


def read_state(path: Path, what: str) -> dict[str, torch.Tensor]:
    """Tensors by name. Raises ModelError naming the file when it is missing or damaged."""
    return _read(path, what, lambda: _state(path))


def _state(path: Path) -> dict[str, torch.Tensor]:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    import torch

    state: dict[str, torch.Tensor] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _read(path: Path, what: str, reader: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    if not path.is_file():
        raise ModelError(f"The file of {what} is missing: put it at {path}.")
    try:
        return reader()
    except Exception as error:  # every reader has its own errors for a damaged or dangerous file
        raise ModelError(
            f"{path} is damaged or no file of {what}: get it again, under Models on the page or with “models get”."
        ) from error
