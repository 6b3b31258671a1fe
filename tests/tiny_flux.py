"""A tiny FLUX.1 with random weights: one double and two single blocks, CLIP, T5, a VAE of 16 channels; under 2 MB."""

from __future__ import annotations

import json
from pathlib import Path

from tests.tiny_models import WORDS, _tokenizer, _vocabulary

CLIP_WIDTH, T5_WIDTH = 16, 24


def make_tiny_flux(
    folder: Path,
    seed: int = 0,
    *,
    few_steps: bool = False,
    guided: bool = True,
    base_id: str = "tiny-flux",
    heads: int = 2,
    shards: bool = False,
    described: bool = True,
) -> Path:
    """Write a random FLUX.1 base in diffusers layout, with its ``base.json`` if ``described``; returns ``folder``.

    ``few_steps`` makes one like schnell, else it is like dev, ``guided`` or not. The picture is 64x64, latents
    (16, 8, 8), weights bfloat16, those of transformer and T5 in several files if ``shards``. ``heads`` changes the
    width of the transformer. The same arguments give the same files.
    """
    import torch

    folder.mkdir(parents=True, exist_ok=True)
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    most, most_t5 = ({"max_shard_size": size} if shards else {} for size in ("100KB", "10KB"))
    try:
        transformer = make_transformer(heads, guided and not few_steps)
        transformer.bfloat16().save_pretrained(folder / "transformer", **most)
        make_vae().bfloat16().save_pretrained(folder / "vae")
        vocab, merges = _vocabulary()
        _tokenizer(vocab, merges).save_pretrained(folder / "tokenizer")
        clip(vocab).bfloat16().save_pretrained(folder / "text_encoder")
        words = t5_tokenizer()
        words.save_pretrained(folder / "tokenizer_2")
        t5(len(words)).bfloat16().save_pretrained(folder / "text_encoder_2", **most_t5)
    finally:
        torch.random.set_rng_state(state)
    schedule(few_steps).save_pretrained(folder / "scheduler")
    write_json(folder / "model_index.json", _model_index())
    if described:
        write_json(folder / "base.json", _base_json(base_id, few_steps))
    return folder


def make_transformer(heads: int = 2, guided: bool = True):
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=heads,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=guided,
        axes_dims_rope=(4, 6, 6),
    )


def make_vae():
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4,
        latent_channels=16,
        layers_per_block=1,
        sample_size=64,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
        force_upcast=True,
    )


def clip(vocab: dict[str, int]):
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(vocab),
            hidden_size=CLIP_WIDTH,
            intermediate_size=2 * CLIP_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=77,
            bos_token_id=vocab["<|startoftext|>"],
            eos_token_id=vocab["<|endoftext|>"],
            pad_token_id=vocab["<|endoftext|>"],
        )
    )


def t5(words: int):
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(
        T5Config(
            vocab_size=words + 20,  # as T5's own, it knows some more than there are words
            d_model=T5_WIDTH,
            d_kv=8,
            d_ff=32,
            num_layers=2,
            num_heads=2,
            feed_forward_proj="gated-gelu",
            tie_word_embeddings=False,
        )
    )


def t5_tokenizer():
    """Each of ``tiny_models.WORDS`` is one piece; 48 tokens long at most, to be quick."""
    from transformers import T5Tokenizer

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -1.0) for word in dict.fromkeys(WORDS.split())]
    return T5Tokenizer(vocab=pieces, extra_ids=4, model_max_length=48)


def schedule(few_steps: bool):
    from diffusers import FlowMatchEulerDiscreteScheduler

    if few_steps:
        return FlowMatchEulerDiscreteScheduler(shift=1.0)
    return FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)


def _model_index() -> dict[str, object]:
    return {
        "_class_name": "FluxPipeline",
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", "FluxTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }


def _base_json(base_id: str, few_steps: bool) -> dict[str, object]:
    return {
        "id": base_id,
        "family": "flux",
        "title": "Tiny FLUX (random weights)",
        "licence": "Apache-2.0",
        "note": "Random weights for tests: it draws noise.",
        "size_px": 64,
        "demo": True,
        "defaults": {
            "sampling_steps": 2,
            "guidance_scale": 1.0 if few_steps else 3.5,
            "train_steps": 2,
            "batch_size": 2,
            "rank": 4,
            "learning_rate": 1e-3,
            "checkpoint_every": 1,
            "sample_every": 2,
            "trigger": "tok",
        },
    }


def write_json(path: Path, data: object) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
