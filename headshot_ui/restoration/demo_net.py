"""The network of the demo restorer: small, and of our own. It has only ever seen drawn faces.

Like CodeFormer's (arXiv 2206.11253) it has a narrow way through the middle, where only what a face is made of gets
by, and side ways that carry what the input shows; the fidelity weight opens the side ways.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headshot_ui.errors import ModelError

SIDE = 192


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a short cut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv1, self.conv2 = nn.Conv2d(width, width, 3, 1, 1), nn.Conv2d(width, width, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv1(F.silu(self.norm1(x)))
        out: Tensor = x + self.conv2(F.silu(self.norm2(inner)))
        return out


class _SideWay(nn.Module):
    """Features of the input change those of the decoder by a scale and a shift, as far as the weight allows."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(2 * width, width, 3, 1, 1)
        self.out = nn.Conv2d(width, 2 * width, 3, 1, 1)

    def forward(self, decoded: Tensor, seen: Tensor, weight: Tensor) -> Tensor:
        scale, shift = self.out(F.silu(self.mix(torch.cat([decoded, seen], 1)))).chunk(2, 1)
        out: Tensor = decoded + weight * (decoded * scale + shift)
        return out


class DemoRestorerNet(nn.Module):
    """Aligned faces (B, 3, 192, 192) in [-1, 1] and a fidelity weight of 0 to 1 to repaired faces of the same shape.

    Trained to leave ``KEPT`` times the weight of the flaws in, so that 0 repairs most and 1 keeps most.
    """

    KEPT = 0.35

    def __init__(self, widths: tuple[int, ...] = (24, 40, 64, 96)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 3, 1, 1)
        pairs = list(zip(widths, widths[1:], strict=False))
        self.down = nn.ModuleList(
            nn.Sequential(nn.Conv2d(before, after, 3, 2, 1), _Block(after)) for before, after in pairs
        )
        self.middle = nn.Sequential(_Block(widths[-1]), _Block(widths[-1]))
        self.up = nn.ModuleList(
            nn.Sequential(nn.Conv2d(after, before, 3, 1, 1), _Block(before)) for before, after in reversed(pairs)
        )
        self.side = nn.ModuleList(_SideWay(before) for before, _ in reversed(pairs))
        self.out = nn.Sequential(nn.GroupNorm(8, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], 3, 3, 1, 1))

    def forward(self, faces: Tensor, fidelity_weight: float | Tensor) -> Tensor:
        """``fidelity_weight``: one number for all faces, or a tensor (B,) with one for each."""
        weight = torch.as_tensor(fidelity_weight, dtype=faces.dtype, device=faces.device).view(-1, 1, 1, 1)
        x = self.stem(faces)
        seen = [x]
        for step in self.down:
            x = step(x)
            seen.append(x)
        x = self.middle(seen.pop())
        for step, side in zip(self.up, self.side, strict=True):
            x = step(F.interpolate(x, scale_factor=2.0, mode="nearest"))
            x = side(x, seen.pop(), weight)
        out: Tensor = torch.tanh(self.out(x))
        return out


def read_net(path: Path) -> DemoRestorerNet:
    """The network with weights from a safetensors file (fp16 on disk, float32 in memory). Raises ModelError."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    net = DemoRestorerNet()
    try:
        net.load_state_dict({key: value.float() for key, value in load_file(path).items()})
    except FileNotFoundError as error:
        raise ModelError(
            f"The demo restorer is missing: put {path} back, for example by fetching the repository again."
        ) from error
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ModelError(f"The demo restorer {path} is damaged: replace it by the file from the repository.") from error
    return net.eval().requires_grad_(False)
