"""The measurement of growth, with few of everything; the real page and processes of their own are in the slow test."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headshot_ui.bench import growing, library
from headshot_ui.bench.library import make_library, make_photos
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.works import growth
from headshot_ui.dataset.compare import SAME_PICTURE, fingerprint
from headshot_ui.errors import HeadshotError, SetupError
from headshot_ui.settings import Settings
from headshot_ui.specs import PrepareSpec
from headshot_ui.store import Store
from headshot_ui.ui import headshot_view, picture_sets
from tests.tiny_models import make_tiny_sdxl

MODELS = Path(__file__).parents[2] / "models"
FIGURES = {"items", "seconds", "cpu_s", "ram_first_bytes", "ram_most_bytes"}


def figures(cpu_s: float, ram: int) -> dict[str, Any]:
    return {"items": 10, "seconds": 1.0, "cpu_s": cpu_s, "ram_most_bytes": ram}


def test_what_counts_as_flat() -> None:
    told = [figures(1.0, 1000), figures(1.04, 1040), figures(1.06, 1000), figures(0.9, 1060)]
    rows = list(growth._growth_rows("picture", (1, 10, 100, 1000), told, 1.05))
    assert [row.met for row in rows] == [True, False, False]  # slower; larger
    assert rows[2].work == "each picture of 1,000, beside 1"
    assert (rows[0].reference_s, rows[0].ours_s, rows[2].ours_peak_bytes) == (1.0, 1.04, 1060)


def test_photos_are_no_copies_of_each_other(tmp_path: Path) -> None:
    from PIL import Image

    make_photos(tmp_path / "photos", MODELS / "demo" / "people" / "alex", 12)  # ten faces: two come twice
    looks = [fingerprint(Image.open(path)) for path in sorted((tmp_path / "photos").iterdir())]
    assert len(looks) == 12
    assert max(float(looks[i] @ looks[j]) for i in range(12) for j in range(i)) < SAME_PICTURE


# --- jobs ---------------------------------------------------------------------------------------------------
def test_a_batch_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_sdxl(tmp_path / "models" / "tiny")
    monkeypatch.setattr(growing, "BASE_ID", "tiny-sdxl")
    argv = ["generate", "--models", str(tmp_path / "models"), "--count", "3", "--outputs", str(tmp_path / "out")]
    assert growing.main([*argv, "--device", "cpu"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert set(told) == FIGURES and told["items"] == 3
    assert told["cpu_s"] > 0 and 0 < told["seconds"] < 60
    assert told["ram_most_bytes"] >= told["ram_first_bytes"] > 2**26
    assert len(list((tmp_path / "out" / "people" / growing.PERSON / "headshots").glob("*/*.png"))) == 3


def test_a_job_that_fails_has_no_figures(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    settings = Settings.from_environment(outputs_dir=tmp_path / "out", device="cpu", environment={})
    with pytest.raises(HeadshotError, match="No photos were found"):
        growing.measured(PrepareSpec("bench", (str(tmp_path / "photos"),), growing.DEMO), settings, 1)


def test_a_process_that_ends_badly_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = BenchSetting(Settings.from_environment(environment={}), "tiny", 1, tmp_path, lambda line: None)
    with pytest.raises(SetupError, match="did not end well: .*invalid choice"):
        growth._job(setting, "fly", "flown")


@pytest.fixture
def small_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "LARGE_PX", 64)


# --- a library ------------------------------------------------------------------------------------------------
def test_a_library_is_one_the_program_could_have_left(tmp_path: Path, small_pictures: None) -> None:
    store = Store(Settings.from_environment(outputs_dir=tmp_path, environment={}))
    make_library(store, "anna", "demo-sdxl", 40)
    seen = headshot_view.look(store, "anna", headshot_view.View())
    assert [len(each.pictures) for each in seen.sets] == [8, 16, 16]  # newest first
    assert picture_sets.settings_of(seen.pictures[0]).base == "demo-sdxl"
    facts = {fact["name"]: fact["value"] for fact in headshot_view.fact_values(seen)["facts"]}
    assert facts["Likeness"] == "90 %" and facts["Size"] == "64 × 64 pixels"


def test_rankings_are_read_once(tmp_path: Path, small_pictures: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every click looks at all sets: what did not change is not read again, and what did is."""
    store = Store(Settings.from_environment(outputs_dir=tmp_path, environment={}))
    make_library(store, "anna", "demo-sdxl", 40)
    read: list[str] = []
    real = picture_sets.read_json

    def counted(path: Path) -> Any:
        read.append(path.parent.name)
        return real(path)

    monkeypatch.setattr(picture_sets, "read_json", counted)
    first = picture_sets.find_sets(store, "anna")
    assert len(read) == 3
    first[0].pictures[2].path.unlink()
    again = picture_sets.find_sets(store, "anna")
    assert len(read) == 3 and [len(each.pictures) for each in again] == [7, 16, 16]
    ranking = first[1].folder / picture_sets.RANKING
    ranking.write_text(json.dumps({**real(ranking), "state": "cancelled"}), "utf-8")
    changed = picture_sets.find_sets(store, "anna")
    assert read[3:] == [first[1].id] and {each.id: each.state for each in changed}[first[1].id] == "cancelled"
    shutil.rmtree(first[2].folder)
    assert len(picture_sets.find_sets(store, "anna")) == 2 and len(read) == 4


@pytest.mark.slow
def test_the_real_growth(tmp_path: Path) -> None:
    settings = Settings.from_environment(models_dir=MODELS, device="cpu", environment={})
    rows = list(growth.measure_growth(BenchSetting(settings, "tiny", 1, tmp_path, lambda line: None)))
    assert [row.work.split(",")[0] for row in rows] == [
        "opening 48 pictures", "opening 48 pictures", "each drawn picture of 3", "each prepared photo of 4",
    ]  # fmt: skip
    assert all(row.ours_s > 0 for row in rows)
    full = BenchSetting(settings, "full", 1, tmp_path / "large", lambda line: None)
    full.folder.mkdir()
    opened = {row.work: row for row in growth._library(replace(full, repeats=2), growth.LIBRARY)}
    # The clock of a machine with much else to do says little; its processor's time holds anywhere.
    assert opened["opening 10,000 pictures, beside 16, processor time"].ours_s < 2 * growth.LIBRARY_OPEN_S
