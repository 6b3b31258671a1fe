"""docs/colab.ipynb: every cell runs in order on the demo models; what needs the hub is read by the program's parser."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from headshot_ui.cli import build_parser
from tests.docs.notebook import ROOT, Session, code_cells, read_notebook

PHOTOS = sorted((ROOT / "models" / "demo" / "people" / "robin").glob("*.jpg"))
DRAWN = "--presets navy-suit --device cpu"
SMALL = f"--train-steps 4 --sampling-steps 2 {DRAWN}"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """A new machine: an empty folder, Colab's modules, nothing run yet."""

    def make(name="content", **options):
        folder = tmp_path / name
        folder.mkdir()
        monkeypatch.chdir(folder)
        session = Session(folder, **options)
        for module, stand_in in session.stand_ins().items():
            monkeypatch.setitem(sys.modules, module, stand_in)
        return session

    monkeypatch.delenv("HEADSHOT_UI_OUTPUTS", raising=False)
    return make


def test_the_notebook_is_whole_and_holds_no_results():
    notebook = read_notebook()
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    for cell in notebook["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
    for name, source in code_cells().items():
        compile(source, name, "exec")
        assert source.startswith("# @title ")


def test_every_command_line_is_one_that_the_program_understands(start):
    session = start(only_noted=True)
    session.run("program", PERSON="anna", REFINER=True, RESTORE=True)
    session.run("set-up")
    session.run("models", PROVE=True)
    session.uploads += [PHOTOS[:2]]
    session.run("photos")
    session.run("headshots", MORE="--presets navy-suit --recipe original")
    run = session.names["OUTPUTS"] / "people" / "anna" / "runs" / "2026-01-31_12-00-00"
    run.mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({"state": "interrupted"}))
    session.names["finished"] = False
    session.run("go-on")
    kinds = [command[0] for command in session.commands]
    assert kinds == ["doctor", "models", "models", "prove", "prepare", "headshots", "train", "generate"]
    parser = build_parser()
    for command in session.commands:
        parser.parse_args(command)  # leaves by SystemExit when it does not understand
    assert all("sdxl" in command for command in session.commands[3:])
    assert session.commands[6][-2:] == ["--run", run.name]


def test_run_all_does_not_draw_again_at_the_end(start, capsys):
    session = start(only_noted=True)
    for cell in ("program", "headshots", "go-on"):
        session.run(cell)
    assert [command[0] for command in session.commands] == ["headshots"]
    assert "nothing to go on with" in capsys.readouterr().out


def test_progress_takes_the_place_of_progress(start, capsys):
    session = start(only_noted=True)
    session.run("program")
    capsys.readouterr()
    session.names["app"]("models", "get", "sdxl")
    said = capsys.readouterr().out
    assert said == "\nDownloading  1/2  3 s left\r" + "Downloading  2/2".ljust(len("Downloading  1/2  3 s left")) + "\n"


def test_a_command_that_fails_stops_its_cell(start, capsys):
    session = start()
    session.run("program")
    with pytest.raises(SystemExit, match="last lines above"):
        session.names["app"]("lora", "show", session.folder / "nothing.safetensors")  # without waiting for torch
    assert "nothing" in capsys.readouterr().out


def test_the_program_comes_from_a_repository_or_lies_around_the_notebook(start, tmp_path, monkeypatch):
    origin = tmp_path / "origin"
    origin.mkdir()
    (origin / "app.py").write_text("")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "app.py"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], cwd=origin, check=True)
    session = start("one")
    session.run("program", REPOSITORY=origin.as_uri())
    assert (session.folder / "headshot_ui" / "app.py").is_file() and session.names["PROGRAM"].name == "headshot_ui"
    (origin / "docs").mkdir()
    session = start("two")
    monkeypatch.chdir(origin / "docs")
    session.run("program")
    assert session.names["PROGRAM"] == origin
    session = start("three")
    session.uploads = [[]]
    with pytest.raises(SystemExit, match="REPOSITORY"):
        session.run("program")


def test_every_cell_runs_in_order_on_the_demo_models(start, capsys):
    session = start()
    session.run("program", BASE="demo-sdxl", KEEP_IN_DRIVE=True)
    session.run("set-up")
    session.run("models")
    session.uploads += [PHOTOS]
    session.run("photos")
    session.run("headshots", MORE=SMALL, BEST_TO_CROP=1)
    said = capsys.readouterr().out
    assert "8 photos to learn from, 2 held out, 0 left out" in said and "pictures, most alike first" in said
    session.run("look")
    sheet, *best = session.shown
    assert sheet.endswith("contact-sheet.png") and len(best) == 2
    assert str(session.folder / "drive" / "MyDrive" / "headshot_ui") in sheet
    for shown in session.shown:
        Image.open(shown).verify()
    session.run("download")
    (bundle,) = session.downloads
    with zipfile.ZipFile(bundle) as packed:
        names = packed.namelist()
    assert sum(name.startswith("pictures/") and name.endswith(".png") for name in names) == 3
    assert sum(name.endswith(".safetensors") for name in names) == 1 and "headshots.zip" in names


def test_a_python_without_ensurepip_gets_it_from_the_system(start, monkeypatch):
    session = start(only_noted=True)
    session.run("program")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    asked = []
    monkeypatch.setattr(session.names["subprocess"], "run", lambda command, check: asked.append(command))
    session.run("set-up")
    assert asked[-1][:2] == ["apt-get", "install"]
    assert asked[-1][-1] == f"python{sys.version_info[0]}.{sys.version_info[1]}-venv"


@pytest.mark.slow
def test_a_stopped_training_goes_on_on_another_machine(start, capsys):
    session = start()
    session.run("program", BASE="demo-sdxl", KEEP_IN_DRIVE=True)
    drive = session.folder / "drive"
    session.uploads += [PHOTOS]
    session.run("photos")
    _stop_when_training(drive)
    with pytest.raises(SystemExit, match="last lines above"):
        session.run("headshots", MORE=f"{SMALL} --train-steps 40 --checkpoint-every 2", BEST_TO_CROP=0)
    assert "go on with: train --person me" in capsys.readouterr().out

    other = start("another")
    drive.rename(other.folder / "drive")
    manifest = next((other.folder / "drive").rglob("run.json"))
    run = json.loads(manifest.read_text("utf-8"))
    assert run["state"] == "cancelled" and 2 <= run["step"] < 40
    manifest.write_text(json.dumps(run | {"state": "running"}))  # as a machine leaves it that is taken away
    other.run("program", BASE="demo-sdxl", KEEP_IN_DRIVE=True)
    other.run("go-on", COUNT=3, MORE=DRAWN)
    assert json.loads(manifest.read_text("utf-8"))["state"] == "done"
    assert "3 pictures, most alike first" in capsys.readouterr().out
    other.run("look")
    assert len(other.shown) == 3  # drawing alone makes no contact sheet
    other.run("download")

    third = start("third")
    with zipfile.ZipFile(other.downloads[0]) as packed:
        (name,) = (name for name in packed.namelist() if name.endswith(".safetensors"))
        lora = Path(packed.extract(name, third.folder))
    third.run("program", BASE="demo-sdxl")
    third.uploads += [[lora]]
    third.run("go-on", UPLOAD_LORA=True, COUNT=1, MORE=DRAWN)
    assert "1 picture, not compared with photos" in capsys.readouterr().out


def _stop_when_training(folder):
    """As the stop button of the notebook does, once a checkpoint is on disk."""

    def wait():
        while not any(json.loads(file.read_text("utf-8"))["step"] >= 2 for file in folder.rglob("run.json")):
            time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=wait, daemon=True).start()
