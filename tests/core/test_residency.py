"""At most one base model in memory, and only one that fits."""

from __future__ import annotations

import weakref
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file

from headshot_ui import residency as residency_module
from headshot_ui.errors import Cancelled, MemoryBudgetError, ModelError
from headshot_ui.meter import StageUse
from headshot_ui.residency import OVERHEAD_BYTES, Residency, weight_bytes
from headshot_ui.settings import Settings
from tests.core.fakes import FakeLoaded, base, write_weights


class Loader:
    def __init__(self, info: Any) -> None:
        self.info = info
        self.made: list[FakeLoaded] = []

    def __call__(self) -> Any:
        self.made.append(FakeLoaded(self.info))
        return self.made[-1]


@pytest.fixture
def residency(settings: Settings) -> Residency:
    return Residency(settings)


@pytest.fixture
def demo(settings: Settings) -> Loader:
    return Loader(base("demo", settings.models_dir))


@pytest.fixture
def other(settings: Settings) -> Loader:
    return Loader(base("other", settings.models_dir))


def test_the_same_base_is_loaded_once_and_loras_are_off_after_each_use(residency: Residency, demo: Loader) -> None:
    for _ in range(3):
        with residency.use(demo.info, demo) as loaded:
            loaded.use_loras([(Path("a"), 1.0)])
    assert len(demo.made) == 1 and demo.made[0].released == 0
    assert demo.made[0].loras[-1] == () and residency.resident == demo.info


def test_another_base_makes_room_before_it_loads(residency: Residency, demo: Loader, other: Loader) -> None:
    with residency.use(demo.info, demo):
        pass

    def load() -> Any:
        assert demo.made[0].released == 1, "the old model must be gone before the new one comes"
        return other()

    with residency.use(other.info, load):
        pass
    assert residency.resident == other.info


def test_a_changed_base_of_the_same_id_is_loaded_again(residency: Residency, demo: Loader, settings: Settings) -> None:
    with residency.use(demo.info, demo):
        pass
    moved = base("demo", settings.models_dir / "elsewhere")
    with residency.use(moved, Loader(moved)):
        assert residency.resident == moved


def test_a_cancel_keeps_the_model_without_its_loras(residency: Residency, demo: Loader) -> None:
    with pytest.raises(Cancelled), residency.use(demo.info, demo) as loaded:
        loaded.use_loras([(Path("a"), 1.0)])
        raise Cancelled
    assert residency.resident == demo.info
    assert demo.made[0].released == 0 and demo.made[0].loras[-1] == ()


@pytest.mark.parametrize("error", [RuntimeError("CUDA error"), KeyboardInterrupt()])
def test_any_other_error_evicts(residency: Residency, demo: Loader, error: BaseException) -> None:
    with pytest.raises(type(error)), residency.use(demo.info, demo):
        raise error
    assert residency.resident is None and demo.made[0].released == 1
    with residency.use(demo.info, demo):
        assert len(demo.made) == 2


def test_a_model_that_cannot_be_cleaned_is_evicted(
    residency: Residency, demo: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: FakeLoaded, loras: Any) -> None:
        raise RuntimeError("cannot take it off")

    monkeypatch.setattr(FakeLoaded, "use_loras", broken)
    with pytest.raises(RuntimeError, match="cannot take it off"), residency.use(demo.info, demo):
        pass
    assert residency.resident is None


def test_eviction_lets_go_of_the_model(residency: Residency, demo: Loader) -> None:
    with residency.use(demo.info, demo):
        pass
    watch = weakref.ref(demo.made.pop())
    residency.evict()
    assert watch() is None


def test_eviction_survives_a_broken_release(
    residency: Residency, demo: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(self: FakeLoaded) -> None:
        raise RuntimeError("the GPU is lost")

    monkeypatch.setattr(FakeLoaded, "release", broken)
    with residency.use(demo.info, demo):
        pass
    residency.evict()
    assert residency.resident is None


def test_a_failed_load_leaves_nothing_behind(residency: Residency, demo: Loader, other: Loader) -> None:
    with residency.use(demo.info, demo):
        pass

    def load() -> Any:
        raise ModelError("damaged")

    with pytest.raises(ModelError), residency.use(other.info, load):
        pass
    assert residency.resident is None and demo.made[0].released == 1


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


def test_a_base_that_does_not_fit_is_refused_before_loading_and_the_nearest_named(
    residency: Residency, settings: Settings, demo: Loader, other: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = base("tiny", settings.models_dir)
    for info, count in ((demo.info, 4_000_000), (other.info, 2_000_000), (tiny, 1000)):
        write_weights(info.folder / "unet" / "x.safetensors", {"w": ("F16", count)})
    monkeypatch.setattr(residency_module, "_free_ram_bytes", lambda: OVERHEAD_BYTES + 10_000_000)
    words = r"“Demo” needs about 527\.3 MB of memory and 521\.5 MB is free.*“other”"
    with pytest.raises(MemoryBudgetError, match=words), residency.use(demo.info, demo, [tiny, other.info]):
        pass
    assert not demo.made
    with pytest.raises(MemoryBudgetError, match="no installed model needs less"), residency.use(demo.info, demo):
        pass
    with residency.use(other.info, other):
        pass


def test_the_graphics_memory_must_hold_the_largest_part(
    settings: Settings, demo: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headshot_ui.settings._usable", lambda device: True)
    monkeypatch.setattr(residency_module, "_free_vram_bytes", lambda settings: OVERHEAD_BYTES + 3_000_000)
    on_gpu = Residency(Settings.from_environment(root=settings.root, device="cuda", dtype="float16", environment={}))
    for part, count in (("unet", 1_400_000), ("text_encoder", 1_400_000)):
        write_weights(demo.info.folder / part / "x.safetensors", {"w": ("F16", count)})
    with on_gpu.use(demo.info, demo):
        pass  # 2.8 MB each: they take turns
    on_gpu.evict()
    write_weights(demo.info.folder / "unet" / "x.safetensors", {"w": ("F16", 1_600_000)})
    with pytest.raises(MemoryBudgetError, match="of graphics memory"), on_gpu.use(demo.info, demo):
        pass


def test_the_largest_peaks_are_remembered_across_starts(residency: Residency, settings: Settings, demo: Loader) -> None:
    residency.record(demo.info, StageUse("train", 10.0, 500, 70))
    residency.record(demo.info, StageUse("train", 20.0, 400, 90))
    residency.record(demo.info, StageUse("generate", 1.0, 100, 10))
    again = Residency(settings)
    assert again.peaks(demo.info) == {
        "train": StageUse("train", 20.0, 500, 90), "generate": StageUse("generate", 1.0, 100, 10),
    }  # fmt: skip
    assert again.peaks(base("other", settings.models_dir)) == {}


def test_damaged_peaks_are_forgotten_not_fatal(residency: Residency, settings: Settings, demo: Loader) -> None:
    for text in ("{", "[]", '{"demo": {"train": {"wrong": 1}}}'):
        settings.outputs_dir.mkdir(exist_ok=True)
        (settings.outputs_dir / "peaks.json").write_text(text)
        assert residency.peaks(demo.info) == {}
    residency.record(demo.info, StageUse("train", 1.0, 2, 3))
    assert set(residency.peaks(demo.info)) == {"train"}
