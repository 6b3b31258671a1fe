"""FLUX.1-dev of the published shape with random weights: for trying memory, speed and files without a download.

33 GB at full size. Transformer and T5 are written in shards that are made one after the other, so main memory never
holds more than two of them. The tiny one has the same kinds of blocks, fewer and narrower.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from headshot_ui.families.bases import BASE_FILE
from headshot_ui.families.flux_parts.files import CLIP, CLIP_WORDS, T5, T5_TOKENS, T5_WORDS, TRANSFORMER, VAE
from headshot_ui.families.sdxl_parts import files as sdxl_files
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.memory import give_back
from headshot_ui.prove.random_parts import OUTLINE, building, write_outline, write_shards
from headshot_ui.prove.random_sets import RandomSet
from headshot_ui.store import write_json_atomic

BASE_ID = "random-flux"
DTYPE = "bfloat16"  # as published
NOTE = "Random weights of the full shape: it draws noise, and shows what memory and time the real model takes."
_PUBLISHED = Path(sdxl_files.__file__).parents[1] / "flux_parts" / "published"
_TINY: dict[str, dict[str, Any]] = {
    TRANSFORMER: {
        "num_layers": 2, "num_single_layers": 4, "attention_head_dim": 16, "num_attention_heads": 4,
        "joint_attention_dim": 32, "pooled_projection_dim": 32, "axes_dims_rope": [4, 6, 6],
    },
    VAE: {"sample_size": 128, "block_out_channels": [32, 32, 32, 32]},
    CLIP: {
        "num_attention_heads": 2, "projection_dim": 32, "hidden_size": 32, "intermediate_size": 64,
        "num_hidden_layers": 2,
    },
    T5: {"d_ff": 64, "d_kv": 16, "d_model": 32, "num_heads": 2, "num_layers": 2},
}  # fmt: skip
#: By size: what differs from the published configs, the side of the picture, the bytes of a shard and a learning rate
#: at which a few dozen steps can be seen in the loss; wide layers need less.
_SIZES: dict[str, tuple[dict[str, dict[str, Any]], int, int, float]] = {
    "full": ({}, 1024, 2 * 10**9, 1e-3),
    "tiny": (_TINY, 128, 200_000, 5e-3),
}


def make_flux(models_dir: Path, size: str, device: str, told: Callable[[str], None], seed: int = 0) -> Path:
    """A base in diffusers layout with its ``base.json``, weights bfloat16; the folder made.

    ``device`` is where the random numbers are drawn (``OUTLINE``: nowhere). The same arguments give the same files.
    Raises what writing raises; a folder that is there is replaced.
    """
    folder = models_dir / BASE_ID
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    shutil.copy(_PUBLISHED / "model_index.json", folder)
    shutil.copytree(_PUBLISHED / "scheduler", folder / "scheduler")
    shutil.copytree(sdxl_files.published("base") / "tokenizer", folder / CLIP_WORDS)  # both are CLIP ViT-L's
    _write_words(folder / T5_WORDS)
    _, side, shard, rate = _SIZES[size]
    for number, part in enumerate((TRANSFORMER, VAE, CLIP, T5)):
        told(f"{BASE_ID}: {part}")
        _write(folder, part, size, device, seed + number, shard)
    defaults = {"train_steps": 1000, "rank": 16, "learning_rate": rate, "sampling_steps": 28, "guidance_scale": 3.5}
    write_json_atomic(
        folder / BASE_FILE,
        {
            "id": BASE_ID, "family": "flux", "title": "Random FLUX.1 (draws noise)",
            "licence": "none: no trained weights", "note": NOTE, "size_px": side, "defaults": defaults,
        },
    )  # fmt: skip
    return folder


def config_of(part: str, size: str) -> dict[str, Any]:
    """The config of a part: as published, with what differs at this size."""
    return {**read_json_file(_PUBLISHED / part / "config.json"), **_SIZES[size][0].get(part, {})}


def side_px(size: str) -> int:
    """Of the square picture."""
    return _SIZES[size][1]


def build_part(part: str, size: str) -> Any:
    """A module of that shape, with the weights its own class begins with, on torch's default device."""
    from diffusers import AutoencoderKL, FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    config = config_of(part, size)
    if part == TRANSFORMER:
        return FluxTransformer2DModel.from_config(config)
    if part == VAE:
        return AutoencoderKL.from_config(config)
    return CLIPTextModel(CLIPTextConfig(**config)) if part == CLIP else T5EncoderModel(T5Config(**config))


def random_part(part: str, size: str, device: str, seed: int, dtype: str = DTYPE) -> Any:
    """One part in memory on ``device``, to compute with."""
    import torch

    from headshot_ui.families.shared_parts.load import quiet

    with quiet():
        with building(device, seed, dtype):
            module = build_part(part, size)
        return module.to(getattr(torch, dtype)).eval().requires_grad_(False)


def _write(folder: Path, part: str, size: str, device: str, seed: int, shard_bytes: int) -> None:
    """Transformer and T5 in shards, the small ones whole."""
    from headshot_ui.families.shared_parts.load import quiet

    large = part in (TRANSFORMER, T5)
    module = random_part(part, size, OUTLINE if large else device, seed)
    stem = "model" if part in (CLIP, T5) else "diffusion_pytorch_model"
    if part in (CLIP, T5):
        module.config.save_pretrained(folder / part)
    else:
        module.save_config(folder / part)
    if device == OUTLINE:
        write_outline(folder / part / f"{stem}.safetensors", module)
    elif large:
        write_shards(folder / part, stem, module, device, seed, shard_bytes)
    else:
        with quiet():
            module.save_pretrained(folder / part)
    del module
    give_back()


# --- words ----------------------------------------------------------------------------------------------
def _write_words(folder: Path) -> None:
    """A tokenizer like T5's: 32,000 pieces, of which those of ordinary words are CLIP's, and 100 marks."""
    from transformers import T5Tokenizer

    from headshot_ui.families.shared_parts.load import quiet

    clip = json.loads((sdxl_files.published("base") / "tokenizer" / "vocab.json").read_text("utf-8"))
    end = "</w>"
    words = [word.removesuffix(end) for word in clip if word.endswith(end) and word.isascii() and word != end]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    room = _WORDS - len(pieces)
    known = list(dict.fromkeys(f"▁{word}" for word in words))[:room]
    pieces += [(word, -8.0) for word in known]
    pieces += [(f"▁{number}{_FILLER}", -20.0) for number in range(room - len(known))]
    with quiet():
        T5Tokenizer(vocab=pieces, extra_ids=100, model_max_length=T5_TOKENS).save_pretrained(folder)


_WORDS, _FILLER = 32000, "¤"

SET = RandomSet(
    BASE_ID,
    frozenset({BASE_ID}),
    34 * 10**9,
    5 * 10**9,  # measured: 3.4 GB
    lambda models_dir, size, device, told: make_flux(models_dir, size, device, told),
)
