"""The doctor finds what is wrong and says what to do."""

from __future__ import annotations

import importlib.metadata
import json
import shutil
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest

from headshot_ui import doctor
from headshot_ui.errors import DeviceError, SetupError
from headshot_ui.graphics import Build, Card, Look
from headshot_ui.settings import Settings
from tests.setup.conftest import ROOT
from tests.tiny_models import make_tiny_sdxl


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_environment(root=tmp_path, device="cpu", environment={})


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "requirements.txt"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model that nothing is missing of."""
    return make_tiny_sdxl(tmp_path_factory.mktemp("base"))


def fill(models: Path, base: Path) -> None:
    for pattern in doctor.DEMO_FILES.values():
        file = models / pattern.replace("*", "robin-1")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((2).to_bytes(8, "little") + b"{}")  # a safetensors file without tensors
    shutil.copytree(base, models / "demo/sdxl", dirs_exist_ok=True)
    facts = {"id": "demo-sdxl", "family": "sdxl", "title": "Demo", "licence": "x", "note": "Cartoons.", "size_px": 256}
    (models / "demo/sdxl/base.json").write_text(json.dumps(facts))


def test_a_complete_machine_has_nothing_to_advise(settings, base):
    fill(settings.models_dir, base)
    settings.root.joinpath("requirements.txt").write_text((ROOT / "requirements.txt").read_text())
    checks = doctor.examine(settings)
    assert [check for check in checks if check.ok is False] == []
    assert all(check.advice or check.ok for check in checks) and all(check.detail for check in checks)
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert {"Python", "packages", "device", "memory", "disk", "outputs", "base demo-sdxl", "demo photos"} <= set(names)


def test_an_empty_folder_is_told_with_advice_and_nothing_is_made(settings):
    before = sorted(settings.root.rglob("*"))
    wrong = {check.name: check for check in doctor.examine(settings) if check.ok is False}
    assert wrong.keys() == {"packages", "base models", *doctor.DEMO_FILES}
    assert all(check.advice for check in wrong.values())
    assert sorted(settings.root.rglob("*")) == before


def test_a_damaged_base_does_not_hide_the_good_ones(settings, base):
    fill(settings.models_dir, base)
    damaged = settings.models_dir / "other" / "base.json"
    damaged.parent.mkdir()
    damaged.write_text("{")
    found = {check.name: check for check in doctor.check_bases(settings)}
    assert found["base demo-sdxl"].ok is True
    assert found["base models"].ok is False and str(damaged) in found["base models"].detail


def test_an_empty_demo_file_counts_as_missing(settings, base):
    fill(settings.models_dir, base)
    (settings.models_dir / doctor.DEMO_FILES["demo recogniser"]).write_bytes(b"")
    wrong = [check.name for check in doctor.check_demo_files(settings.models_dir) if not check.ok]
    assert wrong == ["demo recogniser"]


def test_weights_that_were_cut_short_are_told(settings, base):
    fill(settings.models_dir, base)
    unet = settings.models_dir / "demo/sdxl/unet/diffusion_pytorch_model.safetensors"
    entry = b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'
    unet.write_bytes(len(entry).to_bytes(8, "little") + entry + b"1234")
    recogniser = settings.models_dir / doctor.DEMO_FILES["demo recogniser"]
    recogniser.write_bytes(b"half")
    (told,) = doctor.check_bases(settings)
    assert told.ok is False and str(unet) in told.detail and "complete copy" in told.advice
    (wrong,) = [check for check in doctor.check_demo_files(settings.models_dir) if not check.ok]
    assert wrong.name == "demo recogniser" and "damaged" in wrong.detail and wrong.advice


def test_whole_weights_beside_a_tokenizer_of_another_model_are_told(settings, base):
    fill(settings.models_dir, base)
    config = settings.models_dir / "demo/sdxl/text_encoder_2/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"vocab_size": 12}))
    (told,) = doctor.check_bases(settings)
    assert told.ok is False and "tokenizer_2" in told.advice and "12" in told.advice


def test_refiners_and_restorers_are_told_and_what_is_missing_is_only_a_note(settings):
    folder = settings.models_dir / "fine"
    facts = {
        "id": "fine",
        "family": "sdxl",
        "title": "Fine",
        "licence": "MIT",
        "note": "It refines.",
        "bases": ["demo-sdxl"],
    }
    (folder / "unet").mkdir(parents=True)
    (folder / "refiner.json").write_text(json.dumps(facts))
    (refiner,) = doctor.check_refiners(settings)
    assert refiner.ok is True and "for demo-sdxl" in refiner.detail
    (folder / "unet" / "x.safetensors").write_bytes(b"half")
    (refiner,) = doctor.check_refiners(settings)
    assert refiner.ok is False and "damaged" in refiner.detail and "refiner" in refiner.advice
    restorers = {check.name: check for check in doctor.check_restorers(settings)}
    codeformer = restorers["restorer codeformer"]
    assert codeformer.ok is None and "models get codeformer" in codeformer.advice


def test_packages_are_compared_with_the_lock(lock):
    version = importlib.metadata.version("pillow")
    lines = [f"pillow=={version}", "    # via nothing", "no-such==1 ; sys_platform == 'never'"]
    lock.write_text("\n".join(lines))
    assert doctor.check_packages(lock) == doctor.Check("packages", True, "all 1 as tested")

    lock.write_text("pillow==0.1\n")
    other = doctor.check_packages(lock)
    assert other.ok is None and f"pillow {version} instead of 0.1" in other.detail and ".venv" in other.advice

    lock.write_text("pillow==0.1\nno-such-package==1\n")
    missing = doctor.check_packages(lock)
    assert missing.ok is False and missing.detail == "not installed: no-such-package"

    lock.write_text("this is no requirement\n")
    assert doctor.check_packages(lock).ok is False


@pytest.mark.parametrize(("torch", "asked"), [("2.15.0", {"torch", "nvidia-nccl"}), ("2.15.0+cu130", {"torch"})])
def test_torch_from_its_own_index_brings_its_own_libraries(lock, monkeypatch, torch, asked):
    lock.write_text("torch==2.15.0\nnvidia-nccl==1\n")
    monkeypatch.setattr(importlib.metadata, "version", lambda name: torch if name == "torch" else "1")
    assert {requirement.name for requirement in doctor.read_lock(lock)} == asked
    assert doctor.check_packages(lock).ok is True


def test_a_card_that_is_not_used_is_told_with_what_to_do(settings, monkeypatch):
    card = Card("RTX 3060", "GPU-1", "470.1", 2**33)
    monkeypatch.setattr("headshot_ui.settings.known_cards", lambda: Look((card,)))
    monkeypatch.setattr("headshot_ui.settings.installed_build", lambda: Build("2.15.0+cu132", "13.2"))
    assert doctor.check_device(settings).ok is True  # the person asked for the CPU
    wanted = SimpleNamespace(device="cpu", dtype="float32", vram_limit_bytes=None, wanted_device="auto")
    check = doctor.check_device(wanted)
    assert check.ok is None and "driver 470.1 is too old" in check.advice and "nvidia.com/drivers" in check.advice
    assert check.advice.endswith(doctor.MEANWHILE) and "no GPU in use" in check.detail


@pytest.fixture
def on_card(monkeypatch):
    """Settings with a card of 24 GB, of which others leave 18 GB."""
    monkeypatch.setattr(doctor, "_device_memory", lambda device: (24 * 2**30, "Some Card"))
    monkeypatch.setattr(doctor, "dtype_note", lambda settings: "")
    monkeypatch.setattr(doctor, "vram_not_held", lambda: (18 * 2**30, 24 * 2**30))
    monkeypatch.setattr(doctor, "who_holds_memory", lambda least: "")
    monkeypatch.setattr(doctor.sys, "platform", "linux")
    return SimpleNamespace(device="cuda", dtype="bfloat16", vram_limit_bytes=8 * 2**30, wanted_device="auto")


def test_a_gpu_is_told_with_its_memory_and_the_limit(on_card, monkeypatch):
    check = doctor.check_device(on_card)
    assert check.detail == "Some Card with 24.0 GB, of which 8.0 GB may be used, computing in bfloat16"
    monkeypatch.setattr(doctor, "dtype_note", lambda settings: "Because it is old.")
    assert doctor.check_device(on_card).detail.endswith("computing in bfloat16. Because it is old.")


def test_who_holds_graphics_memory_is_told(on_card, settings, monkeypatch):
    (check,) = doctor.check_graphics_memory(on_card)
    assert check.ok is True and check.detail == "24.0 GB, 18.0 GB of it free"
    monkeypatch.setattr(doctor, "who_holds_memory", lambda least: "A game holds 6 GB: close it.")
    (check,) = doctor.check_graphics_memory(on_card)
    assert check.ok is None and check.advice == "A game holds 6 GB: close it."
    assert doctor.check_graphics_memory(settings) == [], "the CPU has none"

    def busy():
        raise DeviceError("Another program holds it: end it.")

    monkeypatch.setattr(doctor, "vram_not_held", busy)
    (check,) = doctor.check_graphics_memory(on_card)
    assert check.ok is False and check.advice == "Another program holds it: end it."


def test_on_windows_the_switch_against_spilling_is_told(on_card, monkeypatch):
    monkeypatch.setattr(doctor.sys, "platform", "win32")
    memory, fallback = doctor.check_graphics_memory(on_card)
    assert memory.ok is True and fallback.ok is None
    assert "Manage 3D settings" in fallback.advice and "Prefer No Sysmem Fallback" in fallback.advice


@pytest.mark.parametrize("error", [SetupError("The device “cuda” was asked for."), OSError("libcudart.so.13")])
def test_a_device_that_does_not_work_is_told(error):
    class Broken:
        @property
        def device(self):
            raise error

    check = doctor.check_device(Broken())
    assert check.ok is False and str(error) in check.detail + check.advice and check.advice


@pytest.mark.parametrize(("total", "ok"), [(4 * 2**30, None), (int(7.6 * 2**30), True)])
def test_little_memory_is_told(monkeypatch, total, ok):
    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=total, available=total // 2))
    check = doctor.check_memory()
    assert check.ok is ok and bool(check.advice) is (ok is None)


def test_a_full_disk_is_told(settings, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(2**40, 2**40, 10**8))
    check = doctor.check_disk(settings.outputs_dir)
    assert check.ok is False and "Make room" in check.advice


def test_an_outputs_folder_that_cannot_be_written_is_told(settings, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    check = doctor.check_writable(settings.outputs_dir)
    assert check.ok is False and "Permission denied" in check.detail and "--outputs" in check.advice


def test_damaged_and_unfinished_downloads_are_told_with_what_to_do(tmp_path):
    settings = Settings.from_environment(models_dir=tmp_path, environment={})
    assert doctor.check_downloads(settings) == []
    for name, size in (("parser/parsing_parsenet.pth", 10), ("arcface/.recognition_arcface_ir_se50.pth.part", 10)):
        path = tmp_path / name
        path.parent.mkdir()
        path.write_bytes(b"x" * size)
    told = {check.name: check for check in doctor.check_downloads(settings)}
    assert told["model parser"].ok is False and str(tmp_path / "parser") in told["model parser"].detail
    assert told["model arcface"].ok is None and "models get arcface" in told["model arcface"].advice
    assert told["model arcface"].advice.startswith("Get it") and len(told) == 2
