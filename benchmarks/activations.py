"""What a training step of Stable Diffusion XL keeps for the way back, and what computing it again takes, by level.

    python benchmarks/activations.py        print both for each level of gradient checkpointing (half a minute on a CPU)

Counted, not measured: the full-size UNet with the program's own training blocks, bfloat16, LoRA of rank 32, batch 1 at
1024 x 1024, on torch's "meta" device, which has shapes and no numbers. Kept is every storage that autograd saves and
that is no weight; attention is taken to keep what fused kernels keep (query, key, value, result, and one float32 for
each row). A multiplication and an addition are two operations.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

RANK, SIDE, WORDS = 32, 128, 77
GIB = 2**30


def loaded_outline(size: str = "full") -> Any:
    """A base whose UNet has shapes only, with a LoRA in training on it."""
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.families.sdxl_parts.load import SdxlModules
    from headshot_ui.families.sdxl_parts.loaded import LoadedSdxl
    from headshot_ui.families.shared_parts.load import quiet
    from headshot_ui.prove.random_models import build_part

    with torch.device("meta"), quiet():
        unet = build_part("base", "unet", size).to(torch.bfloat16).requires_grad_(False).eval()
        info = BaseInfo("outline", "sdxl", "Shapes only", Path(), "", "", 1024)
        loaded = LoadedSdxl(info, SdxlModules(unet, None, (), (None, None), {}, True), "meta")
        loaded.add_trainable_lora(RANK, RANK, 0)
    return loaded


def forwards(loaded: Any, side: int = SIDE) -> torch.Tensor:
    """One pass of batch 1 with its gradients to come."""
    unet = loaded.modules.unet
    config = unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, device="meta", dtype=unet.dtype)

    added = {"text_embeds": empty(1, pooled), "time_ids": empty(1, 6)}
    text = empty(1, WORDS, config.cross_attention_dim)
    found: torch.Tensor = unet(
        empty(1, 4, side, side), empty(1), encoder_hidden_states=text, added_cond_kwargs=added
    ).sample
    return found


def kept_bytes(loaded: Any, level: str, side: int = SIDE) -> int:
    """Bytes kept at the end of the way forward."""
    unet = loaded.modules.unet
    tensors = [*unet.parameters(), *unet.buffers()]
    seen = {tensor.untyped_storage()._cdata for tensor in tensors}
    kept: list[torch.Tensor] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage()._cdata not in seen:
            seen.add(tensor.untyped_storage()._cdata)
            kept.append(tensor)
        return tensor

    loaded.checkpoint_gradients(level)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), _fused_attention():
        forwards(loaded, side)
    loaded.checkpoint_gradients("none")
    return sum(tensor.untyped_storage().nbytes() for tensor in kept)


def step_tflop(loaded: Any, level: str, side: int = SIDE) -> float:
    """Of the products of a step: forwards, and backwards to the inputs of layers and to the LoRA."""
    from torch.utils.flop_counter import FlopCounterMode

    loaded.checkpoint_gradients(level)
    added = {torch.ops.aten.addmm_: _product}  # the counter knows only the one that is not in place
    with FlopCounterMode(display=False, custom_mapping=added) as counter:
        forwards(loaded, side).sum().backward()  # type: ignore[no-untyped-call]
    loaded.checkpoint_gradients("none")
    return float(counter.get_total_flops()) / 1e12


def _product(_: Any, a: torch.Size, b: torch.Size, *, out_shape: Any = None, **__: Any) -> int:
    return 2 * a[0] * a[1] * b[1]


@contextmanager
def _fused_attention() -> Iterator[None]:
    """Without numbers torch takes attention apart and would keep every weight of it, as no kernel of a card does."""
    whole = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _Fused.apply
    try:
        yield
    finally:
        F.scaled_dot_product_attention = whole


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:3], dtype=torch.float32))
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        raise NotImplementedError("only what is kept is counted")


def main() -> int:
    from headshot_ui.specs import CHECKPOINTING

    loaded = loaded_outline()
    for level in CHECKPOINTING:
        kept, work = kept_bytes(loaded, level) / GIB, step_tflop(loaded, level)
        print(f"{level}: {kept:.2f} GiB kept, {work:.2f} TFLOP a step")
    return 0


if __name__ == "__main__":
    sys.exit(main())
