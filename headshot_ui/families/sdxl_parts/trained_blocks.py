"""Transformer blocks of a UNet whose LoRA is being trained, in fewer kernels than diffusers' own, with its numbers.

Query, key and value are made together (``lora_parts.linear``), attention's factors of 1 are left out, and the two
halves of the gated GELU are never one tensor that would have to be taken apart and put together.

What feed-forward layers keep for the way back is nearly half of all that a step keeps, and takes an eighth of its
products to compute again (``benchmarks/activations.py`` counts both), so they can do without (``compute_again``).
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F

from headshot_ui.families.lora_parts import linear
from headshot_ui.families.requests import CompilingFigures, Repeated

_AGAIN = "_headshot_ui_again"


def speed_up(unet: Any, adapter: str) -> None:
    """Train the LoRA ``adapter``, which is on attention and feed-forward layers, with these blocks."""
    attentions = list(_attentions(unet))
    together: list[tuple[Any, ...]] = []
    for attention in attentions:
        keys = (attention.to_k, attention.to_v)
        together += [(attention.to_q,), keys] if attention.is_cross_attention else [(attention.to_q, *keys)]
    linear.speed_up(unet, adapter, together)
    for attention in attentions:
        attention.__dict__["_own_processor"] = attention.processor
        attention.set_processor(Attending())
    for layers in _feed_forwards(unet):
        layers.forward = MethodType(_fed_forward, layers)  # a partial is another to a compiler in each block


def slow_down(unet: Any) -> None:
    """diffusers' own blocks again."""
    for attention in _attentions(unet):
        own = attention.__dict__.pop("_own_processor", None)
        if own is not None:
            attention.set_processor(own)
    for layers in _feed_forwards(unet):
        layers.__dict__.pop("forward", None)
    linear.slow_down(unet)


def compute_again(unet: Any, enabled: bool) -> None:
    """Whether feed-forward layers, while these blocks train, compute again on the way back instead of keeping."""
    for layers in _feed_forwards(unet):
        layers.__dict__.update({_AGAIN: True}) if enabled else layers.__dict__.pop(_AGAIN, None)


def repeated(unet: Any) -> tuple[Repeated, ...]:
    """Its transformer blocks and residual blocks, trained or not."""
    from diffusers.models.resnet import ResnetBlock2D

    residual = (block for block in unet.modules() if isinstance(block, ResnetBlock2D))
    return tuple(Repeated(block, "forward") for block in (*_blocks(unet), *residual))


#: One NVIDIA H200, bfloat16, torch 2.11 (``benchmarks/results/compiled-h200.json``): a step of 1024 px took 0.0660 s
#: instead of 0.0725; the first one 63.1 s (a busy computer) and 9.1 s.
COMPILING = CompilingFigures(saved=0.09, cold_seconds=63.0, warm_seconds=9.1, cores=16)


def _attentions(unet: Any) -> Iterator[Any]:
    """Those of transformer blocks: nothing is added or divided after them."""
    return (attention for block in _blocks(unet) for attention in (block.attn1, block.attn2) if attention is not None)


def _feed_forwards(unet: Any) -> Iterator[Any]:
    """Those of transformer blocks: a gated GELU, a dropout of nothing and a linear layer."""
    return (block.ff for block in _blocks(unet))


def _blocks(unet: Any) -> Iterator[Any]:
    from diffusers.models.attention import BasicTransformerBlock

    return (block for block in unet.modules() if isinstance(block, BasicTransformerBlock))


