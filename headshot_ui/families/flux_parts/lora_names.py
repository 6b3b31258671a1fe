"""What the layers of FLUX.1 are called in LoRA files.

Inside the program a layer is called by its part and its path in diffusers' classes: ``transformer.…``,
``text_encoder.text_model.…`` (CLIP), ``text_encoder_2.encoder.block.…`` (T5). diffusers, ai-toolkit, SimpleTuner and
OneTrainer write these names, with dots or underscores and prefixes of their own.

Black Forest Labs' own code (src/flux/model.py and modules/layers.py in github.com/black-forest-labs/flux), and with it
kohya's sd-scripts, ComfyUI and Forge, has fewer and larger layers. Rows of a weight, from the top:

    double_blocks.i.img_attn.qkv     to_q, to_k, to_v                 txt_attn.qkv: add_q_proj, add_k_proj, add_v_proj
    double_blocks.i.img_attn.proj    to_out.0                         txt_attn.proj: to_add_out
    double_blocks.i.img_mlp.0, .2    ff.net.0.proj, ff.net.2          txt_mlp: ff_context
    double_blocks.i.img_mod.lin      norm1.linear                     txt_mod: norm1_context
    single_blocks.i.linear1          to_q, to_k, to_v, proj_mlp
    single_blocks.i.linear2          proj_out                         (its input: attention, then feed-forward)
    single_blocks.i.modulation.lin   norm.linear
    final_layer.adaLN_modulation.1   norm_out.linear                  with its halves swapped: scale, then shift

XLabs calls query, key and value of a block ``processor.qkv_lora1`` (picture), ``qkv_lora2`` (text) or, in single
blocks, ``qkv_lora``, which are the first three of ``linear1``, and the layers behind attention ``processor.proj_lora``.

kohya's files have underscores for dots behind ``lora_unet_``, ``lora_te1_`` (CLIP) and ``lora_te3_`` (T5, once
``lora_te2_``). ComfyUI takes all of these.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from itertools import accumulate, pairwise

from headshot_ui.families.lora_parts.fused import Piece
from headshot_ui.families.lora_parts.layers import TEXT_MODEL, split

TRANSFORMER, CLIP, T5 = "transformer", "text_encoder", "text_encoder_2"
PARTS = {TRANSFORMER: "transformer", CLIP: "CLIP text encoder", T5: "T5 text encoder"}
KOHYA = {TRANSFORMER: "lora_unet_", CLIP: "lora_te1_", T5: "lora_te3_"}
_PREFIXES = {
    TRANSFORMER: (
        "lora_unet_", "transformer_", "lora_transformer_", "diffusion_model_", "model_diffusion_model_", "unet_",
        "lycoris_", "",
    ),
    CLIP: ("lora_te1_", "lora_te_", "text_encoder_", "text_encoders_clip_l_transformer_", "clip_l_"),
    T5: ("lora_te3_", "lora_te2_", "text_encoder_2_", "text_encoders_t5xxl_transformer_", "t5xxl_"),
}  # fmt: skip

_QKV = ("attn.to_q", "attn.to_k", "attn.to_v")
_TEXT_QKV = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
#: Black Forest Labs' name inside a block → paths in diffusers' block.
_DOUBLE = {
    "img_attn.qkv": _QKV,
    "img_attn.proj": ("attn.to_out.0",),
    "img_mlp.0": ("ff.net.0.proj",),
    "img_mlp.2": ("ff.net.2",),
    "img_mod.lin": ("norm1.linear",),
    "txt_attn.qkv": _TEXT_QKV,
    "txt_attn.proj": ("attn.to_add_out",),
    "txt_mlp.0": ("ff_context.net.0.proj",),
    "txt_mlp.2": ("ff_context.net.2",),
    "txt_mod.lin": ("norm1_context.linear",),
}  # fmt: skip
_SINGLE = {
    "linear1": (*_QKV, "proj_mlp"),
    "linear2": ("proj_out",),
    "modulation.lin": ("norm.linear",),
}  # fmt: skip
_OUTSIDE = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "time_in.in_layer": "time_text_embed.timestep_embedder.linear_1",
    "time_in.out_layer": "time_text_embed.timestep_embedder.linear_2",
    "vector_in.in_layer": "time_text_embed.text_embedder.linear_1",
    "vector_in.out_layer": "time_text_embed.text_embedder.linear_2",
    "guidance_in.in_layer": "time_text_embed.guidance_embedder.linear_1",
    "guidance_in.out_layer": "time_text_embed.guidance_embedder.linear_2",
    "final_layer.linear": "proj_out",
}  # fmt: skip
_SWAPPED = ("final_layer.adaLN_modulation.1", "norm_out.linear")
#: More names of the same layers, or of the first few of them. ``_lora`` at the end is taken for the matrices' own.
_DOUBLE_ELSEWHERE = {
    "processor.qkv_lora1": _QKV,
    "processor.qkv_lora2": _TEXT_QKV,
    "processor.proj_lora1": ("attn.to_out.0",),
    "processor.proj_lora2": ("attn.to_add_out",),
}  # fmt: skip
_SINGLE_ELSEWHERE = {
    "processor.qkv": _QKV,
    "processor.proj": ("proj_out",),
    "linear1_qkv": _QKV,
}  # fmt: skip

_CLIP_LAYERS = (*(f"self_attn.{to}_proj" for to in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")
_T5_LAYERS = (
    *(f"0.SelfAttention.{to}" for to in "qkvo"),
    *(f"1.DenseReluDense.{to}" for to in ("wi", "wi_0", "wi_1", "wo")),
)
_UNUSED = re.compile(r"(lora_te1?|text_encoder|text_encoders_clip_l_transformer|clip_l)_(text_model_)?text_projection")

Shapes = Mapping[str, tuple[int, ...]]  # layer → shape of its weight


def bfl_layers(shapes: Shapes) -> dict[str, tuple[Piece, ...]]:
    """Black Forest Labs' path of every layer of the transformer → the layers it is in diffusers' classes."""
    found = dict(_in_blocks(shapes, "double_blocks", "transformer_blocks", _DOUBLE))
    found |= _in_blocks(shapes, "single_blocks", "single_transformer_blocks", _SINGLE)
    found |= {name: (Piece(layer),) for name, path in _OUTSIDE.items() if (layer := f"{TRANSFORMER}.{path}") in shapes}
    layer = f"{TRANSFORMER}.{_SWAPPED[1]}"
    if layer in shapes:
        rows = shapes[layer][0]
        found[_SWAPPED[0]] = (Piece(layer, ((rows // 2, rows), (0, rows // 2))),)
    return found


def kohya_layers(shapes: Shapes) -> dict[str, tuple[Piece, ...]]:
    """What stands before ``.lora_down`` in kohya's files → the layers it is in diffusers' classes."""
    found = {KOHYA[TRANSFORMER] + _flat(path): pieces for path, pieces in bfl_layers(shapes).items()}
    for layer in shapes:
        part, path = split(layer)
        if part != TRANSFORMER:
            found[KOHYA[part] + _flat(path)] = (Piece(layer),)
    return found


def known_stems(shapes: Shapes) -> dict[str, tuple[Piece, ...]]:
    """What stands before the names of the matrices in files, dots as underscores, → the layers it means."""
    paths = bfl_layers(shapes)
    paths |= _in_blocks(shapes, "double_blocks", "transformer_blocks", _DOUBLE_ELSEWHERE)
    paths |= _in_blocks(shapes, "single_blocks", "single_transformer_blocks", _SINGLE_ELSEWHERE)
    found = {prefix + _flat(path): pieces for path, pieces in paths.items() for prefix in _PREFIXES[TRANSFORMER]}
    for layer in shapes:
        part, path = split(layer)
        for each in {path, path.removeprefix(TEXT_MODEL)}:
            found |= {prefix + _flat(each): (Piece(layer),) for prefix in _PREFIXES[part]}
    return found


def part_of(stem: str) -> str | None:
    """Which part a stem belongs to, whatever the size of the base model; None for what FLUX.1 has no such layer."""
    return _parts_by_stem().get(_numberless(stem)) or (CLIP if is_unused(stem) else None)


def is_unused(stem: str) -> bool:
    """Whether the layer is CLIP's last, which FLUX.1 does without: it takes what CLIP pools before that layer."""
    return _UNUSED.fullmatch(stem) is not None


