"""Random FLUX.1: the published shape, written shard by shard, found and run like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from headshot_ui import families
from headshot_ui.errors import ModelError, StoreError
from headshot_ui.families.protocol import DenoiseRequest
from headshot_ui.memory import weight_bytes
from headshot_ui.prove import random_parts, random_sets
from headshot_ui.prove.random_flux import BASE_ID, SET, build_part, make_flux
from headshot_ui.prove.random_parts import OUTLINE, write_shards
from headshot_ui.prove.random_sets import all_sets, random_ids
from headshot_ui.settings import Settings


def quietly(_: str) -> None:
    pass


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    models = tmp_path_factory.mktemp("random")
    make_flux(models, "tiny", "cpu", quietly)
    return Settings.from_environment(root=models, models_dir=models, device="cpu", environment={})


def test_sets_are_found_by_looking() -> None:
    assert set(all_sets()) == {"random-sdxl", BASE_ID} and all_sets()[BASE_ID] is SET
    assert {BASE_ID, "random-sdxl-refiner"} <= random_ids()


def test_the_program_finds_checks_and_draws_with_it(settings: Settings) -> None:
    info = families.find_base(BASE_ID, settings)
    families.check_base(info)
    assert "noise" in info.title and "noise" in info.note and not info.demo
    base = families.load_base(info, settings)
    words = base.encode_prompts(["portrait of tok person", "photo"])
    assert words["prompt_embeds"].shape == (2, 512, 32) and words["prompt_embeds"].isfinite().all()
    assert not torch.equal(*words["prompt_embeds"])
    one = {name: tensor[:1] for name, tensor in words.items()}
    *_, last = base.denoise(DenoiseRequest(one, one, [1], 2, 3.5, 128, 128))
    (picture,) = base.decode_latents(last.latents)
    low, high = picture.convert("L").getextrema()
    assert picture.size == (128, 128) and high - low > 64


@pytest.mark.parametrize("part", ["transformer", "text_encoder_2"])
def test_shards_hold_what_a_whole_model_would(settings: Settings, part: str) -> None:
    """Every tensor once, none constant but norms, numbers as large as those the class itself begins with."""
    folder = settings.models_dir / BASE_ID / part
    files = sorted(folder.glob("*.safetensors"))
    held: dict[str, torch.Tensor] = {}
    for file in files:
        state = load_file(file)
        assert not held.keys() & state.keys()
        held |= state
    assert len(files) > 1
    whole = build_part(part, "tiny")
    wanted = random_parts.stored(whole)
    assert held.keys() == wanted.keys()
    for name, tensor in held.items():
        assert tensor.dtype == torch.bfloat16 and tensor.shape == wanted[name].shape
        norm = ("norm_" in name or "layer_norm" in name) and not name.startswith("norm_out.")
        assert bool((tensor == 1).all()) is norm, name
        if tensor.ndim == 2 and part == "transformer":
            assert float(tensor.float().std()) == pytest.approx(float(wanted[name].float().std()), rel=0.2), name


def test_the_same_seed_gives_the_same_files_and_leaves_torch_as_it_was(tmp_path: Path, settings: Settings) -> None:
    state, dtype = torch.random.get_rng_state(), torch.get_default_dtype()
    make_flux(tmp_path, "tiny", "cpu", quietly)
    assert torch.equal(torch.random.get_rng_state(), state) and torch.get_default_dtype() == dtype
    for path in sorted(settings.models_dir.rglob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / path.relative_to(settings.models_dir)).read_bytes(), path


def test_main_memory_never_holds_more_than_a_few_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted by what the writer is given: no file is larger than it may be, and no layer has numbers afterwards."""
    with torch.device("meta"):
        module = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(20)))
    alive: list[int] = []
    save: Any = random_parts.give_back

    def counted() -> None:
        alive.append(sum(not tensor.is_meta for tensor in module.parameters()))
        save()

    monkeypatch.setattr(random_parts, "give_back", counted)
    one = 64 * 65 * 4
    write_shards(tmp_path, "model", module, "cpu", 0, shard_bytes=3 * one)
    sizes = [path.stat().st_size for path in tmp_path.glob("model-*-of-00007.safetensors")]
    assert len(sizes) == 7 and max(sizes) < 3 * one + 2000 and alive == [0] * 7


def test_tensors_that_no_layer_makes_are_not_left_out_silently(tmp_path: Path) -> None:
    with torch.device("meta"):
        module = torch.nn.BatchNorm1d(4)  # its running mean is no parameter
    with pytest.raises(RuntimeError, match="running_mean"):
        write_shards(tmp_path / "new", "model", module, "cpu", 0)
    assert not (tmp_path / "new").exists()


def test_the_full_size_is_the_published_one_by_its_outline(tmp_path: Path) -> None:
    """11.90, 0.123, 4.76 and 0.084 billion parameters of two bytes, and what is said of disk covers them."""
    make_flux(tmp_path, "full", OUTLINE, quietly)
    sizes = weight_bytes(tmp_path / BASE_ID, "bfloat16")
    assert sizes["transformer"] == 2 * 11_901_408_320
    assert sizes["text_encoder"] == 2 * 123_060_480 and sizes["text_encoder_2"] == 2 * 4_762_310_656
    assert sizes["vae"] == 2 * 83_819_683
    assert sum(sizes.values()) < SET.full_bytes < 1.05 * sum(sizes.values())
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) < 2**20


def test_disk_and_memory_are_asked_before_anything_is_made(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headshot_ui.store.free_bytes", lambda _: 10 * 10**9)
    with pytest.raises(StoreError, match="31.7 GB"):
        SET.check_room(tmp_path, settings)
    monkeypatch.setattr("headshot_ui.store.free_bytes", lambda _: 10**12)
    monkeypatch.setattr(random_sets, "free_ram_bytes", lambda: 10**9)
    with pytest.raises(ModelError, match="main memory"):
        SET.check_room(tmp_path, settings)
    monkeypatch.setattr(random_sets, "free_ram_bytes", lambda: 10**11)
    SET.check_room(tmp_path, settings)