class Attending:
    """Scaled dot-product attention, as ``diffusers.models.attention_processor.AttnProcessor2_0`` without masks."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """(B, tokens, channels) to the same; ``encoder_hidden_states`` (B, words, …) makes it cross-attention."""
        if encoder_hidden_states is None:
            heads = linear.group_of(attn.to_q)(hidden_states)
        else:
            query = linear.group_of(attn.to_q)(hidden_states)
            heads = (query, *linear.group_of(attn.to_k)(encoder_hidden_states))
        query, key, value = (tensor.unflatten(-1, (attn.heads, -1)).transpose(1, 2) for tensor in heads)
        out = F.scaled_dot_product_attention(query, key, value)
        projected: torch.Tensor = attn.to_out[0](out.transpose(1, 2).flatten(2))
        return projected


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        again: bool,
        scales: tuple[float, float],
        downs: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        down: torch.Tensor,
        up: torch.Tensor,
        up_copy: torch.Tensor,
        last_downs: torch.Tensor,
        last_weight: torch.Tensor,
        last_bias: torch.Tensor | None,
        last_down: torch.Tensor,
        last_up: torch.Tensor,
        last_up_copy: torch.Tensor,
    ) -> torch.Tensor:
        """(…, in) to (…, out): the first n outputs of a layer of 2n times the GELU of the others, then a layer.

        With ``again`` what lies between is computed a second time on the way back: 12 numbers of 13 are not kept.
        """
        rows = x.reshape(-1, x.shape[-1])
        inner = rows @ downs.T
        kept = _between(rows, inner, weight, bias, up_copy, scales[0])
        hidden = kept[-1]
        last_inner = hidden @ last_downs.T
        last = linear.Piece(last_weight, last_bias, last_up_copy, slice(0, last_up_copy.shape[1]))
        out = linear.forwards(hidden, last_inner, last, scales[1])
        layers = (downs, weight, bias, up_copy, last_downs, last_weight, last_up_copy)
        ctx.save_for_backward(rows, inner, last_inner, *layers, *(() if again else kept))
        ctx.scales, ctx.shape = scales, x.shape
        return out.reshape(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        rows, inner, last_inner, downs, weight, bias, up_copy, last_downs, last_weight, last_up_copy, *kept = (
            ctx.saved_tensors
        )
        value, gate, hidden = kept or _between(rows, inner, weight, bias, up_copy, ctx.scales[0], after=grad)
        last = linear.Piece(last_weight, None, last_up_copy, slice(0, last_up_copy.shape[1]))
        to_hidden, to_last_down, (to_last_up,) = linear.backwards(
            [grad.reshape(-1, grad.shape[-1])], [last], hidden, last_inner, last_downs, ctx.scales[1], True
        )
        assert to_hidden is not None
        grads = [F.gelu(gate).mul_(to_hidden), torch.ops.aten.gelu_backward(to_hidden * value, gate)]
        to_rows, to_down, to_ups = linear.backwards(
            grads, _halves(weight, None, up_copy), rows, inner, downs, ctx.scales[0], ctx.needs_input_grad[0]
        )
        to_x = None if to_rows is None else to_rows.reshape(ctx.shape)
        to_layer, to_last = (to_down, torch.cat(to_ups), None), (to_last_down, to_last_up, None)
        return to_x, None, None, None, None, None, *to_layer, None, None, None, *to_last


def _between(
    rows: torch.Tensor,
    inner: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    up: torch.Tensor,
    scale: float,
    after: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What the gated layer makes of its (N, in): value, gate, and value times the GELU of the gate, (N, n) each."""
    value, gate = (linear.forwards(rows, inner, piece, scale, after) for piece in _halves(weight, bias, up))
    return value, gate, F.gelu(gate).mul_(value)


def _halves(weight: torch.Tensor, bias: torch.Tensor | None, up: torch.Tensor) -> list[linear.Piece]:
    """Value and gate apart: kernels are twice as fast on what lies in one piece."""
    biases = (None, None) if bias is None else bias.chunk(2)
    whole = slice(0, up.shape[1])
    return [linear.Piece(*parts, whole) for parts in zip(weight.chunk(2), biases, up.chunk(2), strict=True)]


def _fed_forward(layers: Any, hidden_states: torch.Tensor, *_: Any) -> torch.Tensor:
    out: torch.Tensor
    if not torch.is_grad_enabled():
        out = type(layers).forward(layers, hidden_states)
        return out
    x, scale, *gated = linear.group_of(layers.net[0].proj).tensors(hidden_states)
    _, last_scale, *last = linear.group_of(layers.net[2]).tensors(x)
    out = _FeedForward.apply(x, getattr(layers, _AGAIN, False), (scale, last_scale), *gated, *last)
    return out
