"""Restorers are found, chosen, and refused with one sentence; a licence is accepted once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from headshot_ui.errors import ModelError
from headshot_ui.restoration import all_restorers, choose_restorer, collect_restorers, licence
from headshot_ui.restoration.protocol import RestorerInfo
from tests.restoration.fakes import make_settings

ROOT = Path(__file__).parents[2]


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"anything")
    return path


@pytest.mark.parametrize("restorer", all_restorers().values(), ids=lambda r: r.info.id)
def test_every_restorer_keeps_the_contract(restorer, tmp_path):
    settings = make_settings(tmp_path)
    info = restorer.info
    assert info.title and info.licence and info.note and info.size_px >= 64
    assert info.commercial or "http" in info.terms
    assert settings.models_dir in restorer.weights(settings).parents
    sentence = restorer.missing(settings)
    assert str(restorer.weights(settings)) in sentence and sentence.endswith(".")
    with pytest.raises(ModelError, match="missing"):
        restorer.load(settings)


def test_both_are_found_and_the_demo_comes_last():
    assert list(all_restorers()) == ["codeformer", "demo"]


def test_a_demo_comes_last_whatever_its_name():
    modules = [ModuleType(name) for name in ("a-demo", "b", "c")]
    for module in modules:
        info = RestorerInfo(module.__name__, "", "", "", 64, True, module.__name__ == "a-demo")
        module.RESTORER = SimpleNamespace(info=info)  # type: ignore[attr-defined]
    assert list(collect_restorers(modules)) == ["b", "c", "a-demo"]


def test_two_restorers_of_one_name_are_an_error():
    modules = [ModuleType("a"), ModuleType("b"), ModuleType("none")]
    for module in modules[:2]:
        module.RESTORER = SimpleNamespace(info=RestorerInfo("same", "", "", "", 64, True))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="same"):
        collect_restorers(modules)


def test_looking_for_restorers_loads_no_torch():
    code = (
        "import sys; from headshot_ui.restoration import all_restorers; from headshot_ui.settings import Settings\n"
        "[r.missing(Settings.from_environment()) for r in all_restorers().values()]\n"
        "print([name for name in ('torch', 'cv2', 'spandrel', 'spandrel_extra_arches') if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True).strip() == "[]"


def test_the_demo_serves_until_another_can_be_used(tmp_path):
    settings = make_settings(tmp_path)
    with pytest.raises(ModelError, match="demo restorer is missing"):
        choose_restorer(None, settings)
    put(all_restorers()["demo"].weights(settings))
    assert choose_restorer(None, settings).info.id == "demo"
    put(all_restorers()["codeformer"].weights(settings))
    assert choose_restorer(None, settings).info.id == "demo"  # its licence was not accepted
    licence.accept(settings, "codeformer")
    assert choose_restorer(None, settings).info.id == "codeformer"
    assert choose_restorer("demo", settings).info.id == "demo"


def test_one_that_was_asked_for_says_why_it_cannot_be_used(tmp_path):
    settings = make_settings(tmp_path)
    with pytest.raises(ModelError, match="codeformer, demo"):
        choose_restorer("gfpgan", settings)
    with pytest.raises(ModelError, match=r"CodeFormer is not installed.*https://github.com/sczhou.*codeformer\.pth"):
        choose_restorer("codeformer", settings)
    put(all_restorers()["codeformer"].weights(settings))
    with pytest.raises(ModelError, match=r"non-commercial.*--accept-licence codeformer"):
        choose_restorer("codeformer", settings)


def test_without_its_package_codeformer_says_so(tmp_path, monkeypatch):
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "spandrel-extra-arches" in all_restorers()["codeformer"].missing(make_settings(tmp_path))


def test_a_safetensors_file_is_taken_as_well(tmp_path):
    settings = make_settings(tmp_path)
    path = put(settings.models_dir / "codeformer" / "codeformer.safetensors")
    assert all_restorers()["codeformer"].weights(settings) == path


def test_a_licence_is_accepted_once_with_date_and_name(tmp_path):
    settings = make_settings(tmp_path)
    assert not licence.accepted(settings, "codeformer")
    licence.accept(settings, "codeformer")
    assert licence.accepted(settings, "codeformer") and not licence.accepted(settings, "demo")
    data = json.loads((settings.models_dir / "licences.json").read_text())
    assert data["codeformer"]["licence"] == "S-Lab License 1.0" and data["codeformer"]["accepted"][:2] == "20"
    assert "non-commercial" in licence.terms("codeformer")


@pytest.mark.parametrize("content", ["", "[1]", '{"codeformer": {"licence": "S-Lab License 9"}}', '{"codeformer": 1}'])
def test_another_licence_or_a_damaged_file_is_not_accepted(tmp_path, content):
    settings = make_settings(tmp_path)
    settings.models_dir.mkdir(parents=True)
    (settings.models_dir / "licences.json").write_text(content)
    assert not licence.accepted(settings, "codeformer")
    licence.accept(settings, "codeformer")
    assert licence.accepted(settings, "codeformer")


def test_a_licence_of_nobody_cannot_be_accepted(tmp_path):
    with pytest.raises(ModelError, match="no restorer"):
        licence.accept(make_settings(tmp_path), "gfpgan")
