"""Bytes of models by their headers, and torch's own limit on graphics memory."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.numpy import save_file

from headshot_ui import memory
from headshot_ui.errors import DeviceError, ModelError
from headshot_ui.graphics import Build, Card, Look, Program
from headshot_ui.memory import (
    CONTEXT_BYTES,
    DESKTOP_BYTES,
    card_bytes,
    files_bytes,
    free_vram_bytes,
    limit_vram,
    read_header,
    vram_budget_bytes,
    weight_bytes,
)
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

    def get_device_capability(self) -> tuple[int, int]:
        return 8, 6

    def get_arch_list(self) -> list[str]:
        return ["sm_86"]


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    made = FakeCuda()
    fake: Any = SimpleNamespace(cuda=made, version=SimpleNamespace(cuda="13.2"))
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


def test_a_plan_counts_on_the_whole_card_within_the_limit(
    tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert card_bytes(on_card(tmp_path, None)) == 24 * 2**30, "not only on what is free at the moment"
    assert card_bytes(on_card(tmp_path, "8GB")) == 8 * 2**30
    assert card_bytes(on_card(tmp_path, "96GB")) == 24 * 2**30
    settings = Settings.from_environment(root=tmp_path, device="cpu", environment={})
    assert card_bytes(settings) is None
    limited = on_card(tmp_path, "8GB")
    assert limited.device == "cuda"
    monkeypatch.delitem(sys.modules, "torch")
    assert card_bytes(limited) == 8 * 2**30, "the limit is known before torch is loaded"


@pytest.mark.parametrize("limit", [None, "8GB", "96GB"])
def test_on_windows_torch_never_gets_more_than_is_truly_free(
    limit: str | None, tmp_path: Path, cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory.sys, "platform", "win32")
    limit_vram(on_card(tmp_path, limit))
    free = 20 * 2**30 - DESKTOP_BYTES  # what others have is not given away, whatever limit was asked for
    allowed = 8 * 2**30 - CONTEXT_BYTES if limit == "8GB" else free
    assert cuda.shares == [allowed / (24 * 2**30)]
    assert vram_budget_bytes(on_card(tmp_path, None)) == free + CONTEXT_BYTES, "the plan counts on no more either"
    assert free_vram_bytes(on_card(tmp_path, None)) == 18 * 2**30 - DESKTOP_BYTES
    monkeypatch.setattr(cuda, "mem_get_info", lambda: (0, 24 * 2**30))
    monkeypatch.setattr(cuda, "memory_reserved", lambda: 0)
    limit_vram(on_card(tmp_path, None))
    assert cuda.shares[-1] == 0.0, "a full card: the next allocation fails at once instead of crawling"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"), "set to serve one at a time"),
        (RuntimeError("CUDA error: out of memory"), "full before anything was begun on it: close trainer"),
        (RuntimeError("The NVIDIA driver on your system is too old (found version 11040)."), "driver 470.1 is too old"),
        (RuntimeError("CUDA error: unspecified launch failure"), "end this program and start it again"),
        (AssertionError("Torch not compiled with CUDA enabled"), "cannot be used"),
    ],
)
def test_a_card_that_does_not_answer_is_told_in_words(
    error: Exception, words: str, cuda: FakeCuda, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> tuple[int, int]:
        raise error

    card = Card("RTX 3060", "GPU-1", "470.1", 12 * 2**30, "Exclusive_Process", (8, 6))
    monkeypatch.setattr(cuda, "mem_get_info", refuse)
    monkeypatch.setattr(memory, "known_cards", lambda: Look((card,)))
    monkeypatch.setattr(memory, "installed_build", lambda: Build("2.15.0+cu132", "13.2"))
    monkeypatch.setattr(memory, "programs_on", lambda uuid: (Program(1, "trainer", None),))
    for ask in (vram_budget_bytes, free_vram_bytes):
        with pytest.raises(DeviceError, match=words):
            ask(on_card(tmp_path, None))


class FakeMps:
    """A Mac with 16 GB, of which Metal recommends 10 GB at most."""

    def __init__(self) -> None:
        self.shares: list[float] = []
        self.emptied = 0

    def recommended_max_memory(self) -> int:
        return 10 * 2**30

    def set_per_process_memory_fraction(self, share: float) -> None:
        self.shares.append(share)

    def empty_cache(self) -> None:
        self.emptied += 1


@pytest.fixture
def mps(monkeypatch: pytest.MonkeyPatch) -> FakeMps:
    made = FakeMps()
    here, nothing = SimpleNamespace(is_available=lambda: True), SimpleNamespace(is_available=lambda: False)
    cuda = SimpleNamespace(is_available=lambda: False, is_initialized=lambda: False)
    fake: Any = SimpleNamespace(mps=made, cuda=cuda, backends=SimpleNamespace(mps=here, cuda=nothing))
    monkeypatch.setitem(sys.modules, "torch", fake)
    return made


def test_apples_gpu_shares_main_memory_and_is_limited_when_asked(tmp_path: Path, mps: FakeMps) -> None:
    def settings(limit: str | None) -> Settings:
        return Settings.from_environment(root=tmp_path, vram_limit=limit, environment={})

    assert settings(None).device == "mps"
    for limit in (None, "5GB", "96GB", "1kB"):
        limit_vram(settings(limit))
    assert mps.shares == [0.5, 2.0, 0.001], "0 would mean no limit, and more than 2 is refused"
    assert memory.shared_vram_bytes(settings(None)) == 10 * 2**30
    assert memory.shared_vram_bytes(settings("5GB")) == 5 * 2**30


def test_what_torch_keeps_of_a_devices_memory_goes_back_to_it(mps: FakeMps, monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("cpu", "mps"):
        memory.empty_cache(device)
    assert mps.emptied == 1
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    memory.give_back()
    assert mps.emptied == 2
    monkeypatch.setitem(sys.modules, "torch", None)
    memory.empty_cache("mps")
    memory.give_back()
