"""The same proof with FLUX.1: what holds for the one family holds for the other, or is said not to be possible."""

from __future__ import annotations

import inspect
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from headshot_ui import families, memory
from headshot_ui.families import flux
from headshot_ui.families.flux_parts import lora_write
from headshot_ui.families.flux_parts.choosing import Chosen
from headshot_ui.families.flux_parts.fitting import Fit
from headshot_ui.families.flux_parts.loaded import LoadedFlux
from headshot_ui.prove.checks import reading_back
from headshot_ui.prove.findings import Result
from headshot_ui.settings import Settings
from tests.prove.conftest import DEMO
from tests.tiny_flux import make_tiny_flux

Prove = Callable[..., dict[str, Result]]
WIDTH = 32
READ = ("photos", "repeats", "training", "other-programs", "read-back")


@pytest.fixture(scope="module")
def flux_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("flux")
    make_tiny_flux(folder / "tiny", shards=True)
    facts = folder / "tiny" / "base.json"
    data = json.loads(facts.read_text("utf-8"))
    data["defaults"]["learning_rate"] = 0.02  # so that a dozen steps can be seen
    facts.write_text(json.dumps(data), "utf-8")
    for name in ("detector", "recogniser", "restorer", "people/robin", "held_out/kim"):
        shutil.copytree(DEMO / name, folder / "demo" / name)
    return folder


@pytest.fixture
def flux_settings(settings: Settings, flux_models: Path) -> Settings:
    return replace(settings, models_dir=flux_models)


@pytest.fixture
def diffusers_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the tiny width were the published one: for diffusers' converter, and for what we know of it."""
    from diffusers.loaders import lora_conversion_utils as converters

    source = inspect.getsource(converters._convert_kohya_flux_lora_to_diffusers)
    ours = source.replace("[3072, 3072, 3072, 12288]", f"[{WIDTH}, {WIDTH}, {WIDTH}, {4 * WIDTH}]")
    assert ours != source
    made: dict[str, object] = {}
    exec(ours, converters.__dict__, made)
    name = "_convert_kohya_flux_lora_to_diffusers"
    monkeypatch.setattr(f"diffusers.loaders.lora_pipeline.{name}", made[name])
    monkeypatch.setattr(flux, "_WIDTH", WIDTH)


def test_all_that_can_hold_holds(prove: Prove, flux_settings: Settings, diffusers_reads_it: None) -> None:
    ids = ("files", "device", "photos", "repeats", "pictures", "training", "loss", "lora", "lora-off", "strength-0",
           "refiner-ensemble", "refiner-img2img", "restoration", "other-programs", "read-back", "memory")  # fmt: skip
    results = prove(*ids, settings=flux_settings, base="tiny-flux")
    others = {name: result.verdict for name, result in results.items() if result.verdict != "holds"}
    assert others == dict.fromkeys(("photos", "refiner-ensemble", "refiner-img2img"), "not possible")
    assert "no refiner" in results["refiner-ensemble"].figure
    measured = {name: value for result in results.values() for name, value in result.measured.items()}
    assert measured["loss after training"] < measured["loss before training"]
    assert measured["seconds per training step"] > 0 and measured["seconds per picture"] > 0
    assert measured["largest difference of latents"] < 1e-3
    assert "bit for bit" in results["other-programs"].figure
    counted = re.findall(r"(as trained|in kohya's layout): (\d+) of (\d+) layers", results["read-back"].figure)
    assert {layout for layout, *_ in counted} == {"as trained", "in kohya's layout"}
    assert {count for _, *counts in counted for count in counts} == {"22"}


def test_a_wrong_file_for_other_programs_is_found(
    prove: Prove, flux_settings: Settings, diffusers_reads_it: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half the alpha in the exported file alone."""
    right = lora_write.lora_bytes

    def wrong(*args: object, **named: object) -> bytes:
        from safetensors.torch import load, save

        state = load(right(*args, **named))  # type: ignore[arg-type]
        return save({name: tensor / 2 if name.endswith("alpha") else tensor for name, tensor in state.items()})

    monkeypatch.setattr("headshot_ui.families.flux_parts.lora_facts.lora_bytes", wrong)
    results = prove(*READ, settings=flux_settings, base="tiny-flux", steps=2)
    assert results["other-programs"].verdict == results["read-back"].verdict == "fails"
    assert "off by 5.0e-01" in results["read-back"].figure


def test_what_diffusers_cannot_do_here_is_said_and_no_failure(
    prove: Prove, flux_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It knows a layout at the published width only, and the pipeline may be too large for the card."""
    room = reading_back._Room("cpu", True, "the layers alone")
    monkeypatch.setattr(reading_back, "_room", lambda _: room)
    found = prove(*READ, settings=flux_settings, base="tiny-flux", steps=2)["read-back"]
    assert found.verdict == "holds" and "22 of 22 layers" in found.figure
    assert "latents" not in found.figure and found.figure.endswith("the layers alone")
    assert "kohya's layout: not read by diffusers" in found.figure and "width of 3072 only, not 32" in found.figure


@pytest.mark.parametrize(
    ("ram", "card", "device", "layers_only"),
    [(10**12, 10**12, "cuda", False), (10**12, 2 * 2**30, "cpu", True), (1000, 10**12, "", False)],
)
def test_where_the_pipeline_goes(
    ram: int, card: int, device: str, layers_only: bool, flux_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "free_ram_bytes", lambda: ram)
    monkeypatch.setattr(memory, "vram_budget_bytes", lambda _: card)
    settings = replace(flux_settings, wanted_dtype="bfloat16")
    settings.__dict__["device"] = "cuda"  # without asking whether there is one
    bench = SimpleNamespace(
        shop=SimpleNamespace(settings=settings), info=families.find_base("tiny-flux", flux_settings)
    )
    room = reading_back._room(cast(Any, bench))
    assert (room.device, room.layers_only) == (device, layers_only) and bool(room.told) == (device != "cuda")


def test_a_base_that_is_made_to_fit_a_card(
    prove: Prove, flux_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In 8 bit and without its modulation layers: prepared for every timestep that is asked for, in one precision."""
    asked: list[str | None] = []

    def fitted(_info: Any, _work: Any, _settings: Any, precision: str | None, _loras: Any, _under: Any) -> Chosen:
        asked.append(precision)
        return Chosen(Fit(True, True, 0, 3, 0, 0, False))

    monkeypatch.setattr(flux.FluxFamily, "load", lambda _, info, settings: LoadedFlux.read(info, settings, fitted))
    ids = ("photos", "repeats", "pictures", "training", "loss", "lora", "lora-off", "other-programs", "read-back")
    results = prove(*ids, settings=flux_settings, base="tiny-flux")
    assert {name for name, result in results.items() if result.verdict != "holds"} == {"photos"}
    assert asked[0] is None and asked.count("8 bit") >= 5
