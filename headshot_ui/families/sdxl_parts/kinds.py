"""What a single model file is, told from the names and shapes in its header: nothing is loaded, no pickle is opened.

A checkpoint of SDXL in its original layout holds ``model.diffusion_model.…`` (UNet), ``conditioner.embedders.N.…``
(text encoders) and ``first_stage_model.…`` (VAE). The shapes are compared with those of the published configs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import weights_fault
from headshot_ui.families.protocol import BaseInfo, RefinerInfo
from headshot_ui.families.sdxl_parts.files import published
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.memory import StoredTensor, read_header

#: PART is something that belongs to a model, or to another network of this program; it is no mistake that it is there.
BASE, REFINER, PART, OTHER, DAMAGED = "base", "refiner", "part", "other", "damaged"
UNET, VAE = "model.diffusion_model.", "first_stage_model."
BASE_PARTS = (
    ("unet", UNET),
    ("vae", VAE),
    ("text_encoder", "conditioner.embedders.0."),
    ("text_encoder_2", "conditioner.embedders.1."),
)
REFINER_PARTS = (("unet", UNET),)
PART_NAMES = {
    "unet": "UNet",
    "vae": "VAE",
    "text_encoder": "first text encoder",
    "text_encoder_2": "second text encoder",
}

PICKLES = (".ckpt", ".pt", ".bin")  # .pth are the networks for faces, which have folders of their own
UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".download", ".aria2", ".tmp")
GET_SAFETENSORS = "get the .safetensors version of this model"
NEEDS_SDXL = "choose a checkpoint of Stable Diffusion XL"

#: What is in the names of the tensors of something else, and what that is.
_OTHERS: Sequence[tuple[tuple[str, ...], str]] = (
    ((".lora_down.", ".lora_up.", ".lora_A.", ".lora_B.", ".hada_w1_", ".lokr_w", ".lora.up.", ".oft_diag"),
     "a LoRA, which changes a base model and is none: keep it elsewhere and choose it as the LoRA of a job"),
    (("control_model.", "controlnet_cond_embedding.", "controlnet_blocks."), f"a ControlNet: {NEEDS_SDXL}"),
    (("ip_adapter.", "image_proj."), f"an IP-Adapter: {NEEDS_SDXL}"),
    (("joint_blocks.0.",), f"a checkpoint of Stable Diffusion 3, another family: {NEEDS_SDXL}"),
    (("double_blocks.0.", "single_transformer_blocks.0."), f"a checkpoint of FLUX, another family: {NEEDS_SDXL}"),
    (("edm_mean",), f"a checkpoint of Playground v2.5, whose latents mean something else: {NEEDS_SDXL}"),
    (("cond_stage_model.transformer.",), f"a checkpoint of Stable Diffusion 1, another family: {NEEDS_SDXL}"),
    (("cond_stage_model.model.",), f"a checkpoint of Stable Diffusion 2, another family: {NEEDS_SDXL}"),
    (("emb_params", "string_to_param"), f"a textual inversion (embedding): {NEEDS_SDXL}"),
)  # fmt: skip
_QUANTISED = (".weight_scale", ".scale_weight", ".absmax", ".quant_state", "scaled_fp8")
_SDXL_MARK = f"{UNET}label_emb.0.0.weight"  # the size conditions, which SD 1 and 2 have not
_CONTEXTS = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2"}


@dataclass(frozen=True)
class Kind:
    """What a file or folder is."""

    name: str  # BASE, REFINER, PART, OTHER or DAMAGED
    told: str = ""  # of the last three: what it is and what to do, to stand after "… is "


def kind_of(path: Path) -> Kind:
    """What a file is; looked at again only when it changed."""
    lower = path.name.lower()
    if lower.endswith(UNFINISHED):
        return Kind(DAMAGED, "a download that did not end: go on with it, or get the file again")
    if lower.endswith(PICKLES):
        return Kind(OTHER, f"a pickle, which can run any program when it is opened, so it is not: {GET_SAFETENSORS}, "
                           "or convert it with a program you trust")  # fmt: skip
    if lower.endswith(".gguf"):
        return Kind(OTHER, f"a GGUF file, whose weights are shortened for other programs: {GET_SAFETENSORS}")
    try:
        state = path.stat()
    except OSError as error:
        return Kind(DAMAGED, f"not readable ({error.strerror}): check the disk and who owns the file")
    return _kind_of(path, state.st_size, state.st_mtime_ns, str(published("base")))


@lru_cache(maxsize=512)
def _kind_of(path: Path, size: int, changed_ns: int, published_in: str) -> Kind:
    fault = weights_fault(path)
    if fault:
        return Kind(DAMAGED, f"{_unlike_safetensors(path) or fault}: get it again")
    tensors = {tensor.name: tensor for tensor in read_header(path)}
    return tell(tensors)


def _unlike_safetensors(path: Path) -> str:
    """What else lies under that name, as failed downloads leave it."""
    with path.open("rb") as file:
        start = file.read(64).lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page and not a model (its address asks for a login or was moved)"
    if start.startswith(b"version https://git-lfs"):
        return "only a pointer of Git LFS to a model"
    return "a pickle under the name of a safetensors file" if start.startswith((b"pk\x03\x04", b"\x80\x02")) else ""


def tell(tensors: Mapping[str, StoredTensor]) -> Kind:
    """What tensors of these names, shapes and formats are."""
    for marks, told in _OTHERS:
        if any(mark in name for name in tensors for mark in marks):
            return Kind(OTHER, told)
    if _SDXL_MARK not in tensors:
        return _without_mark(tensors)
    number = _numbers(tensors)
    if number:
        return Kind(OTHER, number)
    channels = _shape(tensors, f"{UNET}input_blocks.0.0.weight", 1)
    if channels == 9:
        return Kind(OTHER, f"an inpainting checkpoint, which draws only with a mask: {NEEDS_SDXL} for text to image")
    if channels != 4:
        return Kind(OTHER, f"an SDXL network with {channels} input channels, for another task: {NEEDS_SDXL}")
    return _base_or_refiner(tensors)


def _base_or_refiner(tensors: Mapping[str, StoredTensor]) -> Kind:
    context = next((tensor.shape[1] for name, tensor in tensors.items() if name.endswith("attn2.to_k.weight")), 0)
    widths = (_shape(tensors, _SDXL_MARK, 1), context, _shape(tensors, f"{UNET}input_blocks.0.0.weight", 0))
    for name in (BASE, REFINER):
        config = read_json_file(published(name) / "unet" / "config.json")
        same = (
            config["projection_class_embeddings_input_dim"],
            config["cross_attention_dim"],
            config["block_out_channels"][0],
        )
        if widths == same:
            return _whole_unet(tensors, config) or (Kind(REFINER) if name == REFINER else _whole_base(tensors))
    return Kind(OTHER, f"built like SDXL, but with other widths ({', '.join(map(str, widths))}): {NEEDS_SDXL}")


def _whole_unet(tensors: Mapping[str, StoredTensor], config: Mapping[str, Any]) -> Kind | None:
    """What is wrong with the length of the UNet; distilled ones have fewer blocks."""
    depth = config["transformer_layers_per_block"]
    depth = depth[-1] if isinstance(depth, list) else depth
    last, beyond = (f"{UNET}middle_block.1.transformer_blocks.{n}.norm1.weight" for n in (depth - 1, depth))
    if last in tensors and beyond not in tensors:
        return None
    return Kind(OTHER, f"an SDXL network with fewer or more blocks (a distilled one, such as SSD-1B): {NEEDS_SDXL}")


def _whole_base(tensors: Mapping[str, StoredTensor]) -> Kind:
    missing = [PART_NAMES[part] for part, prefix in BASE_PARTS if not any(name.startswith(prefix) for name in tensors)]
    if missing:
        return Kind(OTHER, f"a checkpoint without {' and '.join(missing)}: get the complete checkpoint of this model")
    words = {"text_encoder": "conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight",
             "text_encoder_2": "conditioner.embedders.1.model.token_embedding.weight"}  # fmt: skip
    for part, name in words.items():
        config = read_json_file(published(BASE) / part / "config.json")
        shape = tensors[name].shape if name in tensors else ()
        if shape != (config["vocab_size"], config["hidden_size"]):
            return Kind(OTHER, f"a checkpoint with another {PART_NAMES[part]} than SDXL has: {NEEDS_SDXL}")
    return Kind(BASE)


def _without_mark(tensors: Mapping[str, StoredTensor]) -> Kind:
    """What it is that has no UNet of SDXL."""
    context = next((tensor.shape[1] for name, tensor in tensors.items() if "attn2.to_k.weight" in name), 0)
    if context in _CONTEXTS:
        return Kind(OTHER, f"a network of {_CONTEXTS[context]}, another family: {NEEDS_SDXL}")
    if any(name.startswith(("down_blocks.", "mid_block.")) for name in tensors):
        return Kind(OTHER, "a UNet alone, without text encoders and VAE: get the complete checkpoint of this model")
    if any(name.removeprefix(VAE).startswith(("decoder.conv_in.", "quant_conv.")) for name in tensors):
        return Kind(PART, f"a VAE alone, which is one part of a base model: {NEEDS_SDXL}")
    if any(name.startswith(("text_model.", "encoder.layers.", "transformer.resblocks.")) for name in tensors):
        return Kind(PART, f"a text encoder alone, which is one part of a base model: {NEEDS_SDXL}")
    return Kind(PART, f"of a kind that is not drawn with: {NEEDS_SDXL}")


def _numbers(tensors: Mapping[str, StoredTensor]) -> str:
    """What is wrong with the number format; "" where nothing is."""
    kinds = {tensor.dtype for name, tensor in tensors.items() if name.startswith((UNET, VAE, "conditioner."))}
    if any(kind.startswith("F8") for kind in kinds):
        return "stored in fp8, eight bits a number, which loses what training needs: get the fp16 version of this model"
    if any(name.endswith(_QUANTISED) for name in tensors) or kinds & {"U8", "I8"}:
        return "quantised for other programs: get the fp16 version of this model"
    return ""


def read_schedule(info: BaseInfo | RefinerInfo) -> dict[str, Any]:
    """The scheduler's config of a model, with what a checkpoint itself says of it. Raises ModelError.

    Checkpoints trained to predict "v" mark it by an empty tensor of that name; without minding it they draw noise.
    """
    config = read_json_file(info.folder / "scheduler" / "scheduler_config.json")
    if info.checkpoint is None:
        return config
    marks = {tensor.name for tensor in read_header(info.checkpoint)} & {"v_pred", "ztsnr"}
    if "v_pred" in marks:
        config |= {"prediction_type": "v_prediction"}
    if "ztsnr" in marks:  # trained up to pure noise
        config |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "steps_offset": 0}
    return config


def _shape(tensors: Mapping[str, StoredTensor], name: str, axis: int) -> int:
    shape = tensors[name].shape if name in tensors else ()
    return shape[axis] if axis < len(shape) else 0


def check_checkpoint(path: Path, wanted: str) -> None:
    """Raise ModelError unless a file is a whole BASE or REFINER, saying what it is instead."""
    if not path.is_file():
        raise ModelError(f"{path} is missing: put it there again, or choose another model.")
    kind = kind_of(path)
    if kind.name == wanted:
        return
    raise ModelError(f"{path} is {kind.told or f'a {kind.name}, not a {wanted}: choose another'}.")
