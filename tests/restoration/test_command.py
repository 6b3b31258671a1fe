"""The restore command: options become the request, what is printed, and a licence accepted on the command line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from headshot_ui.cli import build_parser, main
from headshot_ui.commands.restore import restored_lines
from headshot_ui.commands.spec_options import HELP
from headshot_ui.dataset.intake import Refusal
from headshot_ui.errors import HeadshotError
from headshot_ui.jobs import JobQueue
from headshot_ui.likeness import Likeness
from headshot_ui.restoration import licence
from headshot_ui.restoration.records import RestoredFace, RestoredPicture, RestoreResult
from headshot_ui.specs import RestoreSpec
from tests.restoration.fakes import make_settings

RESULT = RestoreResult(
    Path("out"),
    (
        RestoredPicture(
            Path("in/me.jpg"), Path("out/me.png"),
            (RestoredFace(1, (0, 0, 9, 9)), RestoredFace(2, (0, 0, 4, 4), "It is too small.")),
            likeness_before=Likeness(0.5, 80, True), likeness_after=Likeness(0.4, 60, True),
            warning="Less like anna than before.", notes=("Enlarged plainly.",),
        ),
        RestoredPicture(
            Path("in/tree.jpg"), Path("out/tree.png"), (), "No face was found.",
            notes=("Enlarged plainly.", "Only one."),
        ),
    ),
    1.5, (Refusal("notes.txt", "This is not a picture."),), "demo",
)  # fmt: skip


class OneJobEngine:
    """Runs every request to the same result."""

    def __init__(self, settings: Any) -> None:
        self.submitted: list[Any] = []
        self._queue = JobQueue()

    def forecast(self, spec: Any) -> Any:
        raise HeadshotError("There is no plan.")

    def submit(self, spec: Any) -> Any:
        self.submitted.append(spec)
        return self._queue.submit("restore", "restoring", lambda report: RESULT)

    def close(self) -> None:
        self._queue.close(5)


@pytest.fixture
def command(tmp_path, capsys):
    def run(*argv: str):
        engines: list[OneJobEngine] = []

        def make(settings: Any) -> OneJobEngine:
            engines.append(OneJobEngine(settings))
            return engines[-1]

        places = ["--outputs", str(tmp_path / "outputs"), "--models", str(tmp_path / "models"), "--device", "cpu"]
        code = main(["restore", *argv, *places], make)  # type: ignore[arg-type]
        shown = capsys.readouterr()
        return code, shown.out, shown.err, [spec for engine in engines for spec in engine.submitted]

    return run


def test_every_field_has_a_help_text_and_the_ends_of_the_weight_are_said_in_words(capsys):
    assert set(HELP[RestoreSpec]) == {field.name for field in dataclasses.fields(RestoreSpec)}
    with pytest.raises(SystemExit):
        build_parser().parse_args(["restore", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "from repair to keep: 0 repairs most" in shown and "1 keeps most of what is there" in shown


def test_options_become_the_request(command):
    code, _, _, submitted = command(
        "a.png", "album.zip", "--person", "anna", "--fidelity-weight", "0.8", "--faces", "1", "2", "--upscale", "2",
        "--parse-face", "--restorer", "demo",
    )  # fmt: skip
    assert code == 0
    assert submitted == [RestoreSpec("anna", ("a.png", "album.zip"), "demo", 0.8, (1, 2), 2, True)]


def test_without_options_the_request_has_its_own_defaults(command):
    assert command("a.png", "--person", "anna")[3] == [RestoreSpec("anna", ("a.png",))]


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--person", "anna"], "No picture"),
        ([], "No picture"),
        (["a.png"], "--person"),
        (["a.png", "--person", "anna", "--upscale", "3"], "1, 2 or 4"),
        (["a.png", "--person", "anna", "--fidelity-weight", "2"], "fidelity weight is 2"),
        (["a.png", "--person", "anna", "--faces", "0"], "from 1"),
        (["a.png", "--person", "anna", "--faces", "left"], "invalid int"),
    ],
)
def test_what_is_not_valid_ends_with_code_2(command, argv, words):
    code, out, err, submitted = command(*argv)
    assert (code, out, submitted) == (2, "", []) and words in err


def test_lines_for_people():
    lines = "\n".join(restored_lines(RESULT))
    for words in (
        "2 pictures restored", "“demo”", "me.png: 1 of 2 faces repaired, likeness 80 % → 60 %",
        "face 2 left alone: It is too small.", "Less like anna", "Enlarged plainly.", "tree.png: No face was found.",
        "left out: notes.txt: This is not a picture.",
    ):  # fmt: skip
        assert words in lines
    assert lines.count("Enlarged plainly.") == 1 and "    Only one." in lines


def test_json_is_one_object(command):
    code, out, _, _ = command("a.png", "--person", "anna", "--json")
    data = json.loads(out)
    assert code == 0 and data["pictures"][0]["faces"][1]["skipped"] == "It is too small."
    assert data["refused"] == [{"name": "notes.txt", "reason": "This is not a picture."}]


def test_a_licence_is_shown_and_accepted(command, tmp_path):
    settings = dataclasses.replace(make_settings(tmp_path), models_dir=tmp_path / "models")
    code, out, _, submitted = command("--accept-licence", "codeformer")
    assert code == 0 and submitted == [] and "S-Lab License 1.0" in out and "https://" in out
    assert licence.accepted(settings, "codeformer")
    code, out, _, _ = command("--accept-licence", "codeformer", "--json")
    assert json.loads(out) == {"accepted": "codeformer"}
    code, _, err, _ = command("--accept-licence", "gfpgan")
    assert code == 1 and "no restorer" in err


def test_a_licence_can_be_accepted_on_the_way(command):
    code, _, _, submitted = command("a.png", "--person", "anna", "--accept-licence", "codeformer")
    assert code == 0 and len(submitted) == 1
