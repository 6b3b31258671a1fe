"""The models command against real servers: what is printed, how it ends, and the variables of a real environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headshot_ui.cli import main
from tests.downloads.conftest import NETWORK, WEIGHTS, Place, online, place, small_catalogue

__all__ = ["online", "place", "small_catalogue"]  # fixtures
ROOT = Path(__file__).parents[2]


@pytest.fixture
def models(place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run “models …” with the real engine; (exit code, standard output, standard error)."""
    monkeypatch.setenv("HEADSHOT_UI_RELEASE_MIRROR", place.settings.release_mirror)

    def run(*argv: str) -> tuple[int, str, str]:
        folders = ["--models", str(place.settings.models_dir), "--outputs", str(place.settings.outputs_dir)]
        code = main(["models", *argv, *folders])
        said = capsys.readouterr()
        return code, said.out, said.err

    return run


def test_list_says_what_there_is_and_what_is_here(models: Callable[..., Any], place: Place) -> None:
    place.get("net")
    code, out, _ = models("list")
    lines = out.splitlines()
    assert code == 0 and any(line.split() == ["net", "2.0", "MB", "here"] for line in lines)
    assert any(line.startswith("base") and line.endswith("not here") for line in lines)
    assert "  Licence: MIT, https://x.org/l" in lines and "  Source: https://huggingface.co/someone/model" in lines
    code, out, _ = models("list", "--json")
    told = {each["id"]: each for each in json.loads(out)["models"]}
    assert told["net"]["state"] == "there" and told["net"]["checked_against"] == "published"
    assert told["codeformer"]["non_commercial"] and told["base"]["size_bytes"] > len(WEIGHTS)
    assert {"title", "licence", "licence_page", "source", "note", "detail"} < set(told["base"])
    assert json.loads(out)["own"] == []


def test_list_says_what_was_put_there_by_hand(models: Callable[..., Any], place: Place) -> None:
    wrong = place.settings.models_dir / "favourite.safetensors"
    wrong.parent.mkdir(parents=True, exist_ok=True)
    wrong.write_bytes(b"no tensors")
    _, out, _ = models("list")
    told = out[out.index("Put there by hand:") :]
    assert f"favourite: {wrong} " in told and f"\n  {wrong}\n" in told
    (own,) = json.loads(models("list", "--json")[1])["own"]
    assert own["id"] == "favourite" and own["path"] == str(wrong) and own["problem"]


def test_get_downloads_and_says_when_everything_is_here(models: Callable[..., Any], place: Place) -> None:
    code, out, _ = models("get", "base", "net")
    assert code == 0 and "base: complete (3.0 MB downloaded)." in out and "  as published: 3 files" in out
    assert "Downloading, in MB" in out and place.whole("net/net.pth", NETWORK)
    code, out, _ = models("get", "base")
    assert code == 0 and "base: everything is here already (3.0 MB)." in out
    code, out, err = models("get", "net", "--json")
    (entry,) = json.loads(out)["models"]
    assert entry["already"] and entry["id"] == "net"


def test_a_failure_is_one_sentence_and_exit_code_one(models: Callable[..., Any], place: Place) -> None:
    place.world.status["/someone/tool/releases/download/v1/net.pth"] = (404, "")
    code, _, err = models("get", "net")
    assert code == 1 and len(err.splitlines()) == 1 and "any more (404)" in err
    code, _, err = models("get", "nte")
    assert code == 2 and "There is no model “nte” to download; choose from base" in err


def test_a_licence_is_shown_and_accepted_with_the_option(models: Callable[..., Any], place: Place) -> None:
    code, out, err = models("get", "codeformer")
    assert code == 1 and "non-commercial purposes only" in out and "--accept-licence" in err
    assert not place.path("codeformer").exists()
    code, out, _ = models("get", "codeformer", "--accept-licence")
    assert code == 0 and "The licence of codeformer is accepted." in out
    assert "accepted" not in models("get", "codeformer")[1], "once is enough"


def test_verify_names_what_is_damaged_and_how_to_mend_it(models: Callable[..., Any], place: Place) -> None:
    assert models("verify")[:2] == (0, "None of the models that can be downloaded is here: “models list” shows them.\n")
    models("get", "base", "net")
    code, out, _ = models("verify")
    assert code == 0 and "base: good." in out and "net: good." in out and "codeformer" not in out
    place.path("net/net.pth").write_bytes(b"!" + NETWORK[1:])
    code, out, _ = models("verify", "net")
    assert code == 1 and f"  {place.path('net/net.pth')}: damaged: its sha256 is not the published one" in out
    assert "To mend it: python3 app.py models get net" in out
    code, out, _ = models("verify", "--json")
    told = json.loads(out)
    assert code == 1 and not told["ok"] and [each["id"] for each in told["models"]] == ["base", "net"]
    assert models("get", "net")[0] == 0 and models("verify", "net")[0] == 0


def test_remove_asks_and_says_what_it_did(models: Callable[..., Any], place: Place) -> None:
    models("get", "net")
    code, _, err = models("remove", "net")
    assert code == 2 and "add --yes" in err and place.path("net/net.pth").exists()
    code, out, _ = models("remove", "net", "--yes")
    assert code == 0 and out == "net: removed, 2.0 MB are free again.\n" and not place.path("net").exists()
    assert models("remove", "net", "--yes")[1] == "net: nothing of it was downloaded here.\n"


@pytest.mark.parametrize("action", ["list", "get", "verify", "remove"])
def test_every_action_explains_itself(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", action, "--help"]) == 0
    said = capsys.readouterr().out
    assert "--json" in said and "--models" in said and f"python3 app.py models {action}" in said


def test_the_real_variables_name_mirrors_and_caches(place: Place, tmp_path: Path) -> None:
    """In a process of its own, because huggingface_hub reads them once."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom headshot_ui.downloads import catalogue\n"
        f"entries = catalogue.load_catalogue(Path({str(tmp_path / 'catalogue')!r}))\n"
        "catalogue.load_catalogue = lambda folder=None: entries\n"
        "from headshot_ui.cli import main\nsys.exit(main(sys.argv[1:]))"
    )
    home = {key: value for key, value in os.environ.items() if "PROXY" not in key.upper() and not key.startswith("HF_")}

    def run(models_dir: str, *argv: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", code, "models", *argv, "--models", str(tmp_path / models_dir),
                   "--outputs", str(tmp_path / "outputs")]  # fmt: skip
        env = {**home, "HF_HOME": str(tmp_path / "home"), **variables}
        return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)

    online_ = {"HF_ENDPOINT": place.world.address, "HEADSHOT_UI_RELEASE_MIRROR": place.world.address}
    done = run("one", "get", "base", "net", **online_)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one/base/unet/w.safetensors").read_bytes() == WEIGHTS
    refused = run("two", "get", "base", HF_HUB_OFFLINE="1")
    assert refused.returncode == 1 and "HF_HUB_OFFLINE is set" in refused.stderr
    from tests.downloads.test_cache import FILES, fill

    fill(tmp_path / "home" / "hub", FILES)
    cached = run("two", "get", "base", "--json", HF_HUB_OFFLINE="1")
    assert cached.returncode == 0 and json.loads(cached.stdout)["models"][0]["fetched_bytes"] == 0
