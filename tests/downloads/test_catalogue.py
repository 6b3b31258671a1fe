"""The catalogue that ships: every entry can be used, lies where the program looks, and says what it is."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from headshot_ui.dataset.detector import find_weights
from headshot_ui.downloads.catalogue import Entry, load_catalogue
from headshot_ui.downloads.states import path_of
from headshot_ui.families.bases import read_base, read_refiner
from headshot_ui.recognisers.arcface import RECOGNISER
from headshot_ui.restoration import all_restorers, licence, parser, upscale
from headshot_ui.settings import Settings

CATALOGUE = load_catalogue()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.from_environment(models_dir=tmp_path / "models", outputs_dir=tmp_path / "outputs", environment={})


def place(entry_id: str, settings: Settings, number: int = 0) -> Path:
    return path_of(CATALOGUE[entry_id].files[number].place, settings)


def test_there_is_an_entry_for_every_model_of_photographs() -> None:
    assert list(CATALOGUE) == ["sdxl", "sdxl-refiner", "sdxl-vae-fp16-fix", "codeformer", "retinaface", "arcface",
                               "parser", "realesrgan-x2", "realesrgan-x4", "flux-schnell", "flux-dev",
                               "flux-encoders", "florence-2"]  # fmt: skip


@pytest.mark.parametrize("entry", CATALOGUE.values(), ids=lambda entry: entry.id)
def test_every_entry_says_all_that_people_are_told(entry: Entry) -> None:
    assert entry.title and entry.note.endswith(".") and entry.licence_page.startswith("https://")
    assert entry.source.page.startswith("https://") and entry.size > 10**6
    assert len({file.place for file in entry.files}) == len(entry.files)
    assert all(file.size_is_exact for file in entry.files if file.sha256)


def test_what_could_not_be_established_is_left_to_the_hub() -> None:
    unknown = {entry.id for entry in CATALOGUE.values() for file in entry.files if file.sha256 is None}
    assert unknown == {"sdxl-refiner", "flux-schnell", "flux-dev", "florence-2", "flux-encoders"}
    assert all(CATALOGUE[name].source.hub for name in unknown), "the hub states a checksum by itself"
    for name in ("flux-schnell", "flux-dev", "florence-2"):
        entry = CATALOGUE[name]
        assert all(file.size_is_exact for file in entry.files if file.size > 10**8), "weights are known to the byte"
        assert re.fullmatch("[0-9a-f]{40}", entry.source.revision), "a commit, so that nothing changes unseen"


def test_the_two_flux_models_share_what_they_have_in_common() -> None:
    of = {name: {file.sha256 for file in CATALOGUE[name].files} - {None} for name in ("flux-schnell", "flux-dev")}
    shared = of["flux-schnell"] & of["flux-dev"]
    assert sum(file.size for file in CATALOGUE["flux-dev"].files if file.sha256 in shared) > 9.5e9  # T5, the VAE
    assert 33e9 < CATALOGUE["flux-dev"].size < 34e9 and 33e9 < CATALOGUE["flux-schnell"].size < 34e9


def test_what_a_single_file_borrows_is_flux_without_its_transformer() -> None:
    whole, lent = (
        {file.remote: (file.size, file.sha256) for file in CATALOGUE[name].files}
        for name in ("flux-schnell", "flux-encoders")
    )
    left_out = {remote for remote in whole if remote.startswith("transformer/diffusion_pytorch_model")}
    assert len(left_out) == 4 and lent == {remote: whole[remote] for remote in whole.keys() - left_out}
    assert CATALOGUE["flux-encoders"].written == {}, "it is no model to choose"


def test_what_is_said_of_flux_names_its_licence() -> None:
    dev, schnell = CATALOGUE["flux-dev"], CATALOGUE["flux-schnell"]
    written = dev.written["flux-dev/base.json"]
    for text in (dev.note, dev.terms, written["note"]):
        assert "non-commercial use only" in text and "inherits" in text and "licence" in text
    assert dev.licence == written["licence"] == "FLUX.1 [dev] Non-Commercial License"
    assert dev.licence_page in dev.terms and "schnell" in dev.terms
    assert schnell.licence == schnell.written["flux-schnell/base.json"]["licence"] == "Apache-2.0"
    assert not schnell.non_commercial


def test_networks_go_where_the_program_looks(settings: Settings) -> None:
    assert place("codeformer", settings) == all_restorers()["codeformer"].weights(settings)
    assert place("arcface", settings).name in {"recognition_arcface_ir_se50.pth"}
    assert place("arcface", settings).parent == RECOGNISER.weights(settings).parent
    assert place("parser", settings) == parser.weights(settings)
    for entry_id, factor in (("realesrgan-x4", 4), ("realesrgan-x2", 2)):
        path = place(entry_id, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        assert upscale.weights(factor, settings) == path
    for entry_id, found in (
        ("retinaface", lambda: find_weights(settings)[0]),
        ("arcface", lambda: RECOGNISER.weights(settings)),
    ):
        path = place(entry_id, settings)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        assert found() == path


def test_the_base_and_its_refiner_are_offered_as_they_should_be(tmp_path: Path) -> None:
    written = {name: data for entry in CATALOGUE.values() for name, data in entry.written.items()}
    assert sorted(written) == ["flux-dev/base.json", "flux-schnell/base.json", "sdxl-refiner/refiner.json",
                               "sdxl/base.json"]  # fmt: skip
    for name, data in written.items():
        (tmp_path / Path(name).name if name.startswith("sdxl") else tmp_path / name.replace("/", "-")).write_text(
            json.dumps(data)
        )
    dev, schnell = (read_base(tmp_path / f"{name}-base.json") for name in ("flux-dev", "flux-schnell"))
    assert (dev.family, dev.size_px) == ("flux", 1024)
    assert (dev.defaults.sampling_steps, dev.defaults.guidance_scale) == (28, 3.5)
    assert (dev.defaults.rank, dev.defaults.learning_rate, schnell.defaults.sampling_steps) == (16, 1e-4, 4)
    base, refiner = read_base(tmp_path / "base.json"), read_refiner(tmp_path / "refiner.json")
    defaults = base.defaults
    assert (base.id, base.family, base.size_px, base.demo) == ("sdxl", "sdxl", 1024, False)
    assert (defaults.sampling_steps, defaults.guidance_scale, defaults.train_steps, defaults.batch_size) == (
        30,
        5.0,
        1000,
        1,
    )
    assert (defaults.rank, defaults.learning_rate, defaults.refine) == (32, 1e-4, "off")
    assert refiner.id == "sdxl-refiner" and refiner.bases == () and "RAIL++-M" in base.licence


def test_the_folder_of_the_base_has_every_file_that_loading_asks_for(tmp_path: Path) -> None:
    from headshot_ui.families.sdxl_parts.files import check_files
    from headshot_ui.families.shared_parts.files import variant_of

    folder = tmp_path / "sdxl"
    for file in CATALOGUE["sdxl"].files:
        path = tmp_path / file.place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"{}" if path.suffix != ".safetensors" else b"\2\0\0\0\0\0\0\0{}")
    check_files(folder)
    assert variant_of(folder, "unet") == "fp16"
    places = [file.place for file in CATALOGUE["sdxl"].files]
    assert places[-1] == "sdxl/model_index.json", "without it the folder is no model to anybody"


def test_only_what_has_a_licence_to_accept_asks_for_it() -> None:
    assert {entry.id for entry in CATALOGUE.values() if entry.non_commercial} == {"codeformer", "flux-dev"}
    assert "non-commercial" in licence.terms("codeformer")
    assert CATALOGUE["codeformer"].licence == all_restorers()["codeformer"].info.licence


@pytest.mark.parametrize(
    "change",
    [{"id": "Not An Id"}, {"kind": "toaster"}, {"files": []}, {"title": ""}, {"source": {"hub": "a/b"}},
     {"source": {}}, {"extra": 1}, {"written": {"../evil.json": {}}}, {"written": {"demo/sdxl/base.json": {}}},
     {"files": [{"remote": "a", "place": "/etc/x", "size": 1, "sha256": None}]},
     {"files": [{"remote": "a", "place": "x/../../y", "size": 1, "sha256": None}]},
     {"non_commercial": True}, {"files": [{"remote": "a", "place": "x/y", "size": 0, "sha256": None}]},
     {"files": [{"remote": "a", "place": "x/y", "size": 1, "sha256": "abc"}]}],
    ids=str,
)  # fmt: skip
def test_a_bad_entry_names_its_file(change: dict, tmp_path: Path) -> None:
    good = json.loads(
        (Path(load_catalogue.__wrapped__.__code__.co_filename).parent / "catalogue" / "07-parser.json").read_text()
    )
    (tmp_path / "bad.json").write_text(json.dumps({**good, **change}))
    with pytest.raises(ValueError, match="bad.json"):
        load_catalogue(tmp_path)
