"""The blocks of a FLUX.1 transformer in fewer kernels than diffusers' own, with its numbers but for rounding.

A product that is added to something is added by the same kernel (``addcmul``), which rounds once instead of twice, and
places are turned into queries and keys by one complex product instead of two real ones, a negation and a copy. While a
LoRA is trained, what reads the same input is made together (``lora_parts.linear``): query, key and value of the
picture, those of the words, and in single blocks the feed-forward layer with them. Of the full model a pass without
gradients has 1,930 kernels instead of 2,670, a training step 6,000 instead of 12,600 with peft's layers.

Shapes: B batch, S tokens of words and picture, W words, D width of the transformer, H heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from headshot_ui.families.lora_parts import linear
from headshot_ui.families.requests import CompilingFigures, Repeated

#: What a block computes when its modulation is known: an attribute of each, which does the same for all of one kind.
CHANGE = "_headshot_ui_change"

Turn = tuple[torch.Tensor, torch.Tensor]  # cosine and sine of every place, (S, E) float32 each, every entry twice


def put_in(transformer: Any) -> None:
    """Have the blocks of a FluxTransformer2DModel compute like this for good."""
    for block in transformer.transformer_blocks:
        block.forward, block.__dict__[CHANGE] = partial(_double, block), partial(_double_changed, block)
    for block in transformer.single_transformer_blocks:
        block.forward, block.__dict__[CHANGE] = partial(_single, block), partial(_single_changed, block)


def repeated(transformer: Any) -> tuple[Repeated, ...]:
    """What each block computes, but for its modulation: that is two small kernels, or read from a row."""
    blocks = [*transformer.transformer_blocks, *transformer.single_transformer_blocks]
    return tuple(Repeated(block, CHANGE) for block in blocks)


#: One NVIDIA H200, bfloat16, torch 2.11 (``benchmarks/results/compiled-h200.json``): a step of 512 px took 0.1143 s
#: instead of 0.1246, one of 1024 px with checkpointing 0.584 instead of 0.629; the first one 39.3 s at most (a busy
#: computer), and 9.4 s at most with what had been compiled.
COMPILING = CompilingFigures(saved=0.07, cold_seconds=40.0, warm_seconds=10.0, cores=16)


def speed_up(transformer: Any, adapter: str) -> None:
    """Train the LoRA ``adapter``, which is on attention and feed-forward layers, until ``linear.slow_down``."""
    put_in(transformer)
    together: list[tuple[Any, ...]] = []
    for attn in (block.attn for block in transformer.transformer_blocks):
        together += [(attn.to_q, attn.to_k, attn.to_v), (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)]
    for block in transformer.single_transformer_blocks:
        together.append((block.attn.to_q, block.attn.to_k, block.attn.to_v, block.proj_mlp))
    linear.speed_up(transformer, adapter, together)


# --- blocks ---------------------------------------------------------------------------------------------
def _double(
    block: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    temb: torch.Tensor,
    image_rotary_emb: Turn,
    joint_attention_kwargs: dict[str, Any] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """``diffusers.models.transformers.transformer_flux.FluxTransformerBlock``: (B, S - W, D) and (B, W, D), changed."""
    _refuse(joint_attention_kwargs)
    numbers, word_numbers = _numbers(block.norm1, temb, 6), _numbers(block.norm1_context, temb, 6)
    changed: tuple[torch.Tensor, torch.Tensor] = block.__dict__[CHANGE](
        hidden_states, encoder_hidden_states, numbers, word_numbers, image_rotary_emb
    )
    return changed


def _double_changed(
    block: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    numbers: Sequence[torch.Tensor],
    word_numbers: Sequence[torch.Tensor],
    turn: Turn,
) -> tuple[torch.Tensor, torch.Tensor]:
    attn, words = block.attn, encoder_hidden_states.shape[1]
    queries, keys, values = linear.together(
        (attn.to_q, attn.to_k, attn.to_v), _shifted(block.norm1.norm, hidden_states, *numbers[:2])
    )
    more = linear.together(
        (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj),
        _shifted(block.norm1_context.norm, encoder_hidden_states, *word_numbers[:2]),
    )
    queries, keys, values = (_by_head(tensor, attn) for tensor in (queries, keys, values))
    word_queries, word_keys, word_values = (_by_head(tensor, attn) for tensor in more)
    out = _attended(
        torch.cat([attn.norm_added_q(word_queries), attn.norm_q(queries)], dim=1),
        torch.cat([attn.norm_added_k(word_keys), attn.norm_k(keys)], dim=1),
        torch.cat([word_values, values], dim=1),
        turn,
    )
    word_out, out = out.split_with_sizes([words, out.shape[1] - words], dim=1)
    hidden_states = torch.addcmul(hidden_states, numbers[2], attn.to_out[1](attn.to_out[0](out)))
    encoder_hidden_states = torch.addcmul(encoder_hidden_states, word_numbers[2], attn.to_add_out(word_out))
    hidden_states = _fed_forward(hidden_states, block.norm2, block.ff, numbers[3:])
    return _fed_forward(encoder_hidden_states, block.norm2_context, block.ff_context, word_numbers[3:]), hidden_states


def _single(
    block: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    temb: torch.Tensor,
    image_rotary_emb: Turn,
    joint_attention_kwargs: dict[str, Any] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Likewise ``FluxSingleTransformerBlock``."""
    _refuse(joint_attention_kwargs)
    changed: tuple[torch.Tensor, torch.Tensor] = block.__dict__[CHANGE](
        hidden_states, encoder_hidden_states, _numbers(block.norm, temb, 3), image_rotary_emb
    )
    return changed


