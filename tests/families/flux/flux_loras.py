"""A tiny FLUX.1 transformer with its two text encoders, and random LoRAs for it as other programs write them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

import torch
from diffusers import FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from headshot_ui.families.flux_parts.lora_file import Place, place_of
from headshot_ui.families.flux_parts.lora_names import CLIP, T5, TRANSFORMER
from headshot_ui.families.lora_parts.layers import LoraLayer

Tensors = dict[str, torch.Tensor]
WIDTH, T5_WIDTH, CLIP_WIDTH = 32, 24, 16
CLIP_CONFIG = {"vocab_size": 64, "hidden_size": CLIP_WIDTH, "intermediate_size": 32, "num_hidden_layers": 2,
               "num_attention_heads": 2, "eos_token_id": 63, "bos_token_id": 62, "pad_token_id": 63}  # fmt: skip
T5_CONFIG = {"vocab_size": 64, "d_model": T5_WIDTH, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 2,
             "feed_forward_proj": "gated-gelu"}  # fmt: skip


def make_transformer(guided: bool = True, blocks: tuple[int, int] = (2, 2)) -> FluxTransformer2DModel:
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=64,
        num_layers=blocks[0],
        num_single_layers=blocks[1],
        attention_head_dim=16,
        num_attention_heads=WIDTH // 16,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        guidance_embeds=guided,
        axes_dims_rope=(4, 6, 6),
    ).eval()


def modules(guided: bool = True) -> dict[str, torch.nn.Module]:
    return {
        TRANSFORMER: make_transformer(guided),
        CLIP: CLIPTextModel(CLIPTextConfig(**CLIP_CONFIG)),
        T5: T5EncoderModel(T5Config(**T5_CONFIG)),
    }


def make_place(guided: bool = True) -> Place:
    return place_of("Tiny FLUX", modules(guided))


@cache
def make_published() -> Place:
    """FLUX.1-dev's transformer without memory for its weights: the class's defaults, but for the guidance."""
    with torch.device("meta"):
        return place_of("FLUX.1-dev", {TRANSFORMER: FluxTransformer2DModel(guidance_embeds=True)})


def part_of(where: Place, part: str) -> list[str]:
    return [layer for layer in where.shapes if layer.startswith(f"{part}.")]


def random_layers(
    where: Place,
    layers: Iterable[str],
    rank: int = 4,
    alpha: float | None = None,
    dtype: torch.dtype = torch.float32,
    seed: int = 3,
) -> dict[str, LoraLayer]:
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for layer in layers:
        out, inside = where.shapes[layer]
        down = (torch.randn(rank, inside, generator=generator) * 0.3).to(dtype)
        up = (torch.randn(out, rank, generator=generator) * 0.3).to(dtype)
        made[layer] = LoraLayer(down, up, None if alpha is None else torch.tensor(alpha, dtype=dtype))
    return made


def delta(layer: LoraLayer) -> torch.Tensor:
    """ΔW by its formula, in float64."""
    return layer.strength / layer.rank * (layer.up.double() @ layer.down.double())


def by_hand(name: str, down: torch.Tensor, up: torch.Tensor, alpha: float | None, kohya: bool = True) -> Tensors:
    """One layer as it stands in a file."""
    roles = ("lora_down", "lora_up") if kohya else ("lora_A", "lora_B")
    made = {f"{name}.{roles[0]}.weight": down, f"{name}.{roles[1]}.weight": up}
    return made if alpha is None else made | {f"{name}.alpha": torch.tensor(alpha)}


def run(transformer: FluxTransformer2DModel) -> torch.Tensor:
    """What it makes of fixed noise and text: (1, 16, 64)."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, 16, 64, generator=generator),
            encoder_hidden_states=torch.randn(1, 7, T5_WIDTH, generator=generator),
            pooled_projections=torch.randn(1, CLIP_WIDTH, generator=generator),
            timestep=torch.tensor([0.7]),
            guidance=torch.tensor([3.5]) if transformer.config.guidance_embeds else None,
            img_ids=torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
            txt_ids=torch.zeros(7, 3),
            return_dict=False,
        )[0]
