"""What a file is when it is not a LoRA for a family: told in words, so that nobody has to guess.

Only names, shapes and the header are looked at. The marks of the kinds of base models are those of kohya's sd-scripts,
of Stability AI's model specification, and of the layer names in diffusers' classes and in the makers' own code.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import PICKLES, pickled_lora

Shapes = Mapping[str, tuple[int, ...]]


class ForeignLora(ModelError):
    """A LoRA for base models of another family; perhaps one that is here."""


#: Kinds of base models, for people. A family says which of them are its own.
SDXL, SDXL_REFINER = "Stable Diffusion XL", "Stable Diffusion XL's refiner"
WITH_UNET = "Stable Diffusion XL or another model with a UNet"
SD_1, SD_2, SD_3 = "Stable Diffusion 1.5", "Stable Diffusion 2", "Stable Diffusion 3"
LIKE_SD_3 = "Stable Diffusion 3 or a model built like it"
FLUX_1, FLUX_2, LIKE_FLUX_1 = "FLUX.1", "FLUX.2", "FLUX.1 or a model built like it"
CHROMA, QWEN, HUNYUAN, Z_IMAGE = "Chroma", "Qwen-Image", "HunyuanVideo", "Z-Image or Lumina"

#: Where programs write what a LoRA was trained on, and what they write there.
_BASE_ENTRIES = ("ss_base_model_version", "modelspec.architecture")
_HEADERS = (
    (re.compile(r"xl-v1-refiner|sdxl_refiner", re.IGNORECASE), SDXL_REFINER),
    (re.compile(r"sdxl|stable-diffusion-xl", re.IGNORECASE), SDXL),
    (re.compile(r"^sd_?v?1|stable-diffusion-v1", re.IGNORECASE), SD_1),
    (re.compile(r"^sd_?v?2|stable-diffusion-v2", re.IGNORECASE), SD_2),
    (re.compile(r"^sd_?v?3|stable-diffusion-(v?3)", re.IGNORECASE), SD_3),
    (re.compile(r"flux[._-]?2", re.IGNORECASE), FLUX_2),
    (re.compile(r"flux", re.IGNORECASE), FLUX_1),
    (re.compile(r"chroma", re.IGNORECASE), CHROMA),
    (re.compile(r"qwen", re.IGNORECASE), QWEN),
    (re.compile(r"hunyuan", re.IGNORECASE), HUNYUAN),
    (re.compile(r"z[_-]?image|lumina", re.IGNORECASE), Z_IMAGE),
)


@dataclass(frozen=True)
class _Mark:
    """What tells a kind of base model by one of its LoRA's tensors."""

    name: re.Pattern[str]
    kind: str
    widths: tuple[int, ...] = ()  # of the layer's input, where ``name`` is that of a lower matrix; () means any


_DOWN = r".*(lora_A|lora_down|lora.down|hada_w1_b)"
_LISTENS = re.compile(rf"attn2.(processor.)?to_k{_DOWN}")  # to the text, whose width differs from UNet to UNet
_IN_BLOCKS = r"(?<!single_)transformer_blocks."
#: The first that is found counts, so what is told apart by widths stands before what is told by names alone.
_MARKS = (
    _Mark(re.compile(r"stream_modulation|to_qkv_mlp_proj|single_transformer_blocks.\d+.attn.to_out"), FLUX_2),
    _Mark(re.compile(r"transformer_blocks.\d+.ff(_context)?.linear_(in|out)"), FLUX_2),
    # FLUX.2's feed-forward layers are three times as wide as the model, FLUX.1's four times.
    _Mark(re.compile(rf"single_blocks.\d+.linear2{_DOWN}"), FLUX_2, (12288, 16384, 24576)),
    _Mark(re.compile(rf"double_blocks.\d+.(img|txt)_attn.qkv{_DOWN}"), FLUX_2, (4096, 6144)),
    _Mark(re.compile(rf"transformer_blocks.\d+.attn.(to|add)_[qkv]{_DOWN}"), FLUX_2, (4096, 6144)),
    _Mark(re.compile(r"(img|txt)_mlp.fc[12]|(img|txt)_mod.linear|token_refiner"), HUNYUAN),
    _Mark(re.compile(r"distilled_guidance"), CHROMA),
    _Mark(re.compile(r"(double|single)_blocks|single_transformer_blocks"), LIKE_FLUX_1),
    _Mark(re.compile(r"joint_blocks"), SD_3),
    _Mark(re.compile(r"transformer_blocks.\d+.(img|txt)_m"), QWEN),
    _Mark(re.compile(r"(noise|context)_refiner|layers.\d+.(attention|feed_forward|adaLN_modulation)"), Z_IMAGE),
    _Mark(re.compile(rf"{_IN_BLOCKS}\d+.attn.(to|add)_[qkv]{_DOWN}"), SD_3, (1536, 2432)),
    # As wide as FLUX.1, which has 19 such blocks; Qwen-Image has 60.
    _Mark(re.compile(rf"{_IN_BLOCKS}(19|[2-5]\d).attn.(to|add)_[qkv]{_DOWN}"), QWEN, (3072,)),
    _Mark(re.compile(rf"{_IN_BLOCKS}\d+.attn.add_[qkv]_proj{_DOWN}"), LIKE_FLUX_1, (3072,)),
    _Mark(re.compile(r"transformer_blocks.\d+.attn.add_[qkv]_proj"), LIKE_SD_3),
    _Mark(re.compile(r"blocks.\d+.(cross_attn|self_attn|ffn)"), "a video model such as Wan"),
    _Mark(re.compile(r"^lora_te_text_model"), SD_1),
    _Mark(_LISTENS, SD_1, (768,)),
    _Mark(_LISTENS, SD_2, (1024,)),
    _Mark(_LISTENS, SDXL_REFINER, (1280,)),
    _Mark(_LISTENS, SDXL, (2048,)),
    _Mark(re.compile(r"(input|output|down|up)_blocks.\d|mid(dle)?_block|lora_te2_text_model"), WITH_UNET),
)
#: Ways of learning that are neither a LoRA nor one of its relatives that are applied, by what their tensors are called.
_OTHER_KINDS = (
    (re.compile(r"\.(oft_|boft_|oft_diag)"), "an OFT"),
    (re.compile(r"\.on_input$"), "an (IA)³"),
    (re.compile(r"\.[ab][12]\.weight$"), "a GLoRA"),
    (re.compile(r"\.(diff|diff_b|w_norm|b_norm|set_weight)$"), "a file of whole differences (“full” or “norm”)"),
    (re.compile(r"^bundle_emb\."), "a LoRA with embeddings of its own"),
    (re.compile(r"\.lora_[AB](\.\w+)?\.bias$|\.lora\.(up|down)\.bias$"), "a LoRA with biases"),
)
_CHECKPOINT = re.compile(r"^(model\.diffusion_model|first_stage_model|conditioner\.embedders|cond_stage_model)\.")
_EMBEDDING = re.compile(r"^(clip_[lg]|emb_params|string_to_param.*)$")
_ANOTHER = "choose another LoRA"


