"""Families and base models are found, and a person is told what there is."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from headshot_ui import families
from headshot_ui.errors import ModelError
from headshot_ui.families.bases import read_base
from headshot_ui.families.protocol import Family, LoadedBase, LoadedRefiner
from headshot_ui.settings import Settings


def module(name: str, **content: object) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(content)
    return made


def test_sdxl_is_found_and_keeps_the_contract() -> None:
    found = families.all_families()
    assert "sdxl" in found
    for family_id, family in found.items():
        assert family.id == family_id
        assert all(
            callable(getattr(family, name)) for name in vars(Family) if not name.startswith("_") and name != "id"
        )


def test_two_families_of_one_id_are_refused() -> None:
    class Fake:
        id = "same"

    with pytest.raises(ValueError, match="one and two|two and one"):
        families.collect_families([module("one", FAMILY=Fake()), module("helper"), module("two", FAMILY=Fake())])


def test_bases_are_found_in_any_depth(settings: Settings) -> None:
    assert {info.id for info in families.all_bases(settings)} == {"tiny-sdxl", "wider-sdxl", "epsilon-sdxl"}
    info = families.find_base("wider-sdxl", settings)
    assert info.folder == settings.models_dir / "wider" / "sdxl"
    assert (info.size_px, info.demo, info.defaults.rank, info.defaults.min_snr_gamma) == (64, True, 4, None)


def test_an_unknown_base_is_answered_with_those_there_are(settings: Settings) -> None:
    with pytest.raises(ModelError, match="tiny-sdxl") as caught:
        families.find_base("grand-sdxl", settings)
    assert "grand-sdxl" in str(caught.value)


def test_no_models_folder_is_no_crash(tmp_path: Path) -> None:
    empty = Settings.from_environment(models_dir=tmp_path / "none", device="cpu", dtype="float32")
    assert families.all_bases(empty) == ()
    with pytest.raises(ModelError, match="none"):
        families.find_base("demo-sdxl", empty)


@pytest.mark.parametrize("text", ["{", "[]", '{"id": "x"}', '{"id": "x", "colour": 1}', '{"defaults": 3}'])
def test_a_damaged_base_file_is_named_and_hides_no_other(
    text: str, settings: Settings, models_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(models_dir / "tiny", tmp_path / "tiny", copy_function=_link)
    (tmp_path / "bad").mkdir()
    path = tmp_path / "bad" / "base.json"
    path.write_text(text)
    here = Settings.from_environment(models_dir=tmp_path, device="cpu", dtype="float32")
    with pytest.raises(ModelError, match="base.json"):
        read_base(path)
    assert [info.id for info in families.all_bases(here)] == ["tiny-sdxl"]
    with pytest.raises(ModelError, match="bad"):
        families.find_base("x", here)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"size_px": "big"}, "“size_px”"),
        ({"demo": 1}, "“demo”"),
        ({"defaults": {"train_steps": True}}, "“train_steps”"),
        ({"defaults": {"learning_rate": [1]}}, "“learning_rate”"),
        ({"title": None}, "“title”"),
        ({"family": "cubism"}, "“cubism”, which this version does not know"),
    ],
)
def test_asked_for_a_base_that_cannot_be_used_the_reason_is_told(
    change: dict, words: str, models_dir: Path, tmp_path: Path
) -> None:
    shutil.copytree(models_dir / "tiny", tmp_path / "tiny", copy_function=_link)
    path = tmp_path / "tiny" / "base.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    here = Settings.from_environment(models_dir=tmp_path, device="cpu", dtype="float32")
    with pytest.raises(ModelError, match=words):
        families.find_base("tiny-sdxl", here)
    assert families.all_bases(here) == ()


def test_whole_numbers_and_nothing_are_good_enough_for_defaults(tmp_path: Path) -> None:
    facts = {"id": "x", "family": "sdxl", "title": "X", "licence": "", "note": "", "size_px": 64}
    path = tmp_path / "base.json"
    path.write_text(json.dumps(facts | {"defaults": {"guidance_scale": 2, "min_snr_gamma": None}}))
    assert read_base(path).defaults.guidance_scale == 2


def _link(source: str, target: str) -> None:
    Path(target).write_bytes(Path(source).read_bytes())


def test_a_base_of_an_unknown_family_is_told(settings: Settings, tmp_path: Path) -> None:
    info = families.find_base("tiny-sdxl", settings)
    data = json.loads((info.folder / "base.json").read_text()) | {"family": "cubism"}
    (tmp_path / "base.json").write_text(json.dumps(data))
    with pytest.raises(ModelError, match="cubism"):
        families.load_base(read_base(tmp_path / "base.json"), settings)


def test_looking_for_bases_loads_no_torch(models_dir: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from headshot_ui import families; "
        "from headshot_ui.settings import Settings; "
        f"s = Settings.from_environment(models_dir=Path({str(models_dir)!r}), device='cpu', dtype='float32'); "
        "assert len(families.all_bases(s)) == 3; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_loaded_base_has_every_member_of_the_contract(tiny: LoadedBase) -> None:
    wanted = {name for name in vars(LoadedBase) if not name.startswith("_")}
    assert wanted and all(hasattr(tiny, name) for name in wanted)


def test_a_loaded_refiner_has_every_member_of_the_contract(refiner: LoadedRefiner) -> None:
    wanted = {name for name in vars(LoadedRefiner) if not name.startswith("_")}
    assert wanted and all(hasattr(refiner, name) for name in wanted)
