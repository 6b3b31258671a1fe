"""Which kind of work a kernel of a CUDA card does, told by its name: a table of patterns, and nothing else.

Names are those of torch.profiler. They were read in the libraries that torch 2.15 for CUDA 13.2 brings (torch, cuBLAS,
cuDNN 9) and in profiles that others published of Hopper cards; the test has some of each. The first pattern that is
found in a name counts. What no pattern knows is told by the operation that started it, and listed as unknown.
"""

from __future__ import annotations

import re

ATTENTION_FORWARD = "attention, forward"
ATTENTION_BACKWARD = "attention, backward"
CONVOLUTIONS = "convolutions"
PRODUCTS = "products"
LORA_PRODUCTS = "products of the LoRA"
SMALL_PRODUCTS = "small products"  # those of a few rows: embeddings of timesteps and sizes
UNSHAPED_PRODUCTS = "products of unknown shape"
LAYOUT = "change of layout, copies"
NORMS = "norms"
ELEMENTWISE = "elementwise"
REDUCTIONS = "reductions"
OPTIMIZER = "optimizer"  # gradients clipped, AdamW, and the LoRA's copies in 16 bit
COMPILED = "compiled (Triton)"
MEMORY = "memory copies"
NOTHING = "bookkeeping"  # of the processor: views, allocations, autograd
UNKNOWN = "unknown"

#: By name, first come first served.
KERNELS: tuple[tuple[str, str], ...] = (
    (r"^Mem(cpy|set)\b", MEMORY),
    (r"^triton_", COMPILED),
    (r"flash_bwd|flash.*Bwd|sdpa.*bprop|fmha_cutlassB|fmha.*([Bb]wd|[Bb]ackward)", ATTENTION_BACKWARD),
    (r"flash_fwd|flash.*Fwd|sdpa|fmha", ATTENTION_FORWARD),
    (r"nchwToNhwc|nhwcToNchw|nchwToFolded|nhwcToFolded|foldedN\w+To|AddPadding|tensorTransform", LAYOUT),
    (r"[Tt]ranspose\w*_kernel|cubeTranspose|transposeWarp|convertTensor|CatArrayBatchedCopy|copy_kernel", LAYOUT),
    (r"multi_tensor_apply_kernel|lpnorm_cleanup|foreach_", OPTIMIZER),
    (r"implicit_gemm|[fdw](prop|grad)|convolve|convolution|conv(Nd|[123]d)|conv_depthwise|winograd", CONVOLUTIONS),
    (r"im2col|col2im|cutlass__5x_cudnn", CONVOLUTIONS),
    (r"[Ll]ayer_?[Nn]orm|[Rr][Mm][Ss]_?[Nn]orm|[Gg]roup_?[Nn]orm|batch_?norm|bn_[fb]w|ln_[fb]wd", NORMS),
    (r"RowwiseMoments|GammaBeta|FusedParams|ComputeInternalGradients|layer_norm_grad", NORMS),
    (r"nvjet|gemm|gemv|splitK|split_k|dot_kernel|reduce_1Block_kernel|cublasLt|cutlass::Kernel", PRODUCTS),
    (r"reduce_kernel|[Ss]oft_?[Mm]ax|cub::.*Reduce|[Ss]can", REDUCTIONS),
    (r"elementwise|upsample|dropout|distribution_|arange|triu_tril|op_(generic_)?tensor", ELEMENTWISE),
    (r"[Ii]ndex|[Gg]ather|[Ss]catter", ELEMENTWISE),
)  # fmt: skip

#: By the operation that a kernel was started by; on a CPU all there is.
OPERATIONS: tuple[tuple[str, str], ...] = (
    (r"^aten::.*attention.*backward", ATTENTION_BACKWARD),
    (r"^aten::.*attention", ATTENTION_FORWARD),
    (r"^aten::.*convolution", CONVOLUTIONS),
    (r"^aten::(_?addmm|addmv|baddbmm|bmm|mm|mv)_?(activation)?$", PRODUCTS),
    (r"^aten::(copy_|cat|clone|contiguous|_to_copy|stack|_foreach_copy_)$", LAYOUT),
    (r"^aten::_(fused|foreach)_", OPTIMIZER),
    (r"^aten::.*norm", NORMS),
    (r"^aten::(sum|mean|max|min|all|any|isfinite|_?softmax)$", REDUCTIONS),
    (r"^aten::(add|sub|mul|div|addcmul|addcdiv|pow|neg|exp|sin|cos|r?sqrt|reciprocal|abs|square|lerp)_?$", ELEMENTWISE),
    (r"^aten::(gelu|silu|sigmoid|tanh|upsample|fill|zero|complex|where|clamp|bitwise|index|embedding)", ELEMENTWISE),
    (r"^aten::(arange|gather|scatter|outer|floor|real|eq|ne|gt|lt|ge|le)_?$", ELEMENTWISE),
    (r"^(aten|autograd|torch|headshot_ui|profiler)::|^(?!.*::)", NOTHING),
)  # fmt: skip

_KERNELS = tuple((re.compile(pattern), kind) for pattern, kind in KERNELS)
_OPERATIONS = tuple((re.compile(pattern), kind) for pattern, kind in OPERATIONS)


def kind_of(name: str) -> str:
    """The kind of a kernel by its name; ``UNKNOWN`` for one that no pattern knows."""
    return next((kind for pattern, kind in _KERNELS if pattern.search(name)), UNKNOWN)


def kind_of_operation(name: str) -> str:
    """The kind of work of one of torch's operations (``aten::…``); ``UNKNOWN`` for one that no pattern knows."""
    return next((kind for pattern, kind in _OPERATIONS if pattern.search(name)), UNKNOWN)
