"""The command from end to end on a tiny base: what it tells, what it leaves behind, what the report does not say."""

from __future__ import annotations

import getpass
import json
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headshot_ui.cli import main
from headshot_ui.commands import prove as command
from headshot_ui.lock import hold
from headshot_ui.logs import stop_log
from headshot_ui.peaks import Peaks
from headshot_ui.prove.checks import ALL
from headshot_ui.prove.plan import ProvePlan, plan_proof
from headshot_ui.prove.random_models import BASE_ID
from headshot_ui.prove.report import Scrubber
from headshot_ui.settings import Settings


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str
    outputs: Path

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


def run(models: Path, outputs: Path, capsys: pytest.CaptureFixture[str], *argv: str) -> Ran:
    code = main(["prove", *argv, "--models", str(models), "--outputs", str(outputs), "--device", "cpu"])
    stop_log()
    captured = capsys.readouterr()
    return Ran(code, captured.out, captured.err, outputs)


@pytest.fixture
def photos(tmp_path: Path, models: Path) -> Path:
    """Photos of somebody, under a name that nobody else should read."""
    folder = tmp_path / "holiday-of-anna"
    folder.mkdir()
    for number, path in enumerate(sorted((models / "demo" / "people" / "robin").glob("*.jpg"))[:5]):
        shutil.copy(path, folder / f"anna-at-home-{number}.jpg")
    (folder / "anna-broken.jpg").write_bytes(b"no picture")
    return folder


