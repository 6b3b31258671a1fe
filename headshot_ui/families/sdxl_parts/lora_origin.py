"""What a file is when it is not a LoRA for this family: told in words, so that nobody has to guess.

Only names, shapes and the header are looked at. The marks of other families are those of kohya's sd-scripts, of
Stability AI's model specification, and of the layer names in diffusers' classes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import PICKLES, pickled_lora

Shapes = Mapping[str, tuple[int, ...]]

OURS = re.compile(r"sdxl|stable-diffusion-xl", re.IGNORECASE)
REFINER = re.compile(r"xl-v1-refiner|sdxl_refiner", re.IGNORECASE)
#: Where programs write what a LoRA was trained on, and what they write there.
_BASE_ENTRIES = ("ss_base_model_version", "modelspec.architecture")
_HEADERS = (
    (REFINER, "Stable Diffusion XL's refiner"),
    (re.compile(r"^sd_?v?1|stable-diffusion-v1", re.IGNORECASE), "Stable Diffusion 1.5"),
    (re.compile(r"^sd_?v?2|stable-diffusion-v2", re.IGNORECASE), "Stable Diffusion 2"),
    (re.compile(r"^sd_?v?3|stable-diffusion-(v?3)", re.IGNORECASE), "Stable Diffusion 3"),
    (re.compile(r"flux[._-]?2", re.IGNORECASE), "FLUX.2"),
    (re.compile(r"flux", re.IGNORECASE), "FLUX"),
)
#: What only that family's layers are called; the first that is found counts.
_NAMES = (
    (re.compile(r"(double|single)_blocks|single_transformer_blocks"), "FLUX or a model built like it"),
    (re.compile(r"joint_blocks"), "Stable Diffusion 3"),
    (re.compile(r"transformer_blocks.\d+.(img|txt)_m"), "Qwen-Image"),
    (re.compile(r"(noise|context)_refiner"), "Z-Image or Lumina"),
    (re.compile(r"transformer_blocks.\d+.attn.add_[qkv]_proj"), "Stable Diffusion 3"),
    (re.compile(r"blocks.\d+.(cross_attn|self_attn|ffn)"), "a video model such as Wan"),
    (re.compile(r"^lora_te_text_model"), "Stable Diffusion 1.5"),
)
#: Width of the text a UNet listens to; SDXL's is 2048.
_TEXT_WIDTHS = {768: "Stable Diffusion 1.5", 1024: "Stable Diffusion 2", 1280: "Stable Diffusion XL's refiner"}
#: Ways of learning that are no plain LoRA, by what their tensors are called.
_OTHER_KINDS = (
    (re.compile(r"\.hada_"), "a LoHa"),
    (re.compile(r"\.lokr_"), "a LoKr"),
    (re.compile(r"\.(dora_scale|lora_magnitude_vector)(\.|$)"), "a DoRA"),
    (re.compile(r"\.lora_mid\."), "a LoCon with a third matrix (Tucker)"),
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
    """Which relative of LoRA a file is, "a LoHa" for instance; "" for a plain one."""
    return next((kind for mark, kind in _OTHER_KINDS if any(mark.search(name) for name in shapes)), "")


def made_for(header: Mapping[str, str], shapes: Shapes) -> str:
    """The base models of another family a LoRA was made for; "" when nothing tells, or it is this family."""
    for entry in _BASE_ENTRIES:
        found = next((title for mark, title in _HEADERS if mark.search(header.get(entry, ""))), "")
        if found:
            return found
    for mark, title in _NAMES:
        if any(mark.search(name) for name in shapes):
            return title
    return _by_width(shapes)


def _unknown_name(header: Mapping[str, str]) -> str:
    """What the header calls a base that nobody here has heard of. It may well be a relative of SDXL's."""
    told = next((header[entry] for entry in _BASE_ENTRIES if header.get(entry)), "")
    return f"“{told[:60]}”" if told and not OURS.search(told) else ""


def _by_width(shapes: Shapes) -> str:
    for name, shape in shapes.items():
        listens = re.search(r"attn2.(processor.)?to_k.*(lora_A|lora_down|lora.down)", name)
        if listens and len(shape) == 2 and shape[1] in _TEXT_WIDTHS:
            return _TEXT_WIDTHS[shape[1]]
    return ""


def does_not_fit(path: Path, header: Mapping[str, str], shapes: Shapes, base: str, at: str) -> ModelError:
    """The sentence for a LoRA of which ``at`` has no place in the base model ``base``."""
    other = made_for(header, shapes) or _unknown_name(header)
    if other:
        return ModelError(f"{path} was made for {other}, not for a base model like “{base}”: {_ANOTHER}.")
    return ModelError(
        f"{path} was made for a base model of another size or kind than “{base}” (“{at}” does not fit): {_ANOTHER}."
    )
