"""Frozen linear layers in 8 bit: FLUX.1 without its modulation layers takes 8.7 GB instead of 17.3.

Each row of a weight is kept as whole numbers from -127 to 127 and one factor. For a product both become a weight in the
number format of the input, in one kernel and in memory that is free again afterwards; backwards that is done once
more, so that neither such a weight nor the input is kept. What is lost is the rounding to whole numbers, about 0.9 %
of a normal weight's spread, where float8 (e4m3) loses 2.6 %. Factors have the seven bits behind the point that
bfloat16 keeps, before the weights are divided by them, so no conversion changes them. A LoRA stands on top in its own
format, exactly.

Why not a library: what torchao and bitsandbytes do here is two dozen lines, and both cost more than they bring.
torchao's 8 bit needs torch.compile, hence Triton and a compiler, which Windows lacks, and its tensor subclasses stand
in the way of weights that travel in blocks of bytes. bitsandbytes' LLM.int8 keeps outliers aside by looking for them
on the card, where the processor waits for it in every layer, so that no step can be recorded; its NF4 took 0.93 s for
a step that takes 0.57 s in 16 bit (H200, 512 px). Here everything is plain torch of fixed shapes.

“Fast” drawing also rounds inputs and multiplies whole numbers: see ``fast_products``.

Shapes: M rows (pictures x tokens), I inputs, O outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

#: Largest whole number of a weight.
TOP = 127

Read = Callable[[str], torch.Tensor]


def rounded(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(O, I) to whole numbers (O, I) int8 and factors (O, 1) bfloat16, whose product is nearly the weight."""
    weight = weight.detach().float()
    factors = (weight.abs().amax(1, keepdim=True) / TOP).bfloat16()
    factors = torch.where(factors > 0, factors, 1)
    return (weight / factors).round().clamp(-TOP, TOP).to(torch.int8), factors


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        numbers: torch.Tensor,
        factors: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """(M, I) to (M, O), in the number format of ``rows``."""
        ctx.save_for_backward(numbers, factors)
        return torch.nn.functional.linear(rows, numbers * factors.to(rows.dtype), bias)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Any:
        numbers, factors = ctx.saved_tensors
        to_rows = grad @ (numbers * factors.to(grad.dtype)) if ctx.needs_input_grad[0] else None
        return to_rows, None, None, None


class EightBitLinear(torch.nn.Linear):
    """A frozen linear layer in 8 bit. peft puts LoRAs on it as on any ``nn.Linear``."""

    def __init__(self, numbers: torch.Tensor, factors: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__(numbers.shape[1], numbers.shape[0], bias is not None, device="meta")
        self.weight = torch.nn.Parameter(numbers, requires_grad=False)
        if bias is not None:
            self.bias = torch.nn.Parameter(bias, requires_grad=False)
        self.register_buffer("factors", factors)

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(…, I) to (…, O) in the input's number format, or autocast's."""
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        rows = input.reshape(-1, self.in_features)
        out: torch.Tensor = _Product.apply(rows, self.weight, self.get_buffer("factors"), self.bias)
        return out.reshape(*input.shape[:-1], self.out_features)

    def full_weight(self) -> torch.Tensor:
        """(O, I) float32: the weight that this layer computes with."""
        return self.weight * self.get_buffer("factors").float()


# --- a whole transformer --------------------------------------------------------------------------
def layers_of(transformer: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Linear]]:
    """The large linear layers in 16 bit or more, by name: those of the blocks, and what modulates the last one.

    Embeddings and the last layer stay as they are: they are small, and everything passes through them.
    """
    for name, module in transformer.named_modules():
        if isinstance(module, torch.nn.Linear) and not isinstance(module, EightBitLinear):
            inside = name.startswith(("transformer_blocks.", "single_transformer_blocks.", "norm_out."))
            if inside and ".lora_" not in name:
                yield name, module


def shrink(
    transformer: torch.nn.Module,
    dtype: torch.dtype,
    work_on: torch.device | str = "cpu",
    stay_on: torch.device | str = "cpu",
    read: Read | None = None,
    told: Callable[[int, int], None] | None = None,
) -> None:
    """Turn the layers of ``layers_of`` into 8 bit, one after the other, so that one at most is there twice.

    ``dtype`` is that of the biases, which the transformer computes in. Layers without weights (on "meta") are read by
    ``read``, under their names in the transformer's files. Rounding is done on ``work_on``, and the results lie on
    ``stay_on``. ``told`` is called with (layers done, layers in all) and may raise; what is done stays done then.
    There is no way back but reading the model again. Raises ValueError for layers without weights and no ``read``.
    """
    layers = list(layers_of(transformer))
    for done, (name, layer) in enumerate(layers):
        if told is not None:
            told(done, len(layers))
        numbers, factors = rounded(_weight(layer.weight, f"{name}.weight", read).to(work_on))
        bias = None if layer.bias is None else _weight(layer.bias, f"{name}.bias", read).to(stay_on, dtype)
        small = EightBitLinear(numbers.to(stay_on), factors.to(stay_on), bias)
        owner, _, last = name.rpartition(".")
        transformer.get_submodule(owner).register_module(last, small)
    if told is not None and layers:
        told(len(layers), len(layers))


def _weight(weight: torch.Tensor, name: str, read: Read | None) -> torch.Tensor:
    if not weight.is_meta:
        return weight.detach()
    if read is None:
        raise ValueError(f"{name} is not in memory, and nothing was given to read it with.")
    return read(name.replace(".base_layer.", "."))