def refuse_pickle(path: Path) -> None:
    """Raise ModelError for a file that Python would have to execute, whatever its name ends with."""
    try:
        with path.open("rb") as file:
            begin = file.read(8)
    except OSError:
        begin = b""
    # A safetensors file begins with a length, whose upper four bytes are zero.
    pickled = begin[:1] == b"\x80" and begin[1:2] in (b"\2", b"\3", b"\4", b"\5") and begin[4:] != bytes(4)
    if path.suffix.lower() in PICKLES or pickled or begin[:4] == b"PK\x03\x04":
        raise pickled_lora(path)


def refuse_no_lora(path: Path, shapes: Shapes, is_lora_tensor: re.Pattern[str]) -> None:
    """Raise ModelError for a file that is empty, a whole model, or an embedding."""
    if not shapes:
        raise ModelError(f"{path} holds no tensor at all: {_ANOTHER}.")
    if any(is_lora_tensor.search(name) for name in shapes):
        return
    if other := other_kind(shapes):
        raise ModelError(f"{path} is {other}, which cannot be applied exactly here: choose a plain LoRA.")
    if any(_EMBEDDING.search(name) for name in shapes):
        raise ModelError(f"{path} is an embedding (textual inversion) and not a LoRA: {_ANOTHER}.")
    if any(_CHECKPOINT.search(name) for name in shapes) or sum(len(shape) > 1 for shape in shapes.values()) > 50:
        raise ModelError(f"{path} is a whole model and not a LoRA: put it among the base models, or {_ANOTHER}.")
    raise ModelError(f"{path} is no LoRA: {_ANOTHER}.")


def other_kind(shapes: Shapes) -> str:
    """Which way of learning that is not applied a file is of, "an OFT" for instance; "" for a LoRA."""
    return next((kind for mark, kind in _OTHER_KINDS if any(mark.search(name) for name in shapes)), "")


def made_for(header: Mapping[str, str], shapes: Shapes, ours: Collection[str]) -> str:
    """The kind of base model a LoRA was made for; "" when nothing tells, or it is one of ``ours``."""
    for entry in _BASE_ENTRIES:
        found = next((kind for mark, kind in _HEADERS if mark.search(header.get(entry, ""))), "")
        if found and found not in ours:
            return found
    for mark in _MARKS:
        if any(_is_marked(mark, name, shape) for name, shape in shapes.items()):
            return "" if mark.kind in ours else mark.kind
    return ""


def _is_marked(mark: _Mark, name: str, shape: tuple[int, ...]) -> bool:
    if not mark.name.search(name):
        return False
    return not mark.widths or (len(shape) == 2 and shape[1] in mark.widths)


def _unknown_name(header: Mapping[str, str], ours: Collection[str]) -> str:
    """What the header calls a base that nobody here has heard of. It may well be a relative of ours."""
    told = next((header[entry] for entry in _BASE_ENTRIES if header.get(entry)), "")
    known = any(mark.search(told) for mark, kind in _HEADERS if kind in ours)
    return f"“{told[:60]}”" if told and not known else ""


def does_not_fit(
    path: Path, header: Mapping[str, str], shapes: Shapes, base: str, at: str, ours: Collection[str]
) -> ModelError:
    """The sentence for a LoRA of which ``at`` has no place in the base model ``base``."""
    other = made_for(header, shapes, ours) or _unknown_name(header, ours)
    if other:
        return ModelError(f"{path} was made for {other}, not for a base model like “{base}”: {_ANOTHER}.")
    return ModelError(
        f"{path} was made for a base model of another size or kind than “{base}” (“{at}” does not fit): {_ANOTHER}."
    )
