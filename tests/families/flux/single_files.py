"""A tiny FLUX.1 written as the single files that people pass on: Black Forest Labs' names, float8, GGUF.

The way back is the program's, so this one is written from the layout and not from any conversion. GGUF is written by
llama.cpp's own package.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Format
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]

PREFIX = "model.diffusion_model."
_ENDS = {
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "context_embedder": "txt_in", "x_embedder": "img_in", "proj_out": "final_layer.linear",
}  # fmt: skip
_DOUBLE = {
    "norm1.linear": "img_mod.lin", "norm1_context.linear": "txt_mod.lin", "attn.to_out.0": "img_attn.proj",
    "attn.to_add_out": "txt_attn.proj", "ff.net.0.proj": "img_mlp.0", "ff.net.2": "img_mlp.2",
    "ff_context.net.0.proj": "txt_mlp.0", "ff_context.net.2": "txt_mlp.2",
}  # fmt: skip
_NORMS = {"norm_q": "img_attn.norm.query_norm", "norm_k": "img_attn.norm.key_norm",
          "norm_added_q": "txt_attn.norm.query_norm", "norm_added_k": "txt_attn.norm.key_norm"}  # fmt: skip


def transformer_state(folder: Path) -> State:
    """All shards of a folder's transformer."""
    state: State = {}
    for path in sorted((folder / "transformer").glob("*.safetensors")):
        state |= load_file(path)
    return state


