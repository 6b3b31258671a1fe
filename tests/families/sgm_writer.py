"""A model in diffusers layout written as the single file that its makers publish: other names, other shapes, one prefix
per part. The way back is the program's, so this one is written from the layout and not from any conversion."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

State = dict[str, torch.Tensor]

_RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
           "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}  # fmt: skip
_UNET_ENDS = {"conv_in": "input_blocks.0.0", "time_embedding.linear_1": "time_embed.0",
              "time_embedding.linear_2": "time_embed.2", "add_embedding.linear_1": "label_emb.0.0",
              "add_embedding.linear_2": "label_emb.0.2", "conv_norm_out": "out.0", "conv_out": "out.2"}  # fmt: skip
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_CLIP = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj",
         "self_attn.out_proj": "attn.out_proj"}  # fmt: skip


def write_checkpoint(folder: Path, path: Path, more: State | None = None) -> Path:
    """Write all parts of ``folder``, with ``more`` in place of or beside them, to ``path`` and return ``path``."""
    save_file(checkpoint_of(folder) | (more or {}), path)
    return path


def checkpoint_of(folder: Path) -> State:
    """The parts that are in ``folder``; a refiner has only the first."""
    names = ("unet", "vae", "text_encoder", "text_encoder_2")
    return checkpoint_from({name: _part(folder, name) for name in names if (folder / name).is_dir()})


def checkpoint_from(parts: dict[str, State]) -> State:
    """The same of parts by name as they are in diffusers' classes; without numbers (``meta``) it tells the shapes."""
    state = {f"model.diffusion_model.{name}": tensor for name, tensor in _unet(parts["unet"]).items()}
    if "vae" in parts:
        state |= {f"first_stage_model.{name}": tensor for name, tensor in _vae(parts["vae"]).items()}
        first = "conditioner.embedders.0.transformer.text_model."
        state |= {first + _bare(name): tensor for name, tensor in parts["text_encoder"].items()}
        second = _open_clip(parts["text_encoder_2"])
        state |= {f"conditioner.embedders.1.model.{name}": tensor for name, tensor in second.items()}
    return {name: tensor.contiguous() for name, tensor in state.items()}


def _part(folder: Path, part: str) -> State:
    (file,) = (folder / part).glob("*.safetensors")
    return load_file(file)


def _bare(name: str) -> str:
    return name.removeprefix("text_model.")


def _unet(state: State) -> State:
    layers = 1 + max(int(found[1]) for name in state if (found := re.match(r"down_blocks\.0\.resnets\.(\d+)", name)))
    return {_unet_name(name, layers, state): tensor for name, tensor in state.items()}


def _unet_name(name: str, layers: int, state: State) -> str:
    module, _, kind = name.rpartition(".")
    if module in _UNET_ENDS:
        return f"{_UNET_ENDS[module]}.{kind}"
    if found := re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        place = 2 * int(found[2]) if found[1] == "resnets" else 1
        return f"middle_block.{place}.{_in_block(found[1], found[3])}"
    found = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.+)", name)
    assert found, name
    way, block, what, layer, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    if way == "down":
        first = 1 + block * (layers + 1)
        if what == "downsamplers":
            return f"input_blocks.{first + layers}.0.op.{kind}"
        return f"input_blocks.{first + layer}.{int(what == 'attentions')}.{_in_block(what, rest)}"
    first = block * (layers + 1)
    if what == "upsamplers":
        attends = any(other.startswith(f"up_blocks.{block}.attentions") for other in state)
        return f"output_blocks.{first + layers}.{1 + attends}.conv.{kind}"
    return f"output_blocks.{first + layer}.{int(what == 'attentions')}.{_in_block(what, rest)}"


def _in_block(what: str, rest: str) -> str:
    module, _, kind = rest.rpartition(".")
    return f"{_RESNET[module]}.{kind}" if what == "resnets" else rest


def _vae(state: State) -> State:
    blocks = 1 + max(int(found[1]) for name in state if (found := re.match(r"decoder\.up_blocks\.(\d+)", name)))
    made = {}
    for name, tensor in state.items():
        new = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
        new = re.sub(r"down_blocks\.(\d)\.resnets", r"down.\1.block", new)
        new = re.sub(r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample", new)
        new = re.sub(r"up_blocks\.(\d)\.resnets", lambda found: f"up.{blocks - 1 - int(found[1])}.block", new)
        new = re.sub(r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{blocks - 1 - int(found[1])}.upsample", new)
        new = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", new)
        if found := re.match(r"(\w+)\.mid_block\.attentions\.0\.(.+)\.(weight|bias)", new):
            new = f"{found[1]}.mid.attn_1.{_ATTENTION[found[2]]}.{found[3]}"
            tensor = tensor[:, :, None, None] if tensor.dim() == 2 else tensor  # a convolution of one pixel there
        made[new] = tensor
    return made


def _open_clip(state: State) -> State:
    made: State = {}
    for name, tensor in state.items():
        bare = _bare(name)
        if found := re.match(r"encoder\.layers\.(\d+)\.self_attn\.q_proj\.(weight|bias)", bare):
            three = [state[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            made[f"transformer.resblocks.{found[1]}.attn.in_proj_{found[2]}"] = torch.cat(three)
        elif found := re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", bare):
            if found[2] in _CLIP:
                made[f"transformer.resblocks.{found[1]}.{_CLIP[found[2]]}.{found[3]}"] = tensor
        elif bare == "text_projection.weight":
            made["text_projection"] = tensor.T
        elif bare.startswith("final_layer_norm"):
            made[bare.replace("final_layer_norm", "ln_final")] = tensor
        elif bare == "embeddings.token_embedding.weight":
            made["token_embedding.weight"] = tensor
        elif bare == "embeddings.position_embedding.weight":
            made["positional_embedding"] = tensor
        else:
            raise AssertionError(name)
    made["logit_scale"] = torch.tensor(4.6, dtype=torch.float16)  # in every such file, and of no use here
    return made