def test_the_whole_command(models: Path, tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outputs = tmp_path / "outputs"
    done = run(models, outputs, capsys, "--base", "tiny-sdxl", "--photos", str(photos), "--steps", "12", "--json")
    told = done.json
    assert told["ok"] is (done.code == 0) is True, [c for c in told["checks"] if c["verdict"] == "fails"]
    assert [check["id"] for check in told["checks"]] == [check.id for check in ALL]
    assert "12 training steps" in done.err and "Memory:" in done.err and f"1/{len(ALL)} " in done.err

    # nothing of the person stays but numbers
    left = {path.relative_to(outputs).parts[0] for path in outputs.rglob("*") if path.is_file()}
    report, beside = Path(told["report"]), Path(told["report_json"])
    assert left == {".in-use", "logs", "peaks.json", report.name, beside.name}
    assert told["peaks_stored"] > 0
    assert {use.name for use in Peaks(outputs).of("tiny-sdxl").values()} == {"prepare", "train", "generate"}

    # the report: everything that was found, and nobody in it
    text = report.read_text("utf-8")
    data = json.loads(beside.read_text("utf-8"))
    assert all(check.title in text for check in ALL) and "Attach this file" in text
    assert [check["verdict"] for check in data["checks"]] == [check["verdict"] for check in told["checks"]]
    assert data["machine"]["packages"]["torch"] and data["photos"] == "given"
    for secret in ("anna", "holiday", str(tmp_path), str(models), platform.node(), "/tmp", "jpg", "png"):
        for where in (text, beside.read_text("utf-8")):
            assert secret not in where, secret
    assert getpass.getuser() in ("root",) or getpass.getuser() not in text


def test_keeping_what_was_made(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("headshot_ui.prove.runner.ALL", ())
    monkeypatch.setattr("headshot_ui.prove.runner.run_proof.__defaults__", ((),))
    done = run(
        models, tmp_path / "outputs", capsys, "--base", "tiny-sdxl", "--keep", "--report", str(tmp_path / "r.md")
    )
    assert done.code == 0 and "kept in" in done.out
    assert [path.name for path in tmp_path.glob("r.*")] and len(list(done.outputs.glob("prove-*"))) == 1


def test_a_failed_check_is_the_exit_code_and_says_what_to_do(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "models"
    shutil.copytree(models, broken)
    weights = broken / "tiny" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    done = run(broken, tmp_path / "outputs", capsys, "--base", "tiny-sdxl")
    assert done.code == 1
    assert "FAILS  the weights are whole: unet/diffusion_pytorch_model.safetensors" in done.out
    (report,) = done.outputs.glob("prove-*.md")
    text = report.read_text("utf-8")
    assert "## What to do" in text and "Get this file again." in text and str(tmp_path) not in text


def test_ctrl_c_leaves_nothing(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                               monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "follow_job", interrupted)
    old = tmp_path / "outputs" / f"{command.FOLDER}left-by-a-crash"
    old.mkdir(parents=True)
    done = run(models, tmp_path / "outputs", capsys, "--base", "tiny-sdxl")
    assert done.code == 130
    assert not list(done.outputs.glob(f"{command.FOLDER}*")) and not list(done.outputs.glob("prove-*"))


def test_one_program_at_a_time(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with hold(tmp_path / "outputs", "train"):
        done = run(models, tmp_path / "outputs", capsys, "--base", "tiny-sdxl")
    assert done.code == 1 and "train" in done.err


def test_the_plan_starts_nothing(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = run(models, tmp_path / "outputs", capsys, "--base", "tiny-sdxl", "--plan", "--json")
    assert done.code == 0 and done.json["peak_bytes" if "peak_bytes" in done.json else "stages"]
    assert not list(done.outputs.glob("*prove*"))


def test_the_plan_of_random_weights_is_told_before_they_are_made(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(models, tmp_path / "outputs", capsys, "--random-weights", "--plan", "--json")
    assert done.code == 0 and "random weights take" in done.err and "Making" not in done.err
    assert max(stage["peak_bytes"] for stage in done.json["stages"]) > 6e9, "of Stable Diffusion XL's full size"
    assert not list(done.outputs.glob("*prove*")) and not list(done.outputs.glob(f"{command.FOLDER}*"))


def test_another_set_of_random_weights_by_its_name(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = run(models, tmp_path / "outputs", capsys, "--base", "random-flux", "--plan", "--json")
    assert done.code == 0 and "random weights take 31.7 GB" in done.err and "Making" not in done.err
    assert max(stage["peak_bytes"] for stage in done.json["stages"]) > 20e9, "of FLUX.1's full size"
    assert not list(done.outputs.glob(f"{command.FOLDER}*"))


@pytest.mark.parametrize("argv", [("--random-weights", "--base", "x"), ("--steps", "0")])
def test_options_that_cannot_be_meant(
    argv: tuple[str, ...], models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(models, tmp_path / "outputs", capsys, *argv).code == 2


def test_amounts_go_by_device_and_base(settings: Settings) -> None:
    from headshot_ui import families

    tiny = families.find_base("tiny-sdxl", settings)
    plan = plan_proof(tiny, (), None, settings)
    assert plan.bundled and plan.photos[0].endswith("robin") and not plan.random
    from dataclasses import replace

    full = plan_proof(replace(tiny, id=BASE_ID, size_px=1024), ("a",), None, settings)
    assert full.amounts.train_steps < plan.amounts.train_steps and full.random and not full.bundled
    assert plan_proof(tiny, (), 7, settings).amounts.train_steps == 7
    train = plan.train(4)
    assert train.alpha == 8 and train.checkpoint_every == train.steps, (
        "the last step writes a checkpoint to compare with"
    )


def test_what_tells_whose_computer_it_is_is_taken_out(settings: Settings, photos: Path) -> None:
    plan = ProvePlan("tiny-sdxl", (str(photos),), False, plan_proof_amounts())
    clean = Scrubber.of((settings,), plan)
    home = Path.home()
    for told, wanted in (
        (f"{settings.models_dir}/arcface/x.safetensors is missing", "<models>/arcface/x.safetensors is missing"),
        (f"{settings.outputs_dir}/people/anna/runs/1 is full", "<outputs> is full"),
        (f"{home}/Pictures/anna: no", "<home>: no" if len(home.parts) > 1 else None),
        (f"{photos}/anna-at-home-1.jpg cannot be read", "<photos> cannot be read"),
        ("anna-at-home-1.jpg: no face", "<photo>: no face"),
        ("/mnt/secret/anna.png is gone", "<path> is gone"),
        (r"C:\Users\anna\x.jpg is gone", "<path> is gone"),
        ("0.5 s/step, 3/17, 1.5 it/s", "0.5 s/step, 3/17, 1.5 it/s"),
    ):  # fmt: skip
        assert wanted is None or clean.text(told) == wanted
    if len(platform.node()) > 2:
        assert clean.text(f"on {platform.node()}.") == "on <computer>."


def plan_proof_amounts() -> Any:
    from headshot_ui.prove.plan import DEMO_ON_CPU

    return DEMO_ON_CPU


@pytest.mark.slow
def test_the_demo_models(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    demo = Path(__file__).parents[2] / "models"
    done = run(demo, tmp_path / "outputs", capsys, "--json")
    verdicts = {check["id"]: check["verdict"] for check in done.json["checks"]}
    assert done.code == 0 and {name for name, verdict in verdicts.items() if verdict != "holds"} == {"swap"}


@pytest.mark.slow
@pytest.mark.parametrize(("base", "refined"), [("random-sdxl", True), ("random-flux", False)])
def test_random_weights_of_the_true_topology(
    base: str, refined: bool, capsys: pytest.CaptureFixture[str], models: Path, tmp_path: Path
) -> None:
    done = run(models, tmp_path / "outputs", capsys, "--base", base, "--random-weights", "tiny", "--json")
    verdicts = {check["id"]: check["verdict"] for check in done.json["checks"]}
    without = {"swap", "likeness"} | (set() if refined else {"refiner-ensemble", "refiner-img2img"})
    assert done.code == 0 and {name for name, verdict in verdicts.items() if verdict != "holds"} == without
    assert Peaks(done.outputs).of(base) == {} and not (models / base).exists()
