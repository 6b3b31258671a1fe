"""The command line against a fake engine: what is asked of it, what is printed, how it ends."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from headshot_ui.cli import COMMANDS, build_parser
from headshot_ui.commands.spec_options import HELP, build_spec
from headshot_ui.errors import HeadshotError
from headshot_ui.recipes import load_recipes
from headshot_ui.specs import GenerateSpec, HeadshotsSpec, PrepareSpec, Spec, TrainSpec

ROOT = Path(__file__).parents[2]


def test_every_field_of_every_request_has_a_help_text():
    for spec in Spec.__subclasses__():
        parts = {"prepare", "train", "generate"} if spec is HeadshotsSpec else set()
        assert set(HELP[spec]) == {field.name for field in dataclasses.fields(spec)} - parts


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.NAME)
def test_help_shows_examples_that_can_be_parsed(module, capsys):
    with pytest.raises(SystemExit) as left:
        build_parser().parse_args([module.NAME, "--help"])
    shown = capsys.readouterr().out
    assert left.value.code == 0 and "--json" in shown and "--vram-limit" in shown
    examples = [line for line in shown.splitlines() if line.startswith("  python3 app.py ")]
    assert examples
    for line in examples:
        words = shlex.split(line.split("   ")[0] if "   " in line.strip() else line)[2:]
        assert build_parser().parse_args(words).command is module


def test_options_become_the_request(command):
    done = command("train", "--person", "anna", "--steps", "7", "--learning-rate", "0.002", "--prior-preservation")
    assert done.code == 0
    assert done.engines[0].submitted == [
        TrainSpec("anna", "demo-sdxl", steps=7, learning_rate=0.002, prior_preservation=True)
    ]
    assert done.engines[0].closed


def test_without_options_the_request_has_its_own_defaults(command):
    assert command("train", "--person", "anna").engines[0].submitted == [TrainSpec("anna", "demo-sdxl")]


def test_presets_become_a_tuple_and_lora_none_is_the_bare_base(command):
    done = command("generate", "--person", "anna", "--presets", "navy-suit", "white-shirt", "--lora", "none")
    assert done.engines[0].submitted == [
        GenerateSpec("anna", "demo-sdxl", presets=("navy-suit", "white-shirt"), lora=None)
    ]
    assert command("generate", "--person", "anna").engines[0].submitted[0].lora == "latest"


def test_headshots_keeps_training_and_sampling_steps_apart(command):
    done = command(
        "headshots", "a.jpg", "b.jpg", "--person", "anna", "--train-steps", "9", "--sampling-steps", "4", "--seed", "3"
    )
    (spec,) = done.engines[0].submitted
    assert spec.prepare == PrepareSpec("anna", ("a.jpg", "b.jpg"), "demo-sdxl")
    assert (spec.train.steps, spec.train.seed, spec.generate.steps, spec.generate.seed) == (9, 3, 4, 3)
    assert spec.generate.lora == "latest"


def test_a_recipe_is_asked_for_once_and_counts_for_training_and_pictures(command):
    done = command("headshots", "a.jpg", "--person", "anna", "--recipe", "original", "--rank", "8")
    (spec,) = done.engines[0].submitted
    assert (spec.train.recipe, spec.generate.recipe, spec.train.rank) == ("original", "original", 8)
    assert (spec.train.gradient_accumulation, spec.generate.steps) == (None, None), "left to the recipe"
    (spec,) = command("train", "--person", "anna", "--recipe", "quick", "--size-px", "512").engines[0].submitted
    assert spec == TrainSpec("anna", "demo-sdxl", recipe="quick", size_px=512)
    (spec,) = command("generate", "--person", "anna", "--recipe", "original").engines[0].submitted
    assert spec.recipe == "original"


@pytest.mark.parametrize("name", ["train", "generate", "headshots"])
def test_help_says_what_recipes_there_are(name, capsys):
    with pytest.raises(SystemExit):
        build_parser().parse_args([name, "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "--recipe TEXT" in shown and all(recipe in shown for recipe in load_recipes())


def test_headshots_says_how_many_of_the_best_are_restored_and_exported(command):
    argv = ("headshots", "a.jpg", "--person", "anna")
    done = command(*argv, "--restore-best", "3", "--export-best", "2", "--fidelity-weight", "0.7")
    (spec,) = done.engines[0].submitted
    assert (spec.restore_best, spec.export_best, spec.fidelity_weight) == (3, 2, 0.7)
    assert "3 pictures restored" in done.out and "8 files in" in done.out and "Zip archive:" in done.out
    (spec,) = command(*argv).engines[0].submitted
    assert (spec.restore_best, spec.export_best) == (0, 0)


def test_headshots_leaves_a_contact_sheet_beside_the_pictures(command, monkeypatch):
    done = command("headshots", "a.jpg", "--person", "anna", "--json")
    sheet = Path(done.json["contact_sheet"])
    assert sheet.name == "contact-sheet.png" and sheet.parent == Path(done.json["generated"]["folder"])
    assert sheet.read_bytes().startswith(b"\x89PNG")
    assert command("headshots", "a.jpg", "--person", "anna").out.splitlines()[-1].startswith("Contact sheet: ")

    def full(*_):
        raise HeadshotError("The disk is full.")

    monkeypatch.setattr("headshot_ui.sheet.save_contact_sheet", full)
    done = command("headshots", "a.jpg", "--person", "anna")
    assert done.code == 0 and "pictures, most alike first" in done.out and "Contact sheet" not in done.out
    assert done.err == "No contact sheet was made: The disk is full.\n"


@pytest.mark.parametrize(
    "argv",
    [
        ("train", "--person", "anna", "--base", "demo-sdxl"),
        ("generate", "--person", "anna", "--lora", "none", "--base", "demo-sdxl"),
        ("headshots", "a.jpg", "--person", "anna", "--base", "demo-sdxl"),
        ("restore", "a.png", "--person", "anna"),
    ],
    ids=lambda argv: argv[0],
)
def test_long_jobs_tell_their_plan_and_with_plan_they_stop_there(command, argv):
    lines = ["In memory: denoiser.", "Memory: at most about 1.0 GB (estimated); 8.0 GB may be used."]
    ran = command(*argv)
    assert ran.code == 0 and ran.out.splitlines()[:2] == lines and len(ran.engines[0].submitted) == 1
    quiet = command(*argv, "--json")
    assert quiet.err.splitlines()[:2] == lines and len(quiet.out.splitlines()) == 1
    planned = command(*argv, "--plan")
    assert (planned.code, planned.err) == (0, "") and planned.out.splitlines()[:2] == lines
    assert planned.engines[0].submitted == [] and planned.engines[0].closed
    as_json = command(*argv, "--plan", "--json").json
    assert as_json["limit_bytes"] == 2**33 and as_json["fits"] is True


def test_short_jobs_have_no_plan(command):
    assert "Memory:" not in command("prepare", "a.jpg", "--person", "anna").out
    assert command("prepare", "a.jpg", "--person", "anna", "--plan").code == 2


def test_short_jobs_too_say_that_a_card_is_not_used_but_not_what_needs_none(command, monkeypatch):
    renew = "The driver is too old: renew it."
    monkeypatch.setattr("headshot_ui.commands.job_runner.unused_card", lambda settings: renew)
    told = command("prepare", "a.jpg", "--person", "anna")
    assert told.code == 0 and told.out.splitlines()[1].startswith(f"{renew} Until then"), "behind the base model"
    assert "driver" not in command("export", "a.png", "--person", "anna").out
    assert "driver" not in command("prepare", "a.jpg", "--person", "anna", "--json").out


def test_what_a_job_left_out_is_said_at_its_end(command):
    def train(spec, report):
        report("Training", 1, 2, note="Likeness was not measured: no recogniser.")
        report("Training", 2, 2)
        raise HeadshotError("The disk is full.")

    done = command("train", "--person", "anna", runners={TrainSpec: train})
    assert done.out.splitlines()[-1] == "Note: Likeness was not measured: no recogniser."
    assert done.code == 1 and done.err.splitlines() == ["The disk is full."]


def test_json_is_the_last_line_and_alone_on_standard_output(command):
    done = command("headshots", "a.jpg", "--person", "anna", "--json")
    assert done.code == 0 and len(done.out.splitlines()) == 1
    assert [picture["likeness"]["percent"] for picture in done.json["generated"]["pictures"]][0] == 96.0
    assert "Training" in done.err


def test_without_json_progress_and_reasons_are_on_standard_output(command):
    done = command("prepare", "a.jpg", "--person", "anna")
    assert "Looking at the photos" in done.out
    assert "group.jpg: Several faces were found; give a photo of you alone." in done.out
    assert done.err == ""


def test_a_failed_job_is_one_sentence_on_standard_error_and_code_1(command):
    done = command("prepare", "a.jpg", "--person", "anna", "--json", fail="The photo cannot be read; choose another.")
    assert (done.code, done.out) == (1, "")
    assert done.err.splitlines()[-1] == "The photo cannot be read; choose another."
    assert done.engines[0].closed


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train", "--person", "Anna Müller"], "small letters"),
        (["train", "--person", "anna", "--steps", "0"], "The number of steps is 0"),
        (["train"], "--person"),
        (["paint"], "invalid choice"),
        (["train", "--person", "anna", "--steps", "many"], "invalid int value"),
        (["generate", "--person", "anna", "--width", "100"], "multiple of 64"),
        (["--port", "99999999"], "from 1 to 65535"),
        (["--host", "0.0.0.0"], "needs --user NAME"),
        (["train", "--person", "anna", "--vram-limit", "much"], "memory limit"),
    ],
)
def test_what_is_not_valid_ends_with_code_2(command, argv, words):
    done = command(*argv)
    assert done.code == 2 and words in done.err and done.engines == []


def test_common_options_may_stand_before_the_command():
    args = build_parser().parse_args(["--vram-limit", "8GB", "train", "--person", "anna"])
    assert args.vram_limit == "8GB"
    assert build_spec(TrainSpec, args, base="demo-sdxl") == TrainSpec("anna", "demo-sdxl")


def test_help_is_fast_and_loads_nothing_heavy():
    code = (
        "import sys, time; from headshot_ui.cli import build_parser; build_parser();"
        "print(time.process_time()); print(sorted(sys.modules))"  # CPU time: other programs may be busy
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    seconds, loaded = ended.stdout.splitlines()
    for heavy in ("torch", "gradio", "diffusers", "numpy", "PIL", "psutil"):
        assert f"'{heavy}'" not in loaded
    assert float(seconds) < 0.3


CTRL_C = textwrap.dedent("""
    import sys, threading
    from headshot_ui.cli import main
    from tests.ui.fake_engine import FakeEngine

    class Engine(FakeEngine):
        def _train(self, spec, report):
            if {stubborn}:
                report("Training", 1, 2)
                print("busy", file=sys.stderr, flush=True)
                threading.Event().wait(60)
            print("busy", file=sys.stderr, flush=True)
            return super()._train(spec, report)

    sys.exit(main(sys.argv[1:], lambda settings: Engine(settings, step_s=0.05, steps=2000)))
