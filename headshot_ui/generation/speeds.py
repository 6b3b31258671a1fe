"""What "fast" leaves out to have a picture sooner.

Guidance steers each step away from the negative prompt, which costs a second pass of the denoiser. It decides what is
in the picture while there is much noise; at the end it changes little, and hardly helps (Kynkäänniemi et al. 2024,
arXiv 2404.07724; diffusers offers the same as a callback that cuts it off). Measured on the demo base with 16 steps:
ended after 60 % of them, pictures keep 35 to 41 dB of the full ones and save a fifth of the passes; after 40 %, 30 dB.
"""

from __future__ import annotations

from headshot_ui.specs import EXACT, FAST

#: Of bases that take a picture from one pass a step and can leave blocks out of it (FLUX.1): what ParaAttention
#: publishes for 28 steps of FLUX.1-dev, there 1.5 times as fast.
REUSE_BELOW = {EXACT: 0.0, FAST: 0.08}
#: Of the same bases: whether large layers may multiply in 8 bit. Built and compared in numbers, but whether it pays was
#: never timed on a card; ``benchmarks/flux_products.py`` does, and decides what stands here for ``FAST``.
PRODUCTS_IN_8_BIT = {EXACT: False, FAST: False}
#: Of the time of exact pictures, by the same source. Only for plans, until both were measured on the computer.
REUSING_SHARE = 1 / 1.5
GUIDED_SHARE = {EXACT: 1.0, FAST: 0.6}


def guided_share(speed: str) -> float:
    """The share of the steps that are steered away from the negative prompt."""
    return GUIDED_SHARE[speed]


def reuse_below(speed: str) -> float:
    """See ``families.protocol.DenoiseRequest.reuse_below``."""
    return REUSE_BELOW[speed]


def products_in_8_bit(speed: str) -> bool:
    """See ``families.protocol.DenoiseRequest.products_in_8_bit``."""
    return PRODUCTS_IN_8_BIT[speed]