def original_state(state: State) -> State:
    """diffusers' transformer under Black Forest Labs' names."""
    out: State = {}
    kinds = ("weight", "bias")
    for kind in kinds:
        out |= {
            f"{there}.{kind}": state[f"{here}.{kind}"] for here, there in _ENDS.items() if f"{here}.{kind}" in state
        }
        scale, shift = state[f"norm_out.linear.{kind}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{kind}"] = torch.cat([shift, scale])
    for index in _numbers(state, "transformer_blocks."):
        here, there = f"transformer_blocks.{index}", f"double_blocks.{index}"
        for kind in kinds:
            out |= {f"{there}.{name}.{kind}": state[f"{here}.{own}.{kind}"] for own, name in _DOUBLE.items()}
            for side, names in (("img", ("to_q", "to_k", "to_v")), ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"))):
                parts = [state[f"{here}.attn.{name}.{kind}"] for name in names]
                out[f"{there}.{side}_attn.qkv.{kind}"] = torch.cat(parts)
        out |= {f"{there}.{name}.scale": state[f"{here}.attn.{own}.weight"] for own, name in _NORMS.items()}
    for index in _numbers(state, "single_transformer_blocks."):
        here, there = f"single_transformer_blocks.{index}", f"single_blocks.{index}"
        for kind in kinds:
            parts = [state[f"{here}.{name}.{kind}"] for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
            out[f"{there}.linear1.{kind}"] = torch.cat(parts)
            out[f"{there}.linear2.{kind}"] = state[f"{here}.proj_out.{kind}"]
            out[f"{there}.modulation.lin.{kind}"] = state[f"{here}.norm.linear.{kind}"]
        out[f"{there}.norm.query_norm.scale"] = state[f"{here}.attn.norm_q.weight"]
        out[f"{there}.norm.key_norm.scale"] = state[f"{here}.attn.norm_k.weight"]
    return out


def _numbers(state: State, blocks: str) -> list[int]:
    return sorted({int(name.removeprefix(blocks).split(".")[0]) for name in state if name.startswith(blocks)})


# --- ways to write it -----------------------------------------------------------------------------
#: Writes a state under original names to a path, and returns what the numbers in the file truly are, in float32.
Writer = Callable[[State, Path], State]


def is_matrix(name: str, tensor: torch.Tensor) -> bool:
    """Whether it is of the weights that are shortened: those of the blocks."""
    return tensor.dim() == 2 and "_blocks." in name


def in_dtype(dtype: torch.dtype, prefix: str = "") -> Writer:
    def write(state: State, path: Path) -> State:
        stored = {name: tensor.to(dtype) for name, tensor in state.items()}
        save_file({prefix + name: tensor.contiguous() for name, tensor in stored.items()}, path)
        return {name: tensor.float() for name, tensor in stored.items()}

    return write


def with_everything(state: State, path: Path) -> State:
    """As ComfyUI's: float8, a prefix per part, and parts beside it."""
    stored = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in state.items()}
    others = {"vae.decoder.conv_in.weight": torch.zeros(2), "text_encoders.clip_l.logit_scale": torch.zeros(1),
              "text_encoders.t5xxl.transformer.shared.weight": torch.zeros(2, 2).to(torch.float8_e4m3fn)}  # fmt: skip
    save_file({PREFIX + name: tensor.contiguous() for name, tensor in stored.items()} | others, path)
    return {name: tensor.float() for name, tensor in stored.items()}


def scaled(factor: str, per_row: bool) -> Writer:
    """float8 with a factor for each layer of the blocks; the rest in bfloat16."""

    def write(state: State, path: Path) -> State:
        stored: State = {"scaled_fp8": torch.zeros(2).to(torch.float8_e4m3fn)}
        true: State = {}
        for name, tensor in state.items():
            if not is_matrix(name, tensor):
                stored[name] = tensor.bfloat16()
                true[name] = stored[name].float()
                continue
            top = tensor.float().abs().amax(1, keepdim=True) if per_row else tensor.float().abs().max()
            by = top / 448
            stored[name] = (tensor.float() / by).to(torch.float8_e4m3fn)
            layer = name.removesuffix(".weight")
            stored[f"{layer}.{factor}"] = by
            stored[f"{layer}.scale_input"] = torch.ones(())
            stored[f"{layer}.comfy_quant"] = torch.zeros(5, dtype=torch.uint8)  # says in words what the header says
            true[name] = stored[name].float() * by
        save_file({name: tensor.contiguous() for name, tensor in stored.items()}, path)
        return true

    return write


def in_gguf(format_: Format, prefix: str = "") -> Writer:
    """The matrices of the blocks whose rows are whole blocks in this format, other matrices in F16, the rest in F32."""

    def write(state: State, path: Path) -> State:
        writer, true = gguf.GGUFWriter(path, "flux"), {}
        for number, (name, tensor) in enumerate(state.items()):
            kind = Format.F32 if tensor.dim() < 2 else Format.F16
            if is_matrix(name, tensor) and tensor.shape[1] % gguf.GGML_QUANT_SIZES[format_][0] == 0:
                kind = format_
            raw = packed(tensor.float().numpy(), kind, seed=number)
            writer.add_tensor(prefix + name, raw, raw_dtype=kind)
            true[name] = torch.from_numpy(unpacked(raw, kind).copy()).view(tensor.shape)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return true

    return write


def packed(numbers: np.ndarray, kind: Format, seed: int = 0) -> np.ndarray:
    """As the package does it; formats that it cannot write get random bytes with factors that make small weights."""
    if kind in (Format.F32, Format.F16):
        return gguf.quantize(numbers, kind)
    try:
        return gguf.quantize(numbers, kind)
    except NotImplementedError:
        return random_blocks(kind, numbers.shape, seed)


#: Where in a block its factors (float16) are, of the formats that the package cannot write.
_FACTORS = {Format.Q2_K: (80, 82), Format.Q3_K: (108,), Format.Q4_K: (0, 2), Format.Q5_K: (0, 2), Format.Q6_K: (208,),
            Format.IQ4_NL: (0,), Format.IQ4_XS: (0,)}  # fmt: skip


def random_blocks(kind: Format, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """(rows, bytes of a row) uint8."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (shape[0], shape[1] // block, size), dtype=np.uint8)
    for place in _FACTORS[kind]:
        small = random.uniform(1e-5, 1e-4, blocks.shape[:2]).astype(np.float16)
        blocks[:, :, place : place + 2] = small[:, :, None].view(np.uint8)
    return blocks.reshape(shape[0], -1)


def unpacked(raw: np.ndarray, kind: Format) -> np.ndarray:
    """As the package does it, in float32."""
    return raw.astype(np.float32) if kind in (Format.F32, Format.F16) else gguf.dequantize(raw, kind)


@dataclass(frozen=True)
class Written:
    """A folder, and a file beside it with the same numbers."""

    folder: Path
    file: Path


def write_both(source: Path, models: Path, name: str, write: Writer) -> Written:
    """``name`` in ``models``, written of the transformer of ``source``, and the folder "whole" with its true numbers.

    The folder lies beside ``models``, so that it lends nothing.
    """
    state = transformer_state(source)
    models.mkdir(parents=True, exist_ok=True)
    true = write(original_state(state), models / name)
    folder = models.parent / "whole" / "whole"
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("diffusion_pytorch_model*"))
    shutil.copy(next((source / "vae").glob("*.safetensors")), folder / "vae")
    save_file(_back(true, state), folder / "transformer" / "diffusion_pytorch_model.safetensors")
    return Written(folder, models / name)


def _back(true: State, like: State) -> State:
    """``true`` under the names of ``like``: each place of a file is followed by its number."""
    numbered, start = {}, 0
    for name, tensor in like.items():
        numbered[name] = torch.arange(start, start + tensor.numel(), dtype=torch.int64).view(tensor.shape)
        start += tensor.numel()
    flat = torch.empty(start)
    for name, places in original_state(numbered).items():
        flat[places.flatten()] = true[name].flatten()
    return {name: flat[places].contiguous() for name, places in numbered.items()}