@cache
def _parts_by_stem() -> dict[str, str]:
    blocks = [f"{TRANSFORMER}.transformer_blocks.0.{path}" for paths in _DOUBLE.values() for path in paths]
    blocks += [f"{TRANSFORMER}.single_transformer_blocks.0.{path}" for paths in _SINGLE.values() for path in paths]
    outside = [f"{TRANSFORMER}.{path}" for path in (*_OUTSIDE.values(), _SWAPPED[1])]
    texts = [f"{CLIP}.{TEXT_MODEL}encoder.layers.0.{path}" for path in _CLIP_LAYERS]
    texts += [f"{T5}.encoder.block.0.layer.{path}" for path in _T5_LAYERS]
    stems = known_stems({layer: (2, 1) for layer in (*blocks, *outside, *texts)})
    return {_numberless(stem): split(pieces[0].layer)[0] for stem, pieces in stems.items()}


def _numberless(stem: str) -> str:
    return re.sub(r"(?<=blocks_|layers_)\d+|(?<=encoder_block_)\d+", "N", stem)


def _in_blocks(
    shapes: Shapes, theirs: str, ours: str, names: Mapping[str, Sequence[str]]
) -> Iterator[tuple[str, tuple[Piece, ...]]]:
    for number in _numbers(shapes, ours):
        for name, paths in names.items():
            layers = [f"{TRANSFORMER}.{ours}.{number}.{path}" for path in paths]
            if all(layer in shapes for layer in layers):
                yield f"{theirs}.{number}.{name}", _pieces(layers, shapes)


def _numbers(shapes: Shapes, blocks: str) -> list[int]:
    found = (re.match(rf"{TRANSFORMER}\.{blocks}\.(\d+)\.", layer) for layer in shapes)
    return sorted({int(match[1]) for match in found if match})


def _pieces(layers: Sequence[str], shapes: Shapes) -> tuple[Piece, ...]:
    if len(layers) == 1:
        return (Piece(layers[0]),)
    ends = pairwise(accumulate((shapes[layer][0] for layer in layers), initial=0))
    return tuple(Piece(layer, (rows,)) for layer, rows in zip(layers, ends, strict=True))


def _flat(path: str) -> str:
    return path.replace(".", "_")