""")


def _started(tmp_path: Path, stubborn: bool) -> subprocess.Popen[str]:
    script = tmp_path / "run.py"
    script.write_text(CTRL_C.format(stubborn=stubborn))
    process = subprocess.Popen(
        [sys.executable, str(script), "train", "--person", "anna", "--json", "--outputs", str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stderr is not None
    while "busy" not in process.stderr.readline():  # two threads write, so lines may run together
        assert process.poll() is None
    time.sleep(0.2)
    return process


@pytest.mark.skipif(os.name == "nt", reason="Windows delivers Ctrl-C to whole console groups, not to one process")
def test_ctrl_c_cancels_the_job_cleanly(tmp_path):
    process = _started(tmp_path, stubborn=False)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130 and out == ""
    assert "Cancelling" in err and err.splitlines()[-1] == "Cancelled; what was finished is kept."


@pytest.mark.skipif(os.name == "nt", reason="Windows delivers Ctrl-C to whole console groups, not to one process")
def test_a_second_ctrl_c_ends_a_job_that_does_not_listen(tmp_path):
    process = _started(tmp_path, stubborn=True)
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=5)
    assert process.returncode == 130 and "Stopped at once." in err


def test_json_of_a_result_has_only_plain_values():
    import numpy as np

    from headshot_ui.commands.output import to_plain

    value = {"path": Path("a") / "b", "numbers": (np.float32(0.5), np.int64(3)), "none": None, "array": np.zeros(2)}
    assert json.loads(json.dumps(to_plain(value))) == {
        "path": str(Path("a") / "b"), "numbers": [0.5, 3], "none": None, "array": [0.0, 0.0],
    }  # fmt: skip
