"""The scripts of benchmarks/ run at their smallest on the CPU: a card to measure is there too seldom to find out."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from headshot_ui.logs import stop_log
from headshot_ui.prove.checks import ALL
from headshot_ui.prove.random_models import SIZES, make_random_models
from headshot_ui.prove.runner import run_proof

ROOT = Path(__file__).parents[2]
Script = Callable[[str], Any]
DEMO = ROOT / "models" / "demo"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A script as a module. What it sets for torch and for finding the program is gone afterwards."""
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    monkeypatch.setattr(sys, "path", list(sys.path))

    def load(name: str) -> Any:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their module
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module", autouse=True)
def shallow() -> Iterator[None]:
    """One layer in place of ten wherever the published model has a row of them: a tenth of the time."""
    with pytest.MonkeyPatch.context() as patch:
        for shapes in (SIZES["tiny"].base, SIZES["tiny"].refiner):
            patch.setitem(shapes["unet"], "transformer_layers_per_block", 1)
        yield


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny random models, and of the demo what stands for faces."""
    folder = tmp_path_factory.mktemp("models")
    make_random_models(folder, "tiny", device="cpu")
    for name in ("restorer", "people/robin", "held_out/kim"):
        shutil.copytree(DEMO / name, folder / "demo" / name)
    return folder


def test_small_cards(script: Script, models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = script("small_cards").main(
        ["--card", "t4", "--models", str(models), "--size", "tiny", "--device", "cpu", "--steps", "2",
         "--pictures", "1", "--sampling-steps", "2", "--no-samples"]
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert code == 0 and found["ok"]
    assert [(stage["stage"], stage["error"]) for stage in found["stages"]] == [
        ("train", ""), ("generate", ""), ("restore", ""), ("train again", ""),
    ]  # fmt: skip
    assert (found["pictures"], found["black_or_flat_pictures"], found["lora_is_numbers"]) == (2, 0, True)
    assert found["stages"][1]["facts"]["refined"] and 0 < found["peak_rss_bytes"] < found["ram_cap_bytes"]


def test_small_cards_says_why_a_stage_broke_off(
    script: Script, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(models, tmp_path / "models")
    weights = tmp_path / "models" / "random-sdxl-refiner" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code = script("small_cards").main(
        ["--card", "8gb", "--models", str(tmp_path / "models"), "--size", "tiny", "--device", "cpu", "--steps", "1",
         "--pictures", "1", "--sampling-steps", "2", "--no-samples", "--no-again"]
    )  # fmt: skip
    found = json.loads(capsys.readouterr().out)
    assert code == 1 and not found["ok"]
    assert "failed: " in found["stages"][-1]["error"] and "refiner" in found["stages"][-1]["error"]


def test_residency(script: Script, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("residency").main(["--size", "tiny", "--device", "cpu", "--swaps", "3"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["same_after_every_round"] and found["swaps"] == 3
    # Both models wait in main memory and the restorer too: all there is in float32, and nothing else.
    assert found["stayed_in_memory"] == ["base", "refiner", "restorer"]
    assert found["after_first"]["live_tensors"] > 10 * 2**20 > found["after_evicting_all"]["live_tensors"]


def test_residency_has_the_published_shapes(script: Script) -> None:
    import torch

    residency = script("residency")
    with torch.device("meta"):
        numbers = {
            name: sum(p.numel() for p in residency.build_part(*name, "full").parameters())
            for name in (("base", "unet"), ("refiner", "unet"), ("base", "text_encoder_2"))
        }
    assert numbers == {("base", "unet"): 2_567_463_684, ("refiner", "unet"): 2_259_526_660,
                       ("base", "text_encoder_2"): 694_659_840}  # fmt: skip


def test_prove(
    script: Script, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those checks that the script's own parts serve: photos without faces, no judge, a restorer of the middle."""
    tried = tuple(check for check in ALL if check.id in ("files", "photos", "pictures", "restoration"))
    monkeypatch.setattr(run_proof, "__defaults__", (tried,))
    outputs = tmp_path / "outputs"
    code = script("prove").main(
        ["--size", "tiny", "--models", str(models), "--outputs", str(outputs), "--device", "cpu"]
    )
    stop_log()
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    verdicts = {check["id"]: check["verdict"] for check in told["checks"]}
    assert code == 0 and told["ok"], told["checks"]
    assert verdicts == {"files": "holds", "photos": "not possible", "pictures": "holds", "restoration": "holds"}
    assert Path(told["report"]).is_file()
