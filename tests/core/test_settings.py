"""Settings: where they come from, and that reading them starts nothing heavy."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from headshot_ui.errors import SetupError
from headshot_ui.graphics import Card, Look
from headshot_ui.settings import Settings, parse_bytes, pick_dtype


def test_defaults_lie_under_the_program() -> None:
    settings = Settings.from_environment(environment={})
    root = Path(__file__).parents[2]
    assert settings == Settings(root, root / "models", root / "outputs", root / "outputs" / "logs")


def test_arguments_go_before_environment_before_defaults(tmp_path: Path) -> None:
    environment = {
        "HEADSHOT_UI_ROOT": str(tmp_path / "root"),
        "HEADSHOT_UI_OUTPUTS": str(tmp_path / "out"),
        "HEADSHOT_UI_DEVICE": "cpu",
        "HEADSHOT_UI_DTYPE": "bfloat16",
        "HEADSHOT_UI_VRAM_LIMIT": "8GB",
    }
    settings = Settings.from_environment(outputs_dir=tmp_path / "mine", dtype="float16", environment=environment)
    assert settings.models_dir == tmp_path / "root" / "models"
    assert settings.outputs_dir == tmp_path / "mine" and settings.logs_dir == tmp_path / "mine" / "logs"
    assert (settings.device, settings.dtype, settings.vram_limit_bytes) == ("cpu", "float16", 8 * 2**30)
    assert not list(tmp_path.iterdir()), "no folder is made"


def test_empty_variables_count_as_unset() -> None:
    settings = Settings.from_environment(environment={"HEADSHOT_UI_VRAM_LIMIT": "", "HEADSHOT_UI_DEVICE": ""})
    assert (settings.vram_limit_bytes, settings.wanted_device) == (None, "auto")


def test_a_relative_folder_stays_where_it_was_when_the_working_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Settings.from_environment(outputs_dir="here", environment={}).outputs_dir == tmp_path / "here"


def test_settings_are_frozen_and_the_cpu_computes_in_float32() -> None:
    settings = Settings.from_environment(device="cpu", environment={})
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.root = Path()  # type: ignore[misc]
    assert settings.dtype == "float32"


@pytest.mark.parametrize(
    ("text", "count"),
    [("8GB", 8 * 2**30), ("8 gib", 8 * 2**30), ("7.5G", 15 * 2**29), ("512M", 2**29), ("1024", 1024), ("2kB", 2048)],
)
def test_memory_limits_are_read_as_people_write_them(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "much", "-8GB", "8XB", "0GB", "8GB 4"])
def test_other_memory_limits_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(SetupError, match="like 8GB"):
        parse_bytes(text)


def test_unknown_device_and_dtype_name_the_choices() -> None:
    with pytest.raises(SetupError, match="cuda, mps, cpu"):
        Settings.from_environment(device="tpu", environment={})
    with pytest.raises(SetupError, match="bfloat16"):
        Settings.from_environment(dtype="int8", environment={})


def test_a_device_that_is_not_there_is_refused_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headshot_ui.settings._usable", lambda device: device == "cpu")
    assert Settings.from_environment(environment={}).device == "cpu"
    settings = Settings.from_environment(device="cuda", environment={})
    with pytest.raises(SetupError, match="finds only “cpu”"):
        _ = settings.device
    monkeypatch.setattr("headshot_ui.settings._usable", lambda device: True)
    assert Settings.from_environment(environment={}).device == "cuda"
    assert Settings.from_environment(device="mps", environment={}).device == "mps"


class FakeCuda:
    """A card, and a torch that holds code for sm_75 and newer."""

    def __init__(self, capability: tuple[int, int], starts: bool = True) -> None:
        self.capability, self.starts = capability, starts

    def is_available(self) -> bool:
        return True

    def get_device_capability(self) -> tuple[int, int]:
        if not self.starts:
            raise RuntimeError("CUDA unknown error")
        return self.capability

    def get_arch_list(self) -> list[str]:
        return ["sm_75", "sm_80", "sm_90"]

    def is_bf16_supported(self, including_emulation: bool = True) -> bool:
        return True  # as torch answers on Turing: it counts the imitation

    def init(self) -> None:
        self.get_device_capability()

    def get_device_properties(self, index: int) -> Any:
        return SimpleNamespace(name="Titan", major=self.capability[0], minor=self.capability[1])


def with_card(monkeypatch: pytest.MonkeyPatch, cuda: FakeCuda, built_with: str | None = "13.2") -> None:
    mps = SimpleNamespace(mps=SimpleNamespace(is_available=lambda: False))
    fake: Any = SimpleNamespace(cuda=cuda, version=SimpleNamespace(cuda=built_with), backends=mps)
    monkeypatch.setitem(sys.modules, "torch", fake)
    card = Card("another card", "GPU-1", "580.95", 2**33)
    monkeypatch.setattr("headshot_ui.settings.known_cards", lambda: Look((card,)))


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((8, 9), "bfloat16"), ((9, 0), "bfloat16")]
)
def test_bfloat16_is_chosen_only_where_the_hardware_has_it(
    capability: tuple[int, int], dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_card(monkeypatch, FakeCuda(capability))
    settings = Settings.from_environment(environment={})
    assert (settings.device, settings.dtype) == ("cuda", dtype)


@pytest.mark.parametrize(
    ("cuda", "words"),
    [(FakeCuda((6, 1)), "Titan .compute capability 6.1. is too old"), (FakeCuda((8, 0), False), "CUDA unknown error")],
)
def test_a_card_that_torch_cannot_compute_on_is_not_chosen_and_asked_for_it_is_refused(
    cuda: FakeCuda, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_card(monkeypatch, cuda)
    assert Settings.from_environment(environment={}).device == "cpu"
    with pytest.raises(SetupError, match=f"choose “auto”. .*{words}"):
        _ = Settings.from_environment(device="cuda", environment={}).device


@pytest.mark.parametrize(("works", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_on_apples_gpus_bfloat16_is_tried(works: bool, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []
    monkeypatch.setattr("headshot_ui.settings.computes_in_bfloat16", lambda device: bool(tried.append(device)) or works)
    assert pick_dtype("mps") == dtype and tried == ["mps"]
    assert pick_dtype("cpu") == "float32" and tried == ["mps"]


def test_amds_cards_count_otherwise_and_are_not_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    with_card(monkeypatch, FakeCuda((6, 1)), built_with=None)
    assert Settings.from_environment(environment={}).device == "cuda"


def test_neither_building_settings_nor_choosing_the_cpu_imports_torch() -> None:
    code = (
        "import sys; from headshot_ui.settings import Settings; "
        "s = Settings.from_environment(device='cpu'); s.device, s.dtype; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_blocks_are_compiled_where_it_pays_unless_said_otherwise() -> None:
    assert Settings.from_environment(environment={}).compile == "auto"
    assert Settings.from_environment(environment={"HEADSHOT_UI_COMPILE": "Never"}).compile == "never"
    assert Settings.from_environment(compile="always", environment={"HEADSHOT_UI_COMPILE": "auto"}).compile == "always"
    with pytest.raises(SetupError, match="compile"):
        Settings.from_environment(compile="sometimes", environment={})
