"""A broken or strange FLUX folder is refused with a sentence that names the file, before it can draw nonsense."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from headshot_ui import families
from headshot_ui.errors import ModelError
from headshot_ui.families.bases import read_base
from headshot_ui.families.flux_parts.files import check_t5_words
from headshot_ui.families.protocol import DenoiseRequest, LoadedBase
from headshot_ui.memory import files_bytes
from headshot_ui.settings import Settings
from tests.tiny_flux import write_json


@pytest.fixture
def copy(models_dir: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(models_dir / "dev", tmp_path / "copy"))


def refused(folder: Path, settings: Settings) -> str:
    """What is said, the same by looking and by loading."""
    info = read_base(folder / "base.json")
    with pytest.raises(ModelError) as looking:
        families.check_base(info)
    with pytest.raises(ModelError) as loading:
        families.load_base(info, settings)
    assert str(looking.value) == str(loading.value)
    return str(looking.value)


def change(path: Path, **entries: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | entries), "utf-8")


@pytest.mark.parametrize(
    "name",
    [
        "scheduler/scheduler_config.json",
        "transformer/diffusion_pytorch_model-00002-of-00002.safetensors",
        "text_encoder_2/model-00003-of-00003.safetensors",
        "text_encoder/model.safetensors",
        "vae/config.json",
        "tokenizer/tokenizer.json",
        "tokenizer_2/tokenizer.json",
        "tokenizer_2/tokenizer_config.json",
    ],
)
def test_a_missing_file_is_named(name: str, copy: Path, settings: Settings) -> None:
    (copy / name).unlink()
    said = refused(copy, settings)
    assert str(copy / name) in said and "missing" in said


def test_shards_hold_what_their_index_says(copy: Path, settings: Settings) -> None:
    shard = copy / "transformer/diffusion_pytorch_model-00001-of-00002.safetensors"
    index = shard.with_name("diffusion_pytorch_model.safetensors.index.json")
    tensors = load_file(shard)
    name = sorted(tensors)[0]
    save_file({other: tensor for other, tensor in tensors.items() if other != name}, shard)
    assert f"“{name}” is not in {shard.name}, where {index}" in refused(copy, settings)
    save_file(tensors | {"one.more": torch.zeros(1)}, shard)
    assert f"“one.more” is in {shard.name}, but not where {index}" in refused(copy, settings)


def fewer_words(copy: Path) -> None:
    """What transformers makes where there is no ``tokenizer.json``."""
    from transformers import T5Tokenizer

    T5Tokenizer(extra_ids=0, model_max_length=48).save_pretrained(copy / "tokenizer_2")


def no_length(copy: Path) -> None:
    change(copy / "tokenizer_2/tokenizer_config.json", model_max_length=int(1e30))


WRONG: list[tuple[Callable[[Path], None], str]] = [
    (fewer_words, "has 4 words, but its text encoder knows"),
    (no_length, "instead of 512 at most"),
    (lambda copy: change(copy / "text_encoder_2/config.json", eos_token_id=2), "marks the end of a text otherwise"),
    (lambda copy: change(copy / "text_encoder_2/config.json", d_model=32), "belong to different models"),
    (lambda copy: change(copy / "text_encoder/config.json", vocab_size=49408), "but its text encoder knows 49408"),
    (lambda copy: change(copy / "transformer/config.json", in_channels=384), "takes a picture or mask"),
    (lambda copy: change(copy / "transformer/config.json", in_channels=16), "but the VAE beside it gives 64"),
    (lambda copy: change(copy / "transformer/config.json", quantization_config={"a": 1}), "fewer than 16 bits"),
    (lambda copy: change(copy / "transformer/config.json", _class_name="SD3Transformer2DModel"), "another kind of"),
    (lambda copy: change(copy / "scheduler/scheduler_config.json", _class_name="DDIMScheduler"), "another kind of"),
    (lambda copy: change(copy / "model_index.json", _class_name="FluxFillPipeline"), "FLUX.1 Fill, which draws only"),
    (lambda copy: change(copy / "model_index.json", _class_name="Flux2Pipeline"), "FLUX.2, another family"),
]


@pytest.mark.parametrize(("spoil", "sentence"), WRONG, ids=[sentence for _, sentence in WRONG])
def test_what_does_not_belong_together_is_told(
    spoil: Callable[[Path], None], sentence: str, copy: Path, settings: Settings
) -> None:
    spoil(copy)
    said = refused(copy, settings)
    assert sentence in said and str(copy) in said and said.endswith(".")


@pytest.mark.parametrize(("words", "fits"), [(32128, True), (32100, True), (32000, True), (31000, False), (4, False)])
def test_a_t5_of_full_size_has_a_tokenizer_of_full_size(words: int, fits: bool, tmp_path: Path) -> None:
    for folder in ("tokenizer_2", "text_encoder_2"):
        (tmp_path / folder).mkdir()
    pieces = [["<pad>", 0.0], ["</s>", 0.0], *([str(number), -1.0] for number in range(2, words))]
    (tmp_path / "tokenizer_2/tokenizer.json").write_text(json.dumps({"model": {"vocab": pieces}}), "utf-8")
    write_json(tmp_path / "tokenizer_2/tokenizer_config.json", {"model_max_length": 512})
    write_json(tmp_path / "text_encoder_2/config.json", {"vocab_size": 32128, "eos_token_id": 1, "pad_token_id": 0})
    if fits:
        check_t5_words(tmp_path)
        return
    with pytest.raises(ModelError, match=f"has {words} words, but its text encoder knows 32128"):
        check_t5_words(tmp_path)


def test_weights_in_eight_bits_are_told(copy: Path, settings: Settings) -> None:
    path = copy / "text_encoder/model.safetensors"
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(path).items()}, path)
    assert f"{path} is stored in fewer than 16 bits" in refused(copy, settings)


def test_float16_is_refused_in_a_sentence(models_dir: Path, settings: Settings) -> None:
    with pytest.raises(ModelError, match="computes in bfloat16"):
        families.load_base(read_base(models_dir / "dev" / "base.json"), replace(settings, wanted_dtype="float16"))


# --- found ------------------------------------------------------------------------------------------
@pytest.fixture
def dropped(models_dir: Path, tmp_path: Path) -> Settings:
    """Three folders without ``base.json``: dev, schnell and Kontext."""
    for name, source in (("FLUX.1-dev", "dev"), ("FLUX.1-schnell", "schnell"), ("Kontext", "dev")):
        shutil.copytree(models_dir / source, tmp_path / "models" / name)
        (tmp_path / "models" / name / "base.json").unlink()
    change(tmp_path / "models/Kontext/model_index.json", _class_name="FluxKontextPipeline")
    return Settings.from_environment(models_dir=tmp_path / "models", device="cpu", dtype="float32")


def test_undescribed_folders_are_bases_or_told(dropped: Settings) -> None:
    dev, schnell = families.all_bases(dropped)
    assert (dev.id, dev.family, dev.size_px, dev.defaults.sampling_steps) == ("flux.1-dev", "flux", 1024, 28)
    assert (dev.defaults.guidance_scale, dev.defaults.rank, dev.defaults.learning_rate) == (3.5, 16, 1e-4)
    assert (schnell.id, schnell.defaults.sampling_steps) == ("flux.1-schnell", 4)
    assert "not for commercial use" in dev.note and "cannot be trained on" in schnell.note
    (misfit,) = families.all_misfits(dropped)
    assert "FLUX.1 Kontext" in misfit.reason and not misfit.damaged
    with pytest.raises(ModelError, match="FLUX.1 Kontext"):
        families.find_base("Kontext", dropped)


def test_a_lora_is_no_flux_in_a_single_file(dropped: Settings) -> None:
    path = dropped.models_dir / "l.safetensors"
    save_file({"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight": torch.zeros(1)}, path)
    told = {misfit.path.name: misfit.reason for misfit in families.all_misfits(dropped)}
    assert "is a LoRA" in told["l.safetensors"]


def test_a_damaged_folder_is_told_by_the_family_that_knows_it(dropped: Settings) -> None:
    (dropped.models_dir / "FLUX.1-dev/vae/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match="vae.*is missing"):
        families.find_base("FLUX.1-dev", dropped)


# --- memory -------------------------------------------------------------------------------------------
def test_all_shards_count_and_tied_words_once(models_dir: Path, tiny: LoadedBase) -> None:
    shelf = tiny._shelf  # type: ignore[attr-defined]
    assert tiny.encode_prompts([""])
    parts = files_bytes(families.weight_places(tiny.info), "float32")
    held = {
        "transformer": shelf.modules("denoiser"), "vae": shelf.modules("vae"),
        "text_encoder": shelf.modules("text")[:1], "text_encoder_2": shelf.modules("text")[1:],
    }  # fmt: skip
    for part, (module,) in held.items():
        assert parts[part] == sum(4 * parameter.numel() for parameter in module.parameters()), part
    t5 = held["text_encoder_2"][0]
    assert t5.shared.weight is t5.encoder.embed_tokens.weight and not t5.shared.weight.is_meta


def test_where_memory_is_short_only_the_part_at_work_is_there(tiny: LoadedBase, settings: Settings) -> None:
    tight = families.load_base(tiny.info, replace(settings, ram_limit_bytes=1000))
    there = lambda: [bool(tight._shelf.modules(part)) for part in ("text", "vae", "denoiser")]  # type: ignore[attr-defined]  # noqa: E731
    assert there() == [False, False, False]
    tight.keep(frozenset({"text"}))
    mine, theirs = tight.encode_prompts(["portrait of tok person"]), tiny.encode_prompts(["portrait of tok person"])
    assert there() == [True, False, False]
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    tight.shed()
    assert there() == [True, False, False], "it is at work"
    tight.keep(frozenset({"denoiser"}))
    assert there() == [False, False, False], "T5 is gone before the transformer comes"
    next(iter(tight.denoise(DenoiseRequest(mine, mine, (1,), 2, 3.5, 64, 64))))
    assert there() == [False, False, True]
    tight.add_trainable_lora(2, 2.0, 0)
    before = tight.trainable_lora_state()
    tight.keep(frozenset({"vae"}))
    tight.shed()
    assert there() == [False, False, True], "what is learned is in no file"
    assert all(torch.equal(tensor, before[name]) for name, tensor in tight.trainable_lora_state().items())
    tight.use_loras(())
    tight.keep(frozenset())
    assert there() == [False, False, False]
    tight.release()


def test_the_published_size_is_that_of_dev() -> None:
    """FLUX.1-dev as its config says, without memory for its weights, and what training puts a LoRA on."""
    from diffusers import FluxTransformer2DModel

    from headshot_ui.families.flux_parts.lora import TARGETS

    with torch.device("meta"):
        model = FluxTransformer2DModel(guidance_embeds=True)
    assert sum(parameter.numel() for parameter in model.parameters()) == 11_901_408_320
    linear = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    trained = {name for name in linear if re.fullmatch(TARGETS, name)}
    assert len(trained) == 19 * 12 + 38 * 5
    assert not any(name.startswith(("proj_out", "norm_out", "x_embedder")) or ".norm" in name for name in trained)
    counted = [name for name, _ in model.named_parameters() if families.all_families()["flux"].is_trained(name)]
    assert {name.removesuffix(".weight") for name in counted} == trained, "what the plan counts is what is trained"
