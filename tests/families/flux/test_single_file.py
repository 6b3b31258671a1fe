"""A FLUX.1 in a single file is the folder with the same numbers: found, drawn and trained to the last bit."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGMLQuantizationType as Format
from safetensors.torch import save_file

from headshot_ui import doctor, families
from headshot_ui.base_bytes import lora_bytes
from headshot_ui.families.flux_parts import single_reading
from headshot_ui.families.flux_parts.fitting import Fit
from headshot_ui.families.flux_parts.loaded import LoadedFlux
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.memory import files_bytes
from headshot_ui.settings import Settings
from tests.families.flux.single_files import (
    PREFIX,
    Writer,
    Written,
    in_dtype,
    in_gguf,
    scaled,
    transformer_state,
    with_everything,
    write_both,
)
from tests.families.flux.test_flux_ways import draw, equal, learn
from tests.tiny_flux import make_tiny_flux

WAYS: dict[str, tuple[str, Writer]] = {
    "bfloat16": ("flux1.safetensors", in_dtype(torch.bfloat16)),
    "float16": ("flux1.safetensors", in_dtype(torch.float16, PREFIX)),
    "float32": ("flux1.safetensors", in_dtype(torch.float32)),
    "float8_e4m3fn": ("flux1.safetensors", in_dtype(torch.float8_e4m3fn)),
    "float8_e5m2": ("flux1.safetensors", in_dtype(torch.float8_e5m2, PREFIX)),
    "all in one": ("flux1.safetensors", with_everything),
    "scaled": ("flux1.safetensors", scaled("scale_weight", per_row=False)),
    "scaled per row": ("flux1.safetensors", scaled("weight_scale", per_row=True)),
    "F16": ("flux1.gguf", in_gguf(Format.F16)),
    "BF16": ("flux1.gguf", in_gguf(Format.BF16, PREFIX)),
    "Q8_0": ("flux1.gguf", in_gguf(Format.Q8_0)),
    "Q5_1": ("flux1.gguf", in_gguf(Format.Q5_1)),
    "Q4_0": ("flux1.gguf", in_gguf(Format.Q4_0)),
}
#: Their rows are multiples of 256 numbers.
WIDE = {name: ("flux1.gguf", in_gguf(Format[name])) for name in ("Q3_K", "Q4_K", "Q5_K", "Q6_K")}


def settings_of(models_dir: Path, **changes: Any) -> Settings:
    return Settings.from_environment(
        root=models_dir, models_dir=models_dir, device="cpu", environment={}, **{"dtype": "float32"} | changes
    )


def both(made: Written, **changes: Any) -> tuple[LoadedFlux, LoadedFlux]:
    """The folder and the file, loaded."""
    loaded = []
    for place in (made.folder.parent, made.file.parent):
        settings = settings_of(place, **changes)
        (info,) = [info for info in families.all_bases(settings) if info.id in ("tiny-flux", "flux1")]
        loaded.append(LoadedFlux.read(info, settings))
    return loaded[0], loaded[1]


def state_of(base: LoadedFlux) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = base._shelf.present("denoiser")[0].state_dict()
    return state


def make(source: Path, lender: Path, place: Path, way: tuple[str, Writer]) -> Written:
    """The file lies in a models folder with one that lends, whose own transformer has other numbers."""
    made = write_both(source, place / "models", *way)
    shutil.copytree(lender, place / "models" / "FLUX.1-lender")
    (place / "models" / "FLUX.1-lender" / "base.json").unlink()
    # What is borrowed must be the same on both sides.
    for part in ("vae", "text_encoder", "text_encoder_2"):
        shutil.rmtree(place / "models" / "FLUX.1-lender" / part)
        shutil.copytree(made.folder / part, place / "models" / "FLUX.1-lender" / part)
    return made


@pytest.fixture(scope="session")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like FLUX.1-dev with other numbers."""
    return make_tiny_flux(tmp_path_factory.mktemp("other") / "other", seed=7)


