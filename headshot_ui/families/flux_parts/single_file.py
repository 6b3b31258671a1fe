"""What a single file with a FLUX transformer is, told from names, shapes and formats in its header; no tensor is read.

Such files hold the transformer alone, or text encoders and VAE beside it (``text_encoders.…``, ``vae.…``); tokenizers
they never hold. Numbers are in 16 or 32 bit, in float8, plain or with a factor per layer ("scaled"), or in GGUF.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from headshot_ui import gguf_files
from headshot_ui.errors import ModelError
from headshot_ui.families.bases import weights_fault
from headshot_ui.families.flux_parts.original_names import (
    FIRST,
    FIRST_HERE,
    Layout,
    diffusers_layout,
    original_layout,
)
from headshot_ui.families.flux_parts.sizes import Shape
from headshot_ui.memory import StoredTensor, read_header

NEEDS_FLUX = "choose a file of FLUX.1-dev or FLUX.1-schnell"
_AGAIN = "get it again"
_PREFIXES = ("", "model.diffusion_model.", "transformer.", "model.")
#: What other parts of a checkpoint begin with, where all parts have their prefix; they are not read.
_BESIDE = ("vae.", "first_stage_model.", "text_encoders.", "text_encoder.", "text_encoder_2.", "conditioner.")
#: float8 is multiplied by a factor of its layer where there is one, called in either way. The others say how inputs
#: may be rounded for faster products, and in which format the weight is, which the header says too.
FACTORS = ("scale_weight", "weight_scale")
_MARKS = ("scale_input", "input_scale", "comfy_quant", *FACTORS)
_SCALED = "scaled_fp8"
FLOAT8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
_FORMATS = frozenset({"F32", "F16", "BF16", *FLOAT8})
#: The formats of GGUF that are read: those of ``dequantise.TAKEN``, which is not asked because it loads torch.
GGUF_FORMATS = frozenset(
    {"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"}
    | {"IQ4_NL", "IQ4_XS"}
)
#: What is in the names of the tensors of something else that is built of such blocks, and what that is.
_OTHERS: Sequence[tuple[tuple[str, ...], str]] = (
    (("double_stream_modulation_img.",), f"FLUX.2, another family: {NEEDS_FLUX}"),
    (("distilled_guidance_layer.",), f"Chroma, another family: {NEEDS_FLUX}"),
    (("controlnet_", "pos_embed_input."), f"a ControlNet for FLUX: {NEEDS_FLUX}"),
    (("img_attn_qkv.", "individual_token_refiner."), f"a network for films, another family: {NEEDS_FLUX}"),
    ((".quant_state.", ".absmax", ".qweight", ".wscales", ".weight_scale_2"),
     "shortened for another program, in a way that this one does not read: get it in bf16, fp8 or GGUF"),
)  # fmt: skip
_REDUX = "redux_up.weight"
#: Channels that the transformer takes → the task for which it takes more than latents.
_TASKS = {
    128: "FLUX.1 Depth or Canny, which draws only along a picture it is given",
    384: "FLUX.1 Fill, which draws only with a mask",
}
#: Built exactly like FLUX.1-dev, so only the file's name tells.
_BY_NAME = (("kontext", "FLUX.1 Kontext, which changes a picture it is given"),)
_BUILT_OTHERWISE = f"not built like FLUX.1: {NEEDS_FLUX}"
_NOTHING = Shape(0, 0, 0, 0, 0, 0, 0, False)


@dataclass(frozen=True)
class Single:
    """What a file is. ``told`` is "" for one that can be drawn with; else what it is instead, to stand after "is"."""

    told: str = ""
    damaged: bool = False
    prefix: str = ""  # of the transformer's tensors
    original: bool = True  # in Black Forest Labs' layout, else in diffusers'
    shape: Shape = _NOTHING  # of one that can be drawn with

    @property
    def layout(self) -> Layout:
        """Of one that can be drawn with."""
        return original_layout(self.shape) if self.original else diffusers_layout(self.shape)


def is_gguf(path: Path) -> bool:
    return path.suffix.lower() == gguf_files.SUFFIX


def look(path: Path) -> Single | None:
    """What a file is; None where it has nothing of FLUX, or is damaged and does not look like FLUX by its name.

    Looked at again only when it changed.
    """
    if path.suffix.lower() not in (".safetensors", gguf_files.SUFFIX):
        return None
    try:
        state = path.stat()
    except OSError:
        return None
    return _look(path, state.st_size, state.st_mtime_ns)


def usable(path: Path) -> Single:
    """The same of a file that was found to be usable. Raises ModelError where it is no longer."""
    found = look(path)
    if found is None or found.told:
        told = "missing: put it there again, or choose another base model"
        if path.is_file():
            told = "no longer a file of FLUX.1: choose another base model" if found is None else found.told
        raise ModelError(f"{path} is {told}.")
    return found


def layer_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of a usable file's tensors under diffusers' names, cut as its layers are. Raises ModelError."""
    layout = usable(path).layout
    return {name: (piece.stop - piece.start, *layout.sizes[piece.name][1:]) for name, piece in layout.pieces.items()}


@lru_cache(maxsize=256)
def _look(path: Path, size: int, changed_ns: int) -> Single | None:
    fault = weights_fault(path)
    try:
        tensors = {tensor.name: tensor for tensor in read_header(path)}
    except ModelError:
        if is_gguf(path) and "flux" in path.name.lower():
            return Single(f"{fault or 'damaged'}: {_AGAIN}", damaged=True)
        return None
    found = tell(tensors, path.name, is_gguf(path))
    if found is not None and fault:
        return Single(f"{fault}: {_AGAIN}", damaged=True)
    return found


