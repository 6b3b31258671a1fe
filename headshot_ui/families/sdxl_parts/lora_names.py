"""What the layers of SDXL are called in LoRA files.

Inside the program a layer is called by its part and its path in diffusers' classes: ``unet.mid_block.attentions.0.…``,
``text_encoder.text_model.encoder.…``, ``text_encoder_2.…``. (transformers 5 took ``text_model.`` out of its own first
encoder; in files it stays, because every other program still looks for it.)

kohya's sd-scripts, and with them ComfyUI, A1111 and Forge, call the UNet's layers as Stability AI's own code (SGM)
does, in which all blocks are numbered through. With L resnets per block (``layers_per_block``, 2 in SDXL) and i, j
counted from 0:

    down_blocks.i.resnets.j        input_blocks.(i(L+1) + j+1).0        0 is the resnet of a block,
    down_blocks.i.attentions.j     input_blocks.(i(L+1) + j+1).1        1 its transformer
    down_blocks.i.downsamplers.0   input_blocks.((i+1)(L+1)).0.op
    mid_block                      middle_block.0 (resnet), .1 (transformer), .2 (resnet)
    up_blocks.i.resnets.j          output_blocks.(i(L+1) + j).0
    up_blocks.i.attentions.j       output_blocks.(i(L+1) + j).1
    up_blocks.i.upsamplers.0       output_blocks.(i(L+1) + L).2, or .1 where that block has no transformer

This follows from how both build the network: SGM counts ``conv_in`` as input block 0, then L resnets and a downsampler
per level (``UNetModel`` in sgm/modules/diffusionmodules/openaimodel.py), and on the way up L + 1 resnets per level.
In the file the dots become underscores, behind ``lora_unet_``, ``lora_te1_`` or ``lora_te2_``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from headshot_ui.families.lora_parts.layers import TEXT_MODEL, split

UNET, TEXT_1, TEXT_2 = "unet", "text_encoder", "text_encoder_2"
PARTS = {UNET: "UNet", TEXT_1: "first text encoder", TEXT_2: "second text encoder"}
KOHYA = {UNET: "lora_unet_", TEXT_1: "lora_te1_", TEXT_2: "lora_te2_"}

_BLOCK = re.compile(
    r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(resnets|attentions|downsamplers|upsamplers)\.(\d+)(.*)"
)
_SINGLE = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_IN_RESNET = {
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}  # fmt: skip


@dataclass(frozen=True)
class Topology:
    """What of a UNet's config decides how SGM numbers its blocks."""

    layers_per_block: int
    transformers_up: tuple[bool, ...]  # for each block on the way up: does it have transformers?

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Topology:
        """From ``unet/config.json`` or ``UNet2DConditionModel.config``. Raises ValueError for what SGM cannot be."""
        layers = config.get("layers_per_block")
        up = config.get("up_block_types")
        if not isinstance(layers, int) or not isinstance(up, (list, tuple)):
            raise ValueError("not a UNet whose blocks are numbered through")
        return cls(layers, tuple("CrossAttn" in str(kind) for kind in up))


def sgm_path(path: str, topology: Topology) -> str | None:
    """The SGM path of a layer of diffusers' UNet; None for a layer that SGM's has no counterpart of."""
    if path in _SINGLE:
        return _SINGLE[path]
    match = _BLOCK.fullmatch(path)
    if match is None:
        return None
    where, block, kind, inner, rest = match[1], int(match[2] or 0), match[3], int(match[4]), match[5]
    if kind == "resnets":
        if rest[1:] not in _IN_RESNET:
            return None
        rest = f".{_IN_RESNET[rest[1:]]}"
    if where == "mid_block":
        return f"middle_block.{1 if kind == 'attentions' else 2 * inner}{rest}"
    layers = topology.layers_per_block
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.op"
    if kind == "upsamplers":
        place = 2 if topology.transformers_up[block] else 1
        return f"output_blocks.{block * (layers + 1) + layers}.{place}{rest}"
    number = block * (layers + 1) + inner + (where == "down_blocks")
    return f"{'input' if where == 'down_blocks' else 'output'}_blocks.{number}.{1 if kind == 'attentions' else 0}{rest}"


def kohya_stem(layer: str, topology: Topology) -> str | None:
    """ "unet.mid_block.attentions.0.proj_in" → "lora_unet_middle_block_1_proj_in"; None where there is no such name."""
    part, path = split(layer)
    there = sgm_path(path, topology) if part == UNET else path
    return None if there is None else KOHYA[part] + there.replace(".", "_")


def known_stems(layers: Iterable[str], topology: Topology) -> dict[str, str]:
    """What stands before ``.lora_down`` or ``.lora_A`` in files, dots as underscores, → layer.

    Takes SGM's and diffusers' names, with the prefixes of kohya, diffusers, ComfyUI and LyCORIS by itself (the UNet's
    only), and the text encoders with and without ``text_model``.
    """
    return {stem: layer for layer in layers for stem in _stems(layer, topology)}


def _stems(layer: str, topology: Topology) -> Iterator[str]:
    part, path = split(layer)
    paths = {path, path.removeprefix(TEXT_MODEL)}
    prefixes = [KOHYA[part], f"{part}_"]
    if part == UNET:
        prefixes += ["diffusion_model_", "lycoris_"]
        paths |= {there for there in (sgm_path(path, topology),) if there is not None}
    for prefix in prefixes:
        yield from (prefix + each.replace(".", "_") for each in paths)
