"""Random LoRAs for the tiny base, in whichever layout a test wants to see."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from headshot_ui.families.lora_parts.layers import LoraLayer
from headshot_ui.families.protocol import DenoiseRequest, LoadedBase, PromptEmbeds
from headshot_ui.families.sdxl_parts.lora import parts
from headshot_ui.families.sdxl_parts.lora_file import Place, place_of
from headshot_ui.families.sdxl_parts.lora_names import Topology

#: What sd-scripts trains without convolutions: the linear layers of transformers and text encoders.
USUAL = ("proj_in", "proj_out", "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2",
         "q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")  # fmt: skip
PROMPT = "portrait of tok person"


def place(loaded: LoadedBase) -> Place:
    return place_of(loaded.info.title, parts(loaded.modules), Topology.of(loaded.modules.unet.config))


def usual_layers(where: Place, part: str = "") -> list[str]:
    return [layer for layer in where.shapes if layer.endswith(USUAL) and layer.startswith(f"{part}." if part else "")]


def random_layers(
    where: Place, layers: Iterable[str], seed: int = 3, rank: int = 4, alpha: float | None = None
) -> dict[str, LoraLayer]:
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for layer in layers:
        weight = where.shapes[layer]
        down = torch.randn(rank, *weight[1:], generator=generator) * 0.15
        up = torch.randn(weight[0], rank, *(1 for _ in weight[2:]), generator=generator) * 0.15
        made[layer] = LoraLayer(down, up, None if alpha is None else torch.tensor(float(alpha)))
    return made


def delta(layer: LoraLayer) -> torch.Tensor:
    """ΔW by its formula, in float64."""
    product = layer.up.double().flatten(1) @ layer.down.double().flatten(1)
    return (layer.strength / layer.rank * product).reshape(layer.up.shape[0], *layer.down.shape[1:])


def draw(loaded: LoadedBase) -> torch.Tensor:
    return drawn_from(loaded, loaded.encode_prompts([PROMPT]), loaded.encode_prompts([""]))


def drawn_from(loaded: LoadedBase, embeds: PromptEmbeds, negative: PromptEmbeds) -> torch.Tensor:
    wanted = DenoiseRequest(embeds, negative, (1,), 2, guidance_scale=2.0, height=64, width=64)
    return list(loaded.denoise(wanted))[-1].latents


def bits(loaded: LoadedBase) -> dict[str, torch.Tensor]:
    """Every tensor of UNet and text encoders, under its name."""
    modules = parts(loaded.modules).items()
    return {
        f"{part}.{name}": tensor.clone() for part, module in modules for name, tensor in module.state_dict().items()
    }


def same(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)