def tell(tensors: Mapping[str, StoredTensor], name: str = "", gguf: bool = False) -> Single | None:
    """What a file called ``name`` with these tensors is; None where it has nothing of FLUX."""
    if _REDUX in tensors:
        return Single(f"FLUX.1 Redux, which varies a picture it is given: {NEEDS_FLUX}")
    begins = [(prefix, first) for prefix in _PREFIXES for first in (FIRST, FIRST_HERE) if prefix + first in tensors]
    if not begins:
        return None
    prefix, first = begins[0]
    own = {known.removeprefix(prefix): tensor for known, tensor in tensors.items() if _is_own(known, prefix)}
    for marks, told in _OTHERS:
        if any(mark in known for known in own for mark in marks):
            return Single(told)
    for mark, told in _BY_NAME:
        if mark in name.lower():
            return Single(f"by its name {told}: {NEEDS_FLUX}")
    format_ = _unread_format(own, GGUF_FORMATS if gguf else _FORMATS)
    if format_:
        return Single(f"FLUX in the number format {format_}, which this program does not read: get it in bf16, fp8 or "
                      "GGUF (Q8_0, Q6_K, Q5_K, Q4_K)")  # fmt: skip
    return _with_shape(own, prefix, first == FIRST)


def _is_own(name: str, prefix: str) -> bool:
    return name.startswith(prefix) and not (not prefix and name.startswith(_BESIDE))


def _unread_format(own: Mapping[str, StoredTensor], taken: Iterable[str]) -> str:
    """The first that is not taken, of weights and not of what is said about them; "" where all are."""
    weights = [name for name in own if name.rpartition(".")[2] not in _MARKS and name != _SCALED]
    return next(iter(sorted({own[name].dtype for name in weights} - set(taken))), "")


def _with_shape(own: Mapping[str, StoredTensor], prefix: str, original: bool) -> Single:
    try:
        shape = _shape(own, original)
    except KeyError as error:
        return Single(f"incomplete (“{error.args[0]}” is missing): {_AGAIN}", damaged=True)
    except IndexError:
        return Single(_BUILT_OTHERWISE)
    if not shape.single:
        return Single(f"incomplete (its second half is missing): {_AGAIN}", damaged=True)
    if not shape.head or shape.width % shape.head:
        return Single(_BUILT_OTHERWISE)
    if shape.channels in _TASKS:
        return Single(f"{_TASKS[shape.channels]}: {NEEDS_FLUX}")
    found = Single(prefix=prefix, original=original, shape=shape)
    wrong = _wrong(own, found.layout.sizes)
    return wrong or found


def _shape(own: Mapping[str, StoredTensor], original: bool) -> Shape:
    """What the shapes of a few tensors say. Raises KeyError for one that is not there, and IndexError."""
    names = (
        ("img_in.weight", "txt_in.weight", "vector_in.in_layer.weight", "guidance_in.in_layer.weight",
         "double_blocks.0.img_attn.norm.query_norm.scale", "double_blocks.", "single_blocks.")
        if original else
        ("x_embedder.weight", "context_embedder.weight", "time_text_embed.text_embedder.linear_1.weight",
         "time_text_embed.guidance_embedder.linear_1.weight",
         "transformer_blocks.0.attn.norm_q.weight", "transformer_blocks.", "single_transformer_blocks.")
    )  # fmt: skip
    image, text, pooled, guidance, head, double, single = names
    return Shape(
        width=own[image].shape[0], channels=own[image].shape[1], joint=own[text].shape[1],
        pooled=own[pooled].shape[1], guidance=guidance in own, head=own[head].shape[0],
        double=_count(own, double), single=_count(own, single),
    )  # fmt: skip


def _count(own: Iterable[str], blocks: str) -> int:
    numbered = re.compile(re.escape(blocks) + r"(\d+)\.")
    return 1 + max((int(found[1]) for name in own if (found := numbered.match(name))), default=-1)


def _wrong(own: Mapping[str, StoredTensor], sizes: Mapping[str, tuple[int, ...]]) -> Single | None:
    """What is wrong with the tensors of a file beside what a transformer of this shape has."""
    for name, size in sizes.items():
        if name not in own:
            return Single(f"incomplete (“{name}” is missing): {_AGAIN}", damaged=True)
        if own[name].shape != size:
            shapes = f"{own[name].shape} instead of {size}"
            return Single(f"not built like FLUX.1 (“{name}” has {shapes}): {NEEDS_FLUX}")
    for name in sorted(own.keys() - sizes.keys() - {_SCALED}):
        layer, _, last = name.rpartition(".")
        if last not in _MARKS or f"{layer}.weight" not in sizes:
            return Single(f"a FLUX with more than FLUX.1 has (“{name}”), for another task: {NEEDS_FLUX}")
        shape, rows = own[name].shape, sizes[f"{layer}.weight"][0]
        if last in FACTORS and shape not in ((), (1,), (1, 1), (rows,), (rows, 1)):
            return Single(f"shortened in a way that this program does not read (“{name}” has {shape}): get it in "
                          "bf16, fp8 or GGUF")  # fmt: skip
    return None
