"""Whether a device truly computes in bfloat16: tried, for torch has no question that answers it for Apple's GPUs.

macOS 14 has the format and torch's autocast takes it there; chips before the M3 imitate it, which halves the memory
and is no faster. None of this could be run on a Mac where it was written: hence the trial, and float32 if it fails.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Relative error against float32, of the answer and of the gradients; on a CPU 0.003 to 0.005 were measured.
TOLERANCE = 0.05

_log = logging.getLogger(__name__)


def computes_in_bfloat16(device: str) -> bool:
    """One step forward and back of what a denoiser is made of, as training does it. Imports torch; raises nothing."""
    try:
        exact, tried = _step("cpu", half=False), _step(device, half=True)
        errors = [float((a.cpu().float() - b).norm() / b.norm()) for a, b in zip(tried, exact, strict=True)]
    except Exception:  # what a backend lacks, it says in many ways
        _log.info("bfloat16 does not work on %s", device, exc_info=True)
        return False
    _log.info("bfloat16 on %s is off by %s", device, ", ".join(f"{error:.1e}" for error in errors))
    return all(error < TOLERANCE for error in errors)  # false for what is no number, too


def _step(device: str, half: bool) -> tuple[torch.Tensor, ...]:
    """The answer of a small frozen network, and the gradients of the float32 weights trained beside it."""
    import torch
    import torch.nn.functional as F

    draw = torch.Generator().manual_seed(0)
    frozen = torch.bfloat16 if half else torch.float32

    def made(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw)

    picture, kernel, dense = (t.to(device, frozen) for t in (made(1, 8, 8, 8), made(16, 8, 3, 3) / 8, made(16, 16) / 4))
    down, up = ((made(*shape) / 4).to(device).requires_grad_() for shape in ((4, 16), (16, 4)))
    with torch.autocast(device, dtype=torch.bfloat16, enabled=half):
        seen = F.silu(F.group_norm(F.conv2d(picture, kernel, padding=1), 4))
        words = seen.flatten(2).transpose(1, 2)
        asked = F.linear(words, dense) + F.linear(F.linear(words, down), up)
        answer = F.scaled_dot_product_attention(asked[:, None], words[:, None], words[:, None])
    loss = F.mse_loss(answer.float(), torch.ones_like(answer, dtype=torch.float32))
    return answer.detach(), *torch.autograd.grad(loss, (down, up))
