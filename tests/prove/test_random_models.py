"""Random models of the published topology: the program finds, checks, loads and runs them like any others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from headshot_ui import families
from headshot_ui.families.protocol import DenoiseRequest
from headshot_ui.families.sdxl_parts.files import published
from headshot_ui.memory import weight_bytes
from headshot_ui.prove.random_models import (
    BASE_ID,
    CODEFORMER,
    OUTLINE,
    RANDOM_IDS,
    REFINER_ID,
    SIZES,
    main,
    make_codeformer,
    make_random_models,
)
from headshot_ui.settings import Settings


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    models = tmp_path_factory.mktemp("random")
    made = make_random_models(models, "tiny", device="cpu")
    assert [folder.name for folder in made] == [BASE_ID, REFINER_ID], "CodeFormer has no small size"
    return Settings.from_environment(root=models, models_dir=models, device="cpu", environment={})


def test_the_program_finds_and_checks_them(settings: Settings) -> None:
    base = families.find_base(BASE_ID, settings)
    refiner = families.find_refiner(None, base, settings)
    assert {base.id, refiner.id} == RANDOM_IDS and not base.demo
    assert "noise" in base.title and "noise" in base.note and "noise" in refiner.title and "noise" in refiner.note
    facts = families.refiner_facts(refiner, base)
    assert facts.same_schedule and not facts.zeros_for_empty_prompt, "as the published refiner says"
    assert not families.vocabulary(base).unknown_words("zqxwvkj"), "the whole vocabulary"


def test_they_draw_something_finite_that_is_not_one_colour(settings: Settings) -> None:
    base = families.load_base(families.find_base(BASE_ID, settings), settings)
    embeds, empty = base.encode_prompts(["portrait of tok person"]), base.encode_prompts([""])
    *_, last = base.denoise(DenoiseRequest(embeds, empty, [1], 4, 5.0, 128, 128))
    assert last.latents.isfinite().all()
    (picture,) = base.decode_latents(last.latents)
    low, high = picture.convert("L").getextrema()
    assert picture.size == (128, 128) and high - low > 64


def test_in_float16_the_denoiser_stays_finite(settings: Settings) -> None:
    base = families.load_base(families.find_base(BASE_ID, settings), settings)
    unet = base.modules.unet.half()  # type: ignore[attr-defined]
    embeds = base.encode_prompts(["portrait"])
    ids = torch.tensor([[128.0, 128, 0, 0, 128, 128]])
    conditions = {"text_embeds": embeds["pooled_prompt_embeds"].half(), "time_ids": ids.half()}
    noisy = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(0)).half()
    with torch.no_grad():
        out = unet(noisy, torch.tensor([500]), encoder_hidden_states=embeds["prompt_embeds"].half(),
                   added_cond_kwargs=conditions).sample  # fmt: skip
    assert out.isfinite().all() and 0.01 < float(out.float().std()) < 10


def test_the_same_seed_gives_the_same_files_and_leaves_torch_as_it_was(tmp_path: Path, settings: Settings) -> None:
    state, dtype = torch.random.get_rng_state(), torch.get_default_dtype()
    make_random_models(tmp_path, "tiny", device="cpu")
    assert torch.equal(torch.random.get_rng_state(), state) and torch.get_default_dtype() == dtype
    for path in sorted(settings.models_dir.rglob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / path.relative_to(settings.models_dir)).read_bytes(), path


def test_an_outline_tells_the_sizes_of_what_would_be_made(settings: Settings, tmp_path: Path) -> None:
    make_random_models(tmp_path, "tiny", device=OUTLINE)
    for made_id in RANDOM_IDS:
        assert weight_bytes(tmp_path / made_id, "float16") == weight_bytes(settings.models_dir / made_id, "float16")
    assert sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")) < 2**20


def test_tiny_differs_from_full_in_widths_only() -> None:
    """Blocks, layers per block and transformers per block are the published ones: so is every module's name."""
    for model, differences in (("base", SIZES["tiny"].base), ("refiner", SIZES["tiny"].refiner)):
        config = json.loads((published(model) / "unet" / "config.json").read_text("utf-8"))
        changed = differences["unet"]
        assert not {"transformer_layers_per_block", "layers_per_block", "down_block_types"} & changed.keys()
        assert len(changed["block_out_channels"]) == len(config["block_out_channels"])
    assert SIZES["full"].base == SIZES["full"].refiner == {}


@pytest.mark.slow
def test_codeformer_lies_where_the_program_looks(tmp_path: Path) -> None:
    from headshot_ui.restoration.codeformer import RESTORER, read_net

    settings = Settings.from_environment(root=tmp_path, device="cpu", environment={})
    path = make_codeformer(settings.models_dir / CODEFORMER, "cpu", 0, lambda _: None)
    assert RESTORER.weights(settings) == path
    assert sum(p.numel() for p in read_net(path).parameters()) > 90e6


@pytest.mark.slow
@pytest.mark.gpu
def test_the_full_set_has_the_published_sizes(tmp_path: Path) -> None:
    assert main(["--models", str(tmp_path)]) == 0
    base = weight_bytes(tmp_path / BASE_ID, "float16")
    assert base["unet"] == pytest.approx(5.135e9, rel=0.001)
    assert base["text_encoder_2"] == pytest.approx(1.39e9, rel=0.01)
    assert weight_bytes(tmp_path / REFINER_ID, "float16")["unet"] == pytest.approx(4.52e9, rel=0.01)
