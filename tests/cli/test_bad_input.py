"""Wrong requests typed for real: one clear sentence, code 1, no traceback, nothing lost. Tiny random models."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from headshot_ui.cli import build_parser, main
from headshot_ui.logs import stop_log
from headshot_ui.runs import list_runs
from headshot_ui.settings import Settings
from headshot_ui.store import Store
from tests.tiny_models import make_tiny_sdxl
from tests.training.conftest import make_dataset

ROOT = Path(__file__).parents[2]
Typed = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_sdxl(folder / "tiny")
    return folder


@pytest.fixture
def store(tmp_path: Path, models: Path) -> Store:
    """The outputs folder, with the prepared photos of anna in it."""
    from headshot_ui.dataset.prepare import save_dataset

    store = Store(Settings.from_environment(models_dir=models, outputs_dir=tmp_path / "outputs", environment={}))
    save_dataset(make_dataset(store.dataset_dir("anna")))
    return store


@pytest.fixture
def typed(store: Store, models: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Typed]:
    """Type a command for anna and the tiny base; gives exit code, standard output and standard error."""

    def run(*argv: str, models: Path = models) -> tuple[int, str, str]:
        places = ["--models", str(models), "--outputs", str(store.settings.outputs_dir), "--device", "cpu"]
        code = main([*argv, "--person", "anna", "--base", "tiny-sdxl", *places])
        said = capsys.readouterr()
        return code, said.out, said.err

    yield run
    stop_log()


def one_sentence(said: tuple[int, str, str]) -> str:
    """The only line on standard error, of a command that failed without a traceback."""
    code, out, err = said
    assert code == 1 and "Traceback" not in out + err, err
    (line,) = err.splitlines()
    return line


DRAW = ("generate", "--prompt", "portrait of {subject}", "--count", "1", "--steps", "1", "--lora")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((*DRAW[:-1],), "has no finished training for “tiny-sdxl” yet; train first, or choose none."),
        ((*DRAW, "2020-01-01"), "has no training run “2020-01-01”: choose one of these (none yet)"),
        ((*DRAW, "nowhere.safetensors"), "nowhere.safetensors is not there; choose another"),
        (("generate", "--prompt", "{subject} on a zebra", "--lora", "none"), "does not know this word: “zebra”"),
        (("generate", "--presets", "tuxedo", "--lora", "none"), "There is no preset “tuxedo”; choose from"),
        (("train", "--run", "2020-01-01"), "has no training run “2020-01-01”"),
    ],
)
def test_what_is_not_there_is_named(typed: Typed, argv: tuple[str, ...], words: str) -> None:
    assert words in one_sentence(typed(*argv))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_text("this is a letter"), "is damaged or is no LoRA file; choose another"),
        (lambda path: lora(path, "unet.mid_block.to_q", {"family": "flux"}), "was trained for the family “flux”"),
        (lambda path: lora(path, "transformer.blocks.0.attn.to_q"), "attn.to_q.lora_A.weight” does not fit"),
        (lambda path: lora(path, "unet.mid_block.attentions.9.to_q"), "made for a base model of another size or kind"),
    ],
)
def test_a_lora_that_does_not_fit_is_refused_and_leaves_no_folder(
    typed: Typed, store: Store, tmp_path: Path, make: Callable[[Path], object], words: str
) -> None:
    make(tmp_path / "other.safetensors")
    assert words in one_sentence(typed(*DRAW, str(tmp_path / "other.safetensors")))
    assert not [path for path in store.headshots_dir("anna").glob("*") if path.is_dir()]


def lora(path: Path, layer: str, header: dict[str, str] | None = None) -> None:
    import torch
    from safetensors.torch import save_file

    save_file({f"{layer}.lora_A.weight": torch.zeros(2, 8), f"{layer}.lora_B.weight": torch.zeros(8, 2)}, path, header)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("name", "spoil", "words"),
    [
        ("unet/diffusion_pytorch_model.safetensors", cut, "is damaged"),
        ("vae/diffusion_pytorch_model.safetensors", cut, "is damaged"),
        ("tokenizer/tokenizer.json", Path.unlink, "is missing"),
        ("base.json", cut, "is damaged"),
    ],
)
def test_a_damaged_base_is_named(
    typed: Typed, models: Path, tmp_path: Path, name: str, spoil: Callable[[Path], None], words: str
) -> None:
    copy = tmp_path / "models"
    shutil.copytree(models, copy)
    spoil(copy / "tiny" / name)
    sentence = one_sentence(typed(*DRAW, "none", models=copy))
    assert words in sentence and "complete copy" in sentence
    assert name == "base.json" or str(copy / "tiny" / name) in sentence


def test_a_base_without_its_description_goes_by_the_name_of_its_folder(
    typed: Typed, models: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "models"
    shutil.copytree(models, copy)
    (copy / "tiny" / "base.json").unlink()
    assert "choose one of those found: tiny." in one_sentence(typed(*DRAW, "none", models=copy))


def test_the_unexpected_is_one_sentence_that_names_the_log(
    typed: Typed, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import headshot_ui.generation.runner as runner

    def strange(*_: object) -> None:
        raise ZeroDivisionError("only for the log")

    monkeypatch.setattr(runner, "load_presets", strange)
    log = store.settings.logs_dir / "headshot_ui.log"
    assert str(log) in one_sentence(typed(*DRAW, "none"))
    assert "only for the log" in log.read_text("utf-8") and "Traceback" in log.read_text("utf-8")


def test_pictures_nobody_could_judge_are_shown_without_a_ranking(typed: Typed) -> None:
    code, out, err = typed(*DRAW, "none")
    assert (code, err) == (0, "") and "1 picture, not compared with photos" in out


# --- training that breaks off -------------------------------------------------------------------------
def test_a_full_disk_in_training_says_how_to_go_on(typed: Typed, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    import headshot_ui.training.checkpoint as checkpoint

    real = checkpoint.write_bytes_atomic

    def full(path: Path, data: bytes) -> None:
        if path.parent.name.startswith("step-000004"):
            raise OSError(28, "No space left on device")
        real(path, data)

    monkeypatch.setattr(checkpoint, "write_bytes_atomic", full)
    code, _, err = typed("train", "--steps", "6", "--checkpoint-every", "2")
    monkeypatch.undo()
    how, sentence = err.splitlines()
    (run,) = list_runs(store, "anna")
    assert code == 1 and "the disk is full" in sentence
    begin = f"2 of 6 steps are kept; go on with: train --person anna --run {run.name} "
    assert how.startswith(begin)
    typed_again = build_parser().parse_args(shlex.split(how.partition("go on with: ")[2], posix=os.name != "nt"))
    assert Path(typed_again.models) == store.settings.models_dir
    assert Path(typed_again.outputs) == store.settings.outputs_dir
    assert typed("train", "--run", run.name)[0] == 0
    assert list_runs(store, "anna")[0].state == "done"
    assert one_sentence(typed("train", "--rank", "4", "--learning-rate", "1", "--run", "no")), "an old run is no hint"


@pytest.mark.skipif(os.name == "nt", reason="Windows delivers Ctrl-C to whole console groups, not to one process")
def test_ctrl_c_in_training_says_how_to_go_on(store: Store, models: Path) -> None:
    common = ["--base", "tiny-sdxl", "--models", str(models), "--outputs", str(store.settings.outputs_dir)]
    command = [sys.executable, "-m", "headshot_ui", "train", "--person", "anna", *common, "--device", "cpu", "--json"]
    process = subprocess.Popen(
        [*command, "--steps", "100000", "--checkpoint-every", "100000"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    assert process.stderr is not None
    while "loss" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    (run,) = list_runs(store, "anna")
    assert (process.returncode, out, run.state) == (130, "", "cancelled") and run.step > 0
    assert f"go on with: train --person anna --run {run.name}" in err
    assert err.splitlines()[-1] == "Cancelled; what was finished is kept."


# --- photos ---------------------------------------------------------------------------------------------
def test_without_a_detector_or_a_base_the_photos_are_not_touched(typed: Typed, store: Store, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "me.jpg")
    before = json.loads((store.dataset_dir("anna") / "dataset.json").read_text())
    assert "detector" in one_sentence(typed("prepare", str(tmp_path / "me.jpg")))
    assert json.loads((store.dataset_dir("anna") / "dataset.json").read_text()) == before