def _single_changed(
    block: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    numbers: Sequence[torch.Tensor],
    turn: Turn,
) -> tuple[torch.Tensor, torch.Tensor]:
    attn, words = block.attn, encoder_hidden_states.shape[1]
    both, (shift, scale, gate) = torch.cat([encoder_hidden_states, hidden_states], dim=1), numbers
    *heads, inner = linear.together(
        (attn.to_q, attn.to_k, attn.to_v, block.proj_mlp), _shifted(block.norm.norm, both, shift, scale)
    )
    queries, keys, values = (_by_head(tensor, attn) for tensor in heads)
    out = _attended(attn.norm_q(queries), attn.norm_k(keys), values, turn)
    changed = torch.addcmul(both, gate, block.proj_out(torch.cat([out, block.act_mlp(inner)], dim=2)))
    encoder_hidden_states, hidden_states = changed.split_with_sizes([words, changed.shape[1] - words], dim=1)
    return encoder_hidden_states, hidden_states


def _refuse(joint_attention_kwargs: dict[str, Any] | None) -> None:
    if joint_attention_kwargs:
        raise ValueError("these blocks take no arguments for attention")


# --- parts of a block -----------------------------------------------------------------------------------
def _numbers(norm: Any, temb: torch.Tensor, count: int) -> Sequence[torch.Tensor]:
    """``count`` times (B, 1, D): shift, scale and gate, once or twice, by an AdaLayerNormZero or its single form."""
    made: torch.Tensor = norm.linear(norm.silu(temb))
    return made[:, None].chunk(count, dim=-1)


def _by_head(x: torch.Tensor, attn: Any) -> torch.Tensor:
    """(B, S, H · E) to (B, S, H, E)."""
    return x.reshape(*x.shape[:-1], -1, attn.head_dim)


def _shifted(norm: Any, x: torch.Tensor, shift: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.addcmul(shift, norm(x), 1 + scale)


def _fed_forward(x: torch.Tensor, norm: Any, layers: Any, numbers: Sequence[torch.Tensor]) -> torch.Tensor:
    shift, scale, gate = numbers
    return torch.addcmul(x, gate, layers(_shifted(norm, x, shift, scale)))


def _attended(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, turn: Turn) -> torch.Tensor:
    """(B, S, H, E) each to (B, S, H · E): attention between all tokens, which know their places by ``turn``."""
    cosine, sine = turn
    if torch.compiler.is_compiling():  # compilers know no complex numbers, and make one kernel of all this
        query, key = (_turned_in_real(tensor, cosine[:, None, ::2], sine[:, None, ::2]) for tensor in (queries, keys))
    else:
        turns = torch.complex(cosine[:, ::2], sine[:, ::2])[:, None]
        query, key = _turned(queries, turns), _turned(keys, turns)
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, values))
    if torch.compiler.is_compiling() and torch.is_grad_enabled():
        with sdpa_kernel(_SAFE_ATTENTION):  # the same as below, as a compiler understands it
            out = F.scaled_dot_product_attention(query, key, value)
    elif torch.is_grad_enabled():
        with without_cudnn_attention():
            out = F.scaled_dot_product_attention(query, key, value)
    else:
        out = F.scaled_dot_product_attention(query, key, value)
    return out.transpose(1, 2).flatten(2)


_SAFE_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@contextmanager
def without_cudnn_attention() -> Iterator[None]:
    """For attention that gradients go through: torch prefers cuDNN's on an H100 or H200, which with torch 2.11 read
    where it must not on the way back (1,536 tokens), and after such an error a process can use its card no more."""
    before: bool = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]
    torch.backends.cuda.enable_cudnn_sdp(False)
    try:
        yield
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)


def _turned(x: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Pairs of numbers of (B, S, H, E) as complex ones times ``turns`` (S, 1, E/2): rotary embeddings (RoFormer, Su
    et al. 2021, arXiv 2104.09864), in float32 as ``diffusers.models.embeddings.apply_rotary_emb``."""
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * turns).flatten(-2).to(x.dtype)


def _turned_in_real(x: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """The same without complex numbers, given (S, 1, E/2) each."""
    real, imaginary = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    turned = torch.stack([real * cosine - imaginary * sine, real * sine + imaginary * cosine], dim=-1)
    return turned.flatten(-2).to(x.dtype)
