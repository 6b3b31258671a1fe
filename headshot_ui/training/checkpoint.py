"""Checkpoints: a folder is whole or absent, and damage is noticed.

    checkpoints/step-000250/{lora.safetensors, optimizer.pt, state.json}

A folder is filled under the name ``step-000250.tmp`` and renamed when everything in it has reached the disk.
``state.json`` holds the digests of the other files.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from headshot_ui.store import told_plainly, write_bytes_atomic, write_json_atomic

KEPT = 3
LORA, OPTIMIZER, STATE = "lora.safetensors", "optimizer.pt", "state.json"
_NAME = re.compile(r"step-(\d{6,})")

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """All that is needed to go on as if nothing had happened."""

    step: int  # optimizer steps done
    losses: tuple[float, ...]
    lora: Mapping[str, torch.Tensor]
    optimizer: dict[str, Any]
    generator: torch.Tensor  # state of the run's generator
    waiting: tuple[int, ...]  # photos still to come in this round
    class_waiting: tuple[int, ...] = ()
    scaler: Mapping[str, Any] = field(default_factory=dict)  # of the loss; {} without one


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> Path:
    """Write ``folder/step-…`` whole or not at all and remove all but the newest ``KEPT``. Raises StoreError."""
    from safetensors.torch import save

    packed = io.BytesIO()  # torch.save to a file reports a full disk in its own obscure way
    rest = {"optimizer": checkpoint.optimizer, "generator": checkpoint.generator, "scaler": dict(checkpoint.scaler)}
    torch.save(rest, packed)
    files = {LORA: save({name: tensor.contiguous() for name, tensor in checkpoint.lora.items()}),
             OPTIMIZER: packed.getvalue()}  # fmt: skip
    final = folder / f"step-{checkpoint.step:06d}"
    temporary = folder / f"{final.name}.tmp"
    state = {
        "step": checkpoint.step,
        "losses": list(checkpoint.losses),
        "waiting": list(checkpoint.waiting),
        "class_waiting": list(checkpoint.class_waiting),
        "sha256": {name: _digest(data) for name, data in files.items()},
    }
    try:
        with told_plainly(final, "written"):
            shutil.rmtree(temporary, ignore_errors=True)
            for name, data in files.items():
                write_bytes_atomic(temporary / name, data)
            write_json_atomic(temporary / STATE, state)
            if final.exists():  # left from before an older one was continued
                shutil.rmtree(final)
            os.replace(temporary, final)
    finally:  # on a full disk its part would take the room that the run's own manifest needs
        shutil.rmtree(temporary, ignore_errors=True)
    _remove_old(folder)
    return final


def newest_checkpoint(folder: Path) -> tuple[Checkpoint | None, tuple[str, ...]]:
    """The newest whole checkpoint (None when there is none), and the names of newer ones that are damaged."""
    damaged: list[str] = []
    for path in reversed(_folders(folder)):
        try:
            return load_checkpoint(path), tuple(damaged)
        except Exception as error:  # a damaged file can raise anything
            _log.warning("The checkpoint %s is damaged: %s", path, error)
            damaged.append(path.name)
    return None, tuple(damaged)


def set_aside(folder: Path, names: Sequence[str]) -> None:
    """Take damaged checkpoints out of the count, under a name that says what they are."""
    for name in names:
        with told_plainly(folder / name, "renamed"):
            shutil.rmtree(folder / f"damaged-{name}", ignore_errors=True)
            os.replace(folder / name, folder / f"damaged-{name}")


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint folder. Raises ValueError, OSError or KeyError when anything in it is not as written."""
    from safetensors.torch import load

    state = json.loads((path / STATE).read_text(encoding="utf-8"))
    files = {name: (path / name).read_bytes() for name in (LORA, OPTIMIZER)}
    for name, data in files.items():
        if _digest(data) != state["sha256"][name]:
            raise ValueError(f"{name} is not what was written")
    packed = torch.load(io.BytesIO(files[OPTIMIZER]), map_location="cpu", weights_only=True)
    return Checkpoint(
        step=state["step"],
        losses=tuple(state["losses"]),
        lora=load(files[LORA]),
        optimizer=packed["optimizer"],
        generator=packed["generator"],
        waiting=tuple(state["waiting"]),
        class_waiting=tuple(state["class_waiting"]),
        scaler=packed.get("scaler", {}),  # checkpoints of before had none
    )


def _remove_old(folder: Path) -> None:
    for path in _folders(folder)[:-KEPT]:
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob("step-*.tmp"):
        with suppress(OSError):
            shutil.rmtree(path)


def _folders(folder: Path) -> list[Path]:
    """Finished checkpoints, oldest first."""
    found = [path for path in folder.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
