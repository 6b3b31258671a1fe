"""Tiny random-weight models with the true shape of SDXL, for tests: under 1 MB, loaded in well under a second."""

from __future__ import annotations

import json
from pathlib import Path

#: Every word the demo prompts use, so that a tiny model knows the shipped presets.
WORDS = (
    "portrait of tok person , wearing a in front and with the to at on"
    " navy charcoal black grey white blue burgundy red green beige brown teal purple mustard"
    " suit blazer shirt sweater turtleneck hoodie tie"
    " studio backdrop dark warm bright office city window bookshelf park brick wall"
    " soft light from left right close - up head shoulders upper body"
    " neutral expression gentle smile broad"
    " short medium long brown blond hair bald beard glasses facing camera turned ."
)


def make_tiny_sdxl(
    folder: Path, seed: int = 0, *, prediction_type: str = "v_prediction", base_id: str = "tiny-sdxl", width: int = 16
) -> Path:
    """Write a random SDXL base in diffusers layout with its ``base.json`` into ``folder`` and return ``folder``.

    The picture is 64x64, latents (4, 8, 8), weights float16. ``width`` changes the size of the UNet, so that a
    LoRA made for one does not fit another. The same arguments give the same files.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        _unet(width).half().save_pretrained(folder / "unet")
        _vae().half().save_pretrained(folder / "vae")
        vocab, merges = _vocabulary()
        for suffix, hidden in (("", 16), ("_2", 24)):
            _tokenizer(vocab, merges).save_pretrained(folder / f"tokenizer{suffix}")
            _text_encoder(hidden, vocab, bool(suffix)).half().save_pretrained(folder / f"text_encoder{suffix}")
    finally:
        torch.random.set_rng_state(state)
    _scheduler(prediction_type).save_pretrained(folder / "scheduler")
    _write_json(folder / "model_index.json", _model_index())
    _write_json(folder / "base.json", _base_json(base_id))
    return folder


def make_tiny_refiner(
    folder: Path,
    seed: int = 9,
    *,
    prediction_type: str = "v_prediction",
    refiner_id: str = "tiny-refiner",
    bases: tuple[str, ...] = ("tiny-sdxl",),
    scored: bool = True,
    zeros_for_empty_prompt: bool = True,
) -> Path:
    """Write a random refiner with its ``refiner.json`` into ``folder`` and return ``folder``.

    It reads the second text encoder of ``make_tiny_sdxl`` and takes five size conditions, or six if not ``scored``.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        _unet(16, text_width=24, ids=5 if scored else 6).half().save_pretrained(folder / "unet")
    finally:
        torch.random.set_rng_state(state)
    _scheduler(prediction_type).save_pretrained(folder / "scheduler")
    index = {
        **_model_index(),
        "_class_name": "StableDiffusionXLImg2ImgPipeline",
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "force_zeros_for_empty_prompt": zeros_for_empty_prompt,
        "requires_aesthetics_score": scored,
    }
    _write_json(folder / "model_index.json", index)
    facts = {"id": refiner_id, "family": "sdxl", "title": "Tiny refiner (random weights)", "licence": "Apache-2.0"}
    _write_json(folder / "refiner.json", {**facts, "note": "Random weights.", "bases": list(bases), "demo": True})
    return folder


def _unet(width: int, text_width: int = 40, ids: int = 6):
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(width, 2 * width, 4 * width),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 1, 1),
        attention_head_dim=(1, 2, 4),
        norm_num_groups=8,
        cross_attention_dim=text_width,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24 + ids * 8,
    )


def _vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
        sample_size=64,
        scaling_factor=0.5,
        force_upcast=False,
    )


def _scheduler(prediction_type: str):
    from diffusers import EulerDiscreteScheduler

    zero_snr = prediction_type == "v_prediction"
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction_type,
        rescale_betas_zero_snr=zero_snr,
        timestep_spacing="trailing" if zero_snr else "leading",
        steps_offset=0 if zero_snr else 1,
    )


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Byte-pair vocabulary in which each word is one token.

    Every merge takes the end of the word, so that no merge of one word can disturb another.
    """
    tokens: dict[str, None] = dict.fromkeys(sorted({c for c in WORDS if c != " "}))
    tokens.update(dict.fromkeys(f"{c}</w>" for c in list(tokens)))
    merges: dict[tuple[str, str], None] = {}
    for word in WORDS.split():
        end = f"{word[-1]}</w>"
        for character in reversed(word[:-1]):
            merges[(character, end)] = None
            end = character + end
            tokens[end] = None
    tokens.update(dict.fromkeys(("<|startoftext|>", "<|endoftext|>")))
    return {token: number for number, token in enumerate(tokens)}, list(merges)


def _tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]]):
    from transformers import CLIPTokenizer

    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)


def _text_encoder(hidden: int, vocab: dict[str, int], projected: bool):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=len(vocab),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        projection_dim=24,
        bos_token_id=vocab["<|startoftext|>"],
        eos_token_id=vocab["<|endoftext|>"],
        pad_token_id=vocab["<|endoftext|>"],
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def _model_index() -> dict[str, object]:
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "force_zeros_for_empty_prompt": True,
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _base_json(base_id: str) -> dict[str, object]:
    return {
        "id": base_id,
        "family": "sdxl",
        "title": "Tiny (random weights)",
        "licence": "Apache-2.0",
        "note": "Random weights for tests: it draws noise.",
        "size_px": 64,
        "demo": True,
        "defaults": {
            "sampling_steps": 2,
            "guidance_scale": 3.0,
            "train_steps": 4,
            "batch_size": 2,
            "rank": 4,
            "learning_rate": 1e-3,
            "min_snr_gamma": None,
            "checkpoint_every": 2,
            "sample_every": 2,
            "trigger": "tok",
        },
    }


def _write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
