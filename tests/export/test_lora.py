"""A finished training as a file for other programs, by command; nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from headshot_ui import families
from headshot_ui.cli import main
from headshot_ui.errors import SpecError
from headshot_ui.export.lora import export_lora
from headshot_ui.runs import change_run, create_run
from headshot_ui.settings import Settings
from headshot_ui.specs import TrainSpec
from headshot_ui.store import Store
from tests.tiny_models import make_tiny_sdxl


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """anna with one finished training and a newer one that broke off."""
    root = tmp_path_factory.mktemp("lora")
    make_tiny_sdxl(root / "models" / "tiny")
    settings = Settings.from_environment(
        models_dir=root / "models", outputs_dir=root / "outputs", device="cpu", dtype="float32"
    )
    store = Store(settings)
    loaded = families.load_base(families.find_base("tiny-sdxl", settings), settings)
    run = create_run(store, TrainSpec("anna", "tiny-sdxl"), total=40)
    loaded.add_trainable_lora(4, 2.0, 0)
    told = {"rank": "4", "alpha": "2.0", "trigger": "tok", "date": "2026-11-24T10:00:00Z"}
    loaded.save_lora(run.folder / "lora.safetensors", loaded.trainable_lora_state(), told)
    change_run(run, state="done", step=40, lora="lora.safetensors", facts={"trigger": "tok", "class_word": "woman"})
    change_run(create_run(store, TrainSpec("anna", "tiny-sdxl")), state="cancelled")
    return store


def test_it_is_written_once_under_a_name_that_says_what_it_is(store: Store) -> None:
    made = export_lora(store, "anna")
    assert (made.layout, made.steps, made.trigger, made.was_there) == ("kohya", 40, "tok", False)
    assert made.path.parent == store.exports_dir("anna") / "loras"
    assert made.path.name == f"anna_{made.run}_40-steps_kohya.safetensors"
    again = export_lora(store, "anna", made.run)
    assert again.was_there and again.path == made.path
    made.path.write_bytes(b"somebody else's")
    other = export_lora(store, "anna")
    assert other.path.stem == f"{made.path.stem}-2" and made.path.read_bytes() == b"somebody else's"
    families.check_lora(other.path, families.find_base("tiny-sdxl", store.settings))


def test_a_file_that_is_there_and_wishes_that_cannot_be(store: Store, tmp_path: Path) -> None:
    taken = tmp_path / "anna.safetensors"
    taken.write_bytes(b"x")
    unfinished = max(path.name for path in store.runs_dir("anna").iterdir())
    for field, wishes in {
        "to": {"to": taken},
        "layout": {"layout": "flat"},
        "dtype": {"dtype": "int8"},
        "run": {"run_name": unfinished},
    }.items():
        with pytest.raises(SpecError) as raised:
            export_lora(store, "anna", **wishes)  # type: ignore[arg-type]
        assert raised.value.field == field
    assert taken.read_bytes() == b"x"
    with pytest.raises(SpecError, match=r"does not end with \.safetensors"):
        export_lora(store, "anna", to=tmp_path / "anna.pt")


def test_the_commands_say_what_they_did(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    places = ["--models", str(store.settings.models_dir), "--outputs", str(store.settings.outputs_dir)]
    target = tmp_path / "for-comfy.safetensors"
    argv = ["lora", "export", "--person", "anna", "--to", str(target), "--dtype", "float16", "--json"]
    assert main([*places, *argv]) == 0
    assert json.loads(capsys.readouterr().out)["path"] == str(target)
    with safe_open(target, "pt") as file:
        header = file.metadata()
    assert (header["ss_output_name"], header["class_word"], header["steps"]) == ("for-comfy", "woman", "40")
    again = ["lora", "export", "--person", "anna", "--layout", "diffusers"]
    assert main([*places, *again]) == 0
    assert "The licence of “Tiny (random weights)” comes with it: Apache-2.0." in capsys.readouterr().out
    assert main([*places, "lora", "show", str(target), "--base", "tiny-sdxl"]) == 0
    shown = capsys.readouterr().out
    assert "kohya's layout, float16" in shown and "Trigger word  tok" in shown and "It fits" in shown
    assert main([*places, "lora", "show", str(target), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["rank"] == 4
    assert main([*places, "lora", "show", str(tmp_path / "none.safetensors")]) == 1
    assert "is not there" in capsys.readouterr().err
