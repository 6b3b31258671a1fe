"""What goes wrong with pictures of faces: blur, low resolution, noise, JPEG blocks. Batched on any device."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: Luminance table of JPEG's Annex K (ITU-T T.81), used for all three channels.
_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61), (12, 12, 14, 19, 26, 58, 60, 55), (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62), (18, 22, 37, 56, 68, 109, 103, 77), (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101), (72, 92, 95, 98, 112, 100, 103, 99),
)  # fmt: skip
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))


def blurred(pictures: Tensor, sigmas: Tensor) -> Tensor:
    """Gaussian blur of (B, 3, H, W) with one sigma (B,) in pixels for each picture; at most about 4."""
    reach = torch.arange(-9, 10, device=pictures.device, dtype=pictures.dtype)
    kernels = torch.exp(-(reach**2) / (2 * sigmas.clamp(min=0.05).view(-1, 1) ** 2))
    kernels = (kernels / kernels.sum(1, keepdim=True)).repeat_interleave(3, 0)
    count = len(kernels)
    flat = F.pad(pictures, (9, 9, 9, 9), mode="reflect").reshape(1, count, *(side + 18 for side in pictures.shape[-2:]))
    flat = F.conv2d(flat, kernels.view(count, 1, 1, 19), groups=count)
    return F.conv2d(flat, kernels.view(count, 1, 19, 1), groups=count).view_as(pictures)


def coarser(pictures: Tensor, factor: float) -> Tensor:
    """Shrunk by ``factor`` (at least 1) and enlarged again."""
    side = max(8, round(pictures.shape[-1] / factor))
    small = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True, align_corners=False)
    return F.interpolate(small, pictures.shape[-2:], mode="bicubic", align_corners=False).clamp(-1, 1)


def jpeg(pictures: Tensor, qualities: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1], sides multiples of 8, through JPEG's quantisation with qualities (B,) of 1 to 100."""
    device = pictures.device
    places = torch.arange(8, device=device, dtype=pictures.dtype)
    dct = torch.cos((2 * places[None] + 1) * places[:, None] * math.pi / 16) * 0.5
    dct[0] *= math.sqrt(0.5)
    scale = torch.where(qualities < 50, 50 / qualities, 2 - qualities / 50).view(-1, 1, 1, 1, 1, 1)
    table = (torch.tensor(_TABLE, device=device, dtype=pictures.dtype) * scale).clamp(min=1)
    colours = torch.tensor(_TO_YCC, device=device, dtype=pictures.dtype)
    ycc = torch.einsum("dc,bchw->bdhw", colours, pictures * 127.5)
    count, _, height, width = ycc.shape
    blocks = ycc.view(count, 3, height // 8, 8, width // 8, 8).permute(0, 1, 2, 4, 3, 5)
    found = torch.round((dct @ blocks @ dct.T) / table) * table
    back = (dct.T @ found @ dct).permute(0, 1, 2, 4, 3, 5).reshape_as(ycc)
    return (torch.einsum("dc,bchw->bdhw", colours.inverse(), back) / 127.5).clamp(-1, 1)


def degraded(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [-1, 1] with random flaws, each picture its own; one in twelve stays as it is."""
    count, device = len(pictures), pictures.device
    out = blurred(pictures, torch.rand(count, device=device) ** 1.5 * 3.0)
    parts = [
        coarser(part, 1 + 4.0 * float(torch.rand(())) ** 1.5) if float(torch.rand(())) < 0.75 else part
        for part in out.chunk(12)
    ]
    out = torch.cat(parts)
    noise = torch.rand(count, 1, 1, 1, device=device) ** 2 * 0.16
    out = (out + torch.randn_like(out) * noise).clamp(-1, 1)
    with_jpeg = jpeg(out, 25 + 70 * torch.rand(count, device=device))
    out = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.6, with_jpeg, out)
    untouched = torch.rand(count, 1, 1, 1, device=device) < 1 / 12
    return torch.where(untouched, pictures, out)