@pytest.fixture
def q8(models_dir: Path, other: Path, tmp_path: Path) -> Written:
    return make(models_dir / "dev", other, tmp_path, WAYS["Q8_0"])


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_a_file_draws_what_the_folder_with_its_numbers_draws(
    way: tuple[str, Writer], models_dir: Path, other: Path, tmp_path: Path
) -> None:
    made = make(models_dir / "dev", other, tmp_path, way)
    folder, file = both(made)
    one, two = state_of(folder), state_of(file)
    assert one.keys() == two.keys()
    assert not [name for name in one if not torch.equal(one[name], two[name])]
    wanted = draw(folder)
    assert wanted.std() > 0.1 and torch.equal(draw(file), wanted)
    assert folder.decode_latents(wanted)[0].tobytes() == file.decode_latents(wanted)[0].tobytes()


@pytest.fixture(scope="session")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_flux(tmp_path_factory.mktemp("wide") / "wide", heads=16)


@pytest.mark.parametrize("way", WIDE.values(), ids=WIDE)
def test_so_does_one_in_blocks_of_256(way: tuple[str, Writer], wide: Path, other: Path, tmp_path: Path) -> None:
    folder, file = both(make(wide, other, tmp_path, way))
    one, two = state_of(folder), state_of(file)
    assert one.keys() == two.keys() and not [name for name in one if not torch.equal(one[name], two[name])]
    assert torch.equal(draw(file), draw(folder))


