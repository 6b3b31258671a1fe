"""Settings: where they come from, and that reading them starts nothing heavy."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

from headshot_ui.errors import SetupError
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
    assert pick_dtype("mps") == "float32"


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


def test_neither_building_settings_nor_choosing_the_cpu_imports_torch() -> None:
    code = (
        "import sys; from headshot_ui.settings import Settings; "
        "s = Settings.from_environment(device='cpu'); s.device, s.dtype; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
