"""Switches that a step is timed with beside one without: attention, convolutions, products. Each is a context."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@dataclass(frozen=True)
class Setting:
    """What is measured, as far as switches depend on it."""

    model: str  # "sdxl" or "flux"
    work: str  # "train" or "draw"
    device: str
    dtype: torch.dtype
    module: Any  # the denoiser


@dataclass(frozen=True)
class Switch:
    """Something that is set for the length of a block."""

    name: str
    says: str
    on: Callable[[Setting], AbstractContextManager[Any]]
    why_not: Callable[[Setting], str]  # "" where it can be tried


# --- attention ----------------------------------------------------------------------------------------
def _attention(name: str, backend: SDPBackend, why_not: Callable[[Setting], str]) -> Switch:
    return Switch(f"attention-{name}", f"attention by {name} alone", lambda _: sdpa_kernel(backend), why_not)


def _anywhere(_: Setting) -> str:
    return ""


def _on_cuda(setting: Setting) -> str:
    return "" if setting.device == "cuda" else "it is for CUDA cards"


def _cudnn_attention(setting: Setting) -> str:
    if setting.model == "flux" and setting.work == "train":
        return "FLUX.1 is not trained with it: with torch 2.11 its gradients fail at some lengths"
    return _on_cuda(setting)


# --- convolutions -------------------------------------------------------------------------------------
@contextmanager
def _channels_last(setting: Setting) -> Iterator[None]:
    """Weights of convolutions in NHWC, so that activations come in it too; then as they were."""
    setting.module.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        setting.module.to(memory_format=torch.contiguous_format)


@contextmanager
def _timed_convolutions(_: Setting) -> Iterator[None]:
    """cuDNN times its ways of computing a convolution at the first call of each shape and keeps to the fastest."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def _with_convolutions(setting: Setting) -> str:
    return "" if setting.model == "sdxl" else "there are no convolutions"


# --- products -----------------------------------------------------------------------------------------
_WHOLE, _HALF = "allow_bf16_reduced_precision_reduction", "allow_fp16_accumulation"


def _product_setting(name: str, value: bool) -> Callable[[Setting], AbstractContextManager[None]]:
    @contextmanager
    def on(_: Setting) -> Iterator[None]:
        products = torch.backends.cuda.matmul
        before = getattr(products, name)
        setattr(products, name, value)
        try:
            yield
        finally:
            setattr(products, name, before)

    return on


def _needs(dtype: torch.dtype, name: str) -> Callable[[Setting], str]:
    def why_not(setting: Setting) -> str:
        if setting.dtype != dtype:
            return f"it is for {str(dtype).removeprefix('torch.')}"
        try:
            getattr(torch.backends.cuda.matmul, name)
        except AttributeError:
            return "this torch does not have it"
        return _on_cuda(setting)

    return why_not


#: In the order in which they are tried. Attention by cuDNN comes last: an error of its kernels ends all work on a card.
SWITCHES = (
    Switch("channels-last", "weights of convolutions in NHWC", _channels_last, _with_convolutions),
    Switch("cudnn-benchmark", "cuDNN times its convolutions", _timed_convolutions, _with_convolutions),
    _attention("flash", SDPBackend.FLASH_ATTENTION, _anywhere),
    _attention("efficient", SDPBackend.EFFICIENT_ATTENTION, _on_cuda),
    Switch("whole-reductions", "parts of a product are added in 32 bit",
           _product_setting(_WHOLE, False), _needs(torch.bfloat16, _WHOLE)),
    Switch("fp16-accumulation", "products are added up in 16 bit",
           _product_setting(_HALF, True), _needs(torch.float16, _HALF)),
    _attention("cudnn", SDPBackend.CUDNN_ATTENTION, _cudnn_attention),
)  # fmt: skip

NOTHING = Switch("as it is", "as the program computes", lambda _: nullcontext(), _anywhere)
