"""Bytes of models by their headers, and torch's own limit on graphics memory."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.numpy import save_file

from headshot_ui.errors import ModelError
from headshot_ui.memory import CONTEXT_BYTES, files_bytes, free_vram_bytes, limit_vram, read_header, weight_bytes
from headshot_ui.settings import Settings
from tests.core.fakes import write_weights


def test_weights_are_counted_as_they_will_be_in_memory(tmp_path: Path) -> None:
    write_weights(tmp_path / "unet" / "a.safetensors", {"w": ("F16", 1000), "ids": ("I64", 10)})
    write_weights(tmp_path / "unet" / "b.safetensors", {"w": ("F32", 500)})
    write_weights(tmp_path / "vae" / "model.safetensors", {"w": ("F32", 100)})
    write_weights(tmp_path / "vae" / "model.fp16.safetensors", {"w": ("F16", 100)})
    assert weight_bytes(tmp_path, "float32") == {"unet": 4000 + 80 + 2000, "vae": 400}
    assert weight_bytes(tmp_path, "bfloat16") == {"unet": 2000 + 80 + 1000, "vae": 200}
    assert weight_bytes(tmp_path / "none", "float32") == {}


def test_a_file_of_the_safetensors_package_is_counted_exactly(tmp_path: Path) -> None:
    import numpy as np

    (tmp_path / "unet").mkdir()
    save_file({"a": np.zeros((3, 5), np.float16), "b": np.zeros(7, np.float32)}, tmp_path / "unet" / "x.safetensors")
    assert weight_bytes(tmp_path, "float32") == {"unet": 4 * (15 + 7)}


@pytest.mark.parametrize("data", [b"", b"abc", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0[]", b'\x08\0\0\0\0\0\0\0{"a": 1}'])
def test_a_damaged_weight_file_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "x.safetensors").write_bytes(data)
    with pytest.raises(ModelError, match=r"x\.safetensors is damaged"):
        weight_bytes(tmp_path, "float32")


def test_files_and_folders_together(tmp_path: Path) -> None:
    write_weights(tmp_path / "base" / "unet" / "a.safetensors", {"w": ("F16", 1000)})
    write_weights(tmp_path / "face.safetensors", {"w": ("F32", 10)})
    (tmp_path / "old.pth").write_bytes(bytes(77))
    paths = [tmp_path / name for name in ("base", "face.safetensors", "old.pth", "nowhere.pth")]
    assert files_bytes(paths, "float32") == {"unet": 4000, "face": 40, "old": 77}


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    write_weights(tmp_path / "a.safetensors", {"w": ("F16", 1000)})
    assert [tensor.shape for tensor in read_header(tmp_path / "a.safetensors")] == [(1000,)]
    write_weights(tmp_path / "a.safetensors", {"w": ("F16", 2000)})
    assert [tensor.shape for tensor in read_header(tmp_path / "a.safetensors")] == [(2000,)]


class FakeCuda:
    """A card of 24 GB with 20 GB free, of which torch has reserved 3 GB and filled 2 GB."""

    def __init__(self) -> None:
        self.shares: list[float] = []

    def mem_get_info(self) -> tuple[int, int]:
        return 17 * 2**30, 24 * 2**30

    def memory_reserved(self) -> int:
        return 3 * 2**30

    def memory_allocated(self) -> int:
        return 2 * 2**30

    def get_device_properties(self, index: int) -> Any:
        return SimpleNamespace(total_memory=24 * 2**30)

    def set_per_process_memory_fraction(self, share: float, device: int) -> None:
        self.shares.append(share)

    def is_available(self) -> bool:
        return True


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    made = FakeCuda()
    fake: Any = SimpleNamespace(cuda=made)
    monkeypatch.setitem(sys.modules, "torch", fake)
    return made


def on_card(tmp_path: Path, limit: str | None) -> Settings:
    return Settings.from_environment(root=tmp_path, device="cuda", vram_limit=limit, environment={})


def test_the_allocator_gets_the_limit_less_the_context(tmp_path: Path, cuda: FakeCuda) -> None:
    for limit in (None, "8GB", "96GB", "100MB"):
        limit_vram(on_card(tmp_path, limit))
    assert cuda.shares == [(8 * 2**30 - CONTEXT_BYTES) / (24 * 2**30), 1.0, 0.0]
    limit_vram(Settings.from_environment(root=tmp_path, device="cpu", vram_limit="8GB", environment={}))
    assert len(cuda.shares) == 3, "nothing to limit without a card"


def test_free_graphics_memory_stays_below_the_limit(tmp_path: Path, cuda: FakeCuda) -> None:
    assert free_vram_bytes(on_card(tmp_path, None)) == 18 * 2**30
    assert free_vram_bytes(on_card(tmp_path, "8GB")) == 6 * 2**30 - CONTEXT_BYTES
    assert free_vram_bytes(on_card(tmp_path, "1GB")) < 0, "it is more than full already"


@pytest.mark.parametrize(("system", "share"), [("win32", 0.75), ("linux", None)])
def test_on_windows_torch_never_gets_more_than_is_truly_free(
    system: str, share: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from headshot_ui import memory

    given: list[float] = []
    card = type("Card", (), {"total_memory": 8 * 2**30})
    monkeypatch.setattr(memory.sys, "platform", system)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", lambda part, index: given.append(part))
    monkeypatch.setattr(memory, "vram_budget_bytes", lambda settings: 6 * 2**30 + memory.CONTEXT_BYTES)
    memory.limit_vram(type("S", (), {"device": "cuda", "vram_limit_bytes": None}))  # type: ignore[arg-type]
    assert given == ([] if share is None else [share])
