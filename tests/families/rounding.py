"""How far two results of the same arithmetic are apart."""

from __future__ import annotations

import torch

#: Float32 rounds to 6e-8. Three steps of a network make of it 1e-6 to 4e-6 of the norm of latents, by processor and the
#: kernels it has; a wrong formula makes a hundred times this limit.
ROUNDING = 1e-5


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """The norm of the difference, as a share of the norm of ``other``."""
    return float((one - other).norm() / other.norm())
