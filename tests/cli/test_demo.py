"""The demo command against a fake engine; the real models have their own tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from headshot_ui.commands import demo
from tests.ui.fake_engine import portrait


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A models folder with demo photos, and a judge that takes every picture after training for the person."""
    folder = tmp_path / "models" / "demo" / "people" / "robin"
    folder.mkdir(parents=True)
    for number in range(3):
        portrait(number, "photo").save(folder / f"{number}.jpg")

    def measure(settings, base, made, before):
        assert len(before) == demo.PRESETS and all("before" in picture.path.parts for picture in before)
        return demo.MeasuredLikeness(0.125, 0.75, 51, len(made.generated.pictures))

    monkeypatch.setattr(demo, "measure", measure)
    return tmp_path / "models"


def test_json_has_exactly_the_promised_shape(command, models):
    done = command("demo", "--models", str(models), "--seed", "5", "--json")
    assert done.code == 0
    report = done.json
    assert set(report) == {"likeness", "stages", "files", "seconds"}
    assert report["likeness"] == {
        "first_match_before": 0.125, "first_match_after": 0.75, "identities": 51,
        "pictures": demo.PRESETS * demo.PICTURES_PER_PRESET,
    }  # fmt: skip
    assert [stage["name"] for stage in report["stages"]] == [
        "prepare", "train", "before", "generate", "restore", "export", "measure",
    ]  # fmt: skip
    assert {tuple(stage) for stage in report["stages"]} == {("name", "seconds", "peak_ram_bytes", "peak_vram_bytes")}
    files = report["files"]
    assert set(files) == {"lora", "headshots", "restored", "exports", "contact_sheet"}
    assert (len(files["restored"]), len(files["exports"])) == (4, 4), "the best four; the best one in four layouts"
    for path in (files["lora"], files["contact_sheet"], *files["headshots"], *files["restored"], *files["exports"]):
        assert Path(path).is_file()
    assert [Path(path).name for path in files["restored"]] == [Path(path).name for path in files["headshots"][:4]]
    assert len(files["headshots"]) == report["likeness"]["pictures"]
    assert "cartoons, not photographs" in done.err
    (spec,) = done.engines[0].submitted
    assert (spec.train.seed, spec.generate.seed, spec.generate.lora) == (5, 5, "latest")
    assert spec.generate.refine is None, "as the base was made for"


def test_the_table_names_likeness_stages_and_files(command, models):
    shown = command("demo", "--models", str(models)).out
    row = next(line for line in shown.splitlines() if line.startswith("taken for this person among 51"))
    assert row.split()[-2:] == ["12%", "75%"]
    assert "train" in shown and "1.0 GB" in shown and "contact-sheet.png" in shown
    assert "\nrestored " in shown and "\nexports " in shown


def test_the_plan_makes_nothing(command, models, tmp_path):
    done = command("demo", "--models", str(models), "--plan")
    assert done.code == 0 and "Memory: at most about" in done.out
    assert done.engines[0].submitted == [] and not (tmp_path / "outputs" / "people" / "demo-robin").exists()


def test_a_second_demo_leaves_the_first_one_alone(command, models, tmp_path):
    for _ in range(2):
        assert command("demo", "--models", str(models)).code == 0
    assert sorted(path.name for path in (tmp_path / "outputs" / "people").iterdir()) == ["demo-robin", "demo-robin-2"]


def test_missing_demo_photos_are_named(command, tmp_path):
    done = command("demo", "--models", str(tmp_path))
    assert done.code == 1 and "The demo photos are missing" in done.err and done.engines == []


def test_a_name_that_is_no_folder_is_refused_before_anything_is_made(command, models, tmp_path):
    done = command("demo", "--models", str(models), "--person", "../up")
    assert done.code == 2 and "small letters" in done.err
    assert not (tmp_path / "outputs" / "people").exists()
