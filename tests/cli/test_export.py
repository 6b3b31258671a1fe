"""The export command: what it asks of the engine, what it says; the same run for real; and mistyped people."""

from __future__ import annotations

import os
import shlex
import subprocess
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from headshot_ui.commands.job_runner import _places
from headshot_ui.commands.spec_options import HELP
from headshot_ui.export import ExportedFile, ExportResult
from headshot_ui.settings import Settings
from headshot_ui.specs import EXPORT_LAYOUTS, ExportSpec, GenerateSpec


def exported(spec: ExportSpec, report) -> ExportResult:
    report("Exporting", 1, 1)
    folder = Path("exports") / "today"
    files = (
        ExportedFile(Path("a.png"), "cv", folder / "a-cv.jpg", 900, 1200, "It was enlarged 3.1 times."),
        ExportedFile(Path("a.png"), "badge", folder / "a-badge.jpg", 413, 531),
    )
    return ExportResult(folder, files, folder / "headshots.zip", 1.0, ("“b.png” was left out: It is not there.",))


@pytest.fixture
def export(command):
    return lambda *argv: command("export", *argv, runners={ExportSpec: exported})


def test_options_become_the_request(export) -> None:
    done = export("a.png", "b.png", "--person", "anna", "--layouts", "linkedin", "cv", "--file-type", "webp",
                  "--quality", "70", "--no-disclose")  # fmt: skip
    assert done.engines[0].submitted == [
        ExportSpec("anna", ("a.png", "b.png"), ("linkedin", "cv"), "webp", 70, disclose=False)
    ]
    assert export("--person", "anna").engines[0].submitted == [ExportSpec("anna", (), EXPORT_LAYOUTS)]


def test_every_option_has_a_help_text() -> None:
    assert set(HELP[ExportSpec]) == set(ExportSpec("anna").to_json())


def test_files_notes_archive_and_what_was_left_out_are_said(export) -> None:
    lines = export("a.png", "--person", "anna").out.splitlines()
    where = Path("exports") / "today"
    assert lines[-5:] == [
        f"2 files in {where}",
        "  a-cv.jpg  900 x 1200  It was enlarged 3.1 times.",
        "  a-badge.jpg  413 x 531",
        "  “b.png” was left out: It is not there.",
        f"Zip archive: {where / 'headshots.zip'}",
    ]
    report = export("a.png", "--person", "anna", "--json").json
    assert [file["layout"] for file in report["files"]] == ["cv", "badge"] and report["archive"].endswith(".zip")


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--layouts", "passport"], "There is no layout “passport”; choose from linkedin"),
        (["--file-type", "bmp"], "no kind of file"),
        (["--quality", "0"], "it must be from 1 to 100"),
    ],
)
def test_a_wrong_request_is_one_sentence(export, argv, words) -> None:
    done = export("--person", "anna", *argv)
    assert done.code == 2 and words in done.err and len(done.err.splitlines()) == 1


def test_the_real_program_exports_a_demo_photo(tmp_path: Path, capsys) -> None:
    from headshot_ui.cli import main
    from headshot_ui.logs import stop_log

    photo = Path(__file__).parents[2] / "models" / "demo" / "people" / "robin" / "robin-03.jpg"
    try:
        code = main(["export", str(photo), "--person", "robin", "--outputs", str(tmp_path), "--device", "cpu"])
    finally:
        stop_log()
    assert code == 0
    (folder,) = (tmp_path / "people" / "robin" / "exports").iterdir()
    sizes = {}
    for path in folder.glob("*.jpg"):
        with Image.open(path) as image:
            sizes[path.name] = image.size
    assert sizes == {"robin-03-linkedin.jpg": (800, 800), "robin-03-cv.jpg": (900, 1200),
                     "robin-03-badge.jpg": (413, 531), "robin-03-full.jpg": (443, 463)}  # fmt: skip
    with zipfile.ZipFile(folder / "headshots.zip") as archive:
        assert set(archive.namelist()) == set(sizes)
    assert "No face" not in capsys.readouterr().out


# --- mistyped people ----------------------------------------------------------------------------------
@pytest.fixture
def people(tmp_path: Path) -> Path:
    folder = tmp_path / "outputs" / "people"
    for name in ("anna", "ben", "annika"):
        (folder / name).mkdir(parents=True)
    return folder


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["generate", "--person", "ana", "--lora", "none"], "nobody called “ana”: did you mean “anna”"),
        (["generate", "--person", "ana", "--lora", "some.safetensors"], "did you mean “anna”"),
        (["generate", "--person", "nobody", "--lora", "none"], "choose from anna, annika, ben."),
        (["export", "a.png", "--person", "bem"], "did you mean “ben”"),
        (["export", "--person", "nobody"], "choose from anna, annika, ben."),
    ],
)
def test_a_mistyped_person_is_asked_about_and_gets_no_folder(command, people, argv, words) -> None:
    done = command(*argv)
    assert done.code == 2 and words in done.err and len(done.err.splitlines()) == 1 and not done.engines
    assert sorted(path.name for path in people.iterdir()) == ["anna", "annika", "ben"]


def test_known_people_and_new_ones_are_let_through(command, people) -> None:
    for argv in (["--person", "ben", "--lora", "none"], ["--person", "zoe", "--lora", "some.safetensors"]):
        (spec,) = command("generate", *argv).engines[0].submitted
        assert isinstance(spec, GenerateSpec) and spec.person == argv[1]


# --- how to go on ---------------------------------------------------------------------------------------
def test_the_hint_names_folders_only_where_they_were_given(tmp_path: Path, monkeypatch) -> None:
    usual = Settings.from_environment()
    assert _places(usual) == ""
    given = Settings.from_environment(outputs_dir=tmp_path / "my outputs", models_dir=tmp_path / "models")
    quoted = (lambda path: subprocess.list2cmdline([str(path)])) if os.name == "nt" else shlex.quote
    models, outputs = quoted(str(given.models_dir)), quoted(str(given.outputs_dir))
    assert " " in str(given.outputs_dir) and outputs[0] in "'\""
    assert _places(given) == f" --models {models} --outputs {outputs}"
    monkeypatch.setenv("HEADSHOT_UI_OUTPUTS", str(given.outputs_dir))
    assert "--outputs" not in _places(given)