@pytest.mark.parametrize("name", ["bfloat16", "scaled per row", "Q4_0"])
def test_in_bfloat16_numbers_are_rounded_once(
    name: str, models_dir: Path, other: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(single_reading, "AT_A_TIME", 100)  # a few rows at a time
    folder, file = both(make(models_dir / "dev", other, tmp_path, WAYS[name]), dtype="bfloat16")
    one, two = state_of(folder), state_of(file)
    assert {tensor.dtype for tensor in two.values()} == {torch.bfloat16}
    assert not [name for name in one if not torch.equal(one[name], two[name])]


def test_one_under_diffusers_names_is_read_as_it_is(models_dir: Path, tmp_path: Path) -> None:
    """As programs write it that merge or train with diffusers, in one file without its config."""
    shutil.copytree(models_dir / "dev", tmp_path / "models" / "dev")
    save_file(transformer_state(models_dir / "dev"), tmp_path / "models" / "flux1.safetensors")
    settings = settings_of(tmp_path / "models")
    file, folder = (LoadedFlux.read(only(settings, name), settings) for name in ("flux1", "tiny-flux"))
    assert file.info.checkpoint is not None and torch.equal(draw(file), draw(folder))


FITS = {
    "dropped": Fit(False, True, 0, 3, 0, 0, False),
    "8 bit": Fit(True, True, 0, 3, 0, 0, False),
    "streamed": Fit(True, True, 3, 3, 0, 0, False),
    "ordinary streamed": Fit(False, False, 2, 3, 0, 0, False),
}


@pytest.mark.parametrize("name", ["bfloat16", "scaled per row", "Q8_0"])
def test_every_way_of_fitting_draws_and_learns_the_same(
    name: str, models_dir: Path, other: Path, tmp_path: Path
) -> None:
    folder, file = both(make(models_dir / "dev", other, tmp_path, WAYS[name]))
    for fit in FITS.values():
        for base in (folder, file):
            base.use_loras(())
            base.make_fit(fit)
        assert torch.equal(draw(file), draw(folder)), fit.title
        (losses, grads), (wanted, wanted_grads) = learn(file), learn(folder)
        assert equal(losses, wanted) and equal(grads, wanted_grads), fit.title


def test_what_was_dropped_from_memory_is_read_from_the_file_again(q8: Written) -> None:
    _, file = both(q8)
    wanted = draw(file)
    file.shed()
    assert not file._shelf.modules("denoiser")
    assert torch.equal(draw(file), wanted)


# --- found ------------------------------------------------------------------------------------------
def only(settings: Settings, base_id: str = "flux1") -> BaseInfo:
    return families.find_base(base_id, settings)


def test_it_is_listed_with_its_licence_and_what_lends(q8: Written) -> None:
    settings = settings_of(q8.file.parent)
    assert [info.id for info in families.all_bases(settings)] == ["flux.1-lender", "flux1"]
    info = only(settings)
    assert (info.checkpoint, info.folder, info.family) == (q8.file, q8.file.parent / "FLUX.1-lender", "flux")
    assert "Non-Commercial" in info.licence and "not for commercial use" in info.note and "FLUX.1-lender" in info.note
    assert (info.defaults.sampling_steps, info.defaults.guidance_scale) == (28, 3.5)
    assert not families.all_misfits(settings) and not families.abilities(info).untrainable
    families.check_base(info)
    checks = {check.name: check for check in doctor.check_bases(settings)}
    assert checks["base flux1"].ok is True, checks["base flux1"].advice
    assert families.find_base("flux1.gguf", settings) == info


def test_schnell_is_told_by_what_it_lacks_and_draws_by_its_own_schedule(
    models_dir: Path, other: Path, tmp_path: Path
) -> None:
    """Lent by a dev, as by another schnell."""
    made = make(models_dir / "schnell", other, tmp_path, WAYS["bfloat16"])
    settings = settings_of(made.file.parent)
    info = only(settings)
    assert info.defaults.sampling_steps == 4 and "Apache-2.0" in info.licence
    assert "train on FLUX.1-dev" in families.abilities(info).untrainable
    file = LoadedFlux.read(info, settings)
    whole = settings_of(made.folder.parent)
    folder = LoadedFlux.read(only(whole, "tiny-schnell"), whole)
    assert torch.equal(draw(file, guidance_scale=1.0), draw(folder, guidance_scale=1.0))


def test_dev_draws_by_its_own_schedule_where_a_schnell_lends(models_dir: Path, tmp_path: Path) -> None:
    folder, file = both(make(models_dir / "dev", models_dir / "schnell", tmp_path, WAYS["bfloat16"]))
    assert file.info.defaults.sampling_steps == 28
    assert torch.equal(draw(file), draw(folder))


def test_one_of_its_own_kind_lends_first(q8: Written, models_dir: Path) -> None:
    shutil.copytree(models_dir / "schnell", q8.file.parent / "A-schnell")
    assert only(settings_of(q8.file.parent)).folder.name == "FLUX.1-lender"
    shutil.rmtree(q8.file.parent / "FLUX.1-lender")
    assert only(settings_of(q8.file.parent)).folder.name == "A-schnell", "one that is described lends too"


def test_what_lends_needs_no_transformer_of_its_own(q8: Written) -> None:
    lender = q8.file.parent / "FLUX.1-lender"
    for path in (lender / "transformer").glob("*.safetensors"):
        path.unlink()
    settings = settings_of(q8.file.parent)
    assert [info.id for info in families.all_bases(settings)] == ["flux1"]
    (misfit,) = families.all_misfits(settings)
    assert misfit.path == lender and misfit.quiet and "is missing" in misfit.reason


# --- memory and plan --------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["float8_e4m3fn", "Q8_0"])
def test_the_plan_counts_it_like_the_folder(name: str, models_dir: Path, other: Path, tmp_path: Path) -> None:
    made = make(models_dir / "dev", other, tmp_path, WAYS[name])
    folder, file = only(settings_of(made.folder.parent), "tiny-flux"), only(settings_of(made.file.parent))
    for dtype in ("bfloat16", "float32"):
        counted = files_bytes(families.weight_places(file), dtype)
        assert counted == files_bytes(families.weight_places(folder), dtype), dtype
    assert lora_bytes(file, 8) == lora_bytes(folder, 8) > 0
    assert families.least_bytes(file) == families.least_bytes(folder)
    assert families.working_bytes(file, 64 * 64, 1, None, 2) == families.working_bytes(folder, 64 * 64, 1, None, 2)


def test_main_memory_that_is_short_has_the_parts_take_turns(q8: Written) -> None:
    settings = replace(settings_of(q8.file.parent), ram_limit_bytes=1000)
    tight = LoadedFlux.read(only(settings), settings)
    _, file = both(q8)
    assert torch.equal(draw(tight), draw(file))
