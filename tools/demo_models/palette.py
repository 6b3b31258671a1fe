"""Colours (sRGB, 0 to 1) and the brush strokes that all drawing files share."""

from __future__ import annotations

import torch
from torch import Tensor

SKIN = (
    (0.985, 0.862, 0.775),
    (0.945, 0.760, 0.640),
    (0.855, 0.640, 0.490),
    (0.700, 0.490, 0.355),
    (0.545, 0.365, 0.255),
    (0.400, 0.262, 0.185),
)
HAIR = (
    (0.105, 0.090, 0.095),
    (0.345, 0.215, 0.135),
    (0.870, 0.715, 0.430),
    (0.665, 0.285, 0.125),
    (0.660, 0.660, 0.675),
)
IRIS = (
    (0.235, 0.140, 0.085),
    (0.420, 0.265, 0.125),
    (0.330, 0.480, 0.270),
    (0.250, 0.480, 0.720),
    (0.455, 0.520, 0.560),
)
CLOTH = (
    (0.120, 0.170, 0.340),
    (0.255, 0.270, 0.295),
    (0.085, 0.085, 0.095),
    (0.580, 0.590, 0.605),
    (0.935, 0.930, 0.920),
    (0.235, 0.460, 0.800),
    (0.450, 0.090, 0.160),
    (0.800, 0.170, 0.160),
    (0.180, 0.460, 0.270),
    (0.835, 0.755, 0.610),
    (0.430, 0.285, 0.180),
    (0.090, 0.500, 0.510),
    (0.430, 0.250, 0.560),
    (0.860, 0.640, 0.160),
)
TIES = (
    (0.600, 0.110, 0.150),
    (0.130, 0.250, 0.500),
    (0.200, 0.200, 0.220),
    (0.160, 0.420, 0.340),
    (0.720, 0.520, 0.200),
)


def pick(table: tuple[tuple[float, float, float], ...], index: Tensor) -> Tensor:
    """Colours of a table by index (B,), as (B, 3, 1, 1)."""
    return torch.tensor(table, device=index.device, dtype=torch.float32)[index].reshape(-1, 3, 1, 1)


def ramp(table: tuple[tuple[float, float, float], ...], at: Tensor) -> Tensor:
    """Colours between the entries of a table; ``at`` (B, 1, 1, 1) in [0, 1]."""
    colours = torch.tensor(table, device=at.device, dtype=torch.float32)
    place = at.flatten().clamp(0, 1) * (len(table) - 1)
    low = place.floor().long().clamp(max=len(table) - 2)
    part = (place - low).unsqueeze(1)
    return (colours[low] * (1 - part) + colours[low + 1] * part).reshape(-1, 3, 1, 1)


def rgb(red: float, green: float, blue: float, like: Tensor) -> Tensor:
    """One fixed colour as (1, 3, 1, 1)."""
    return torch.tensor((red, green, blue), device=like.device).reshape(1, 3, 1, 1)


def mix(a: Tensor | float, b: Tensor | float, t: Tensor) -> Tensor:
    """Linear blend: a where t is 0, b where it is 1."""
    return a + (b - a) * t


def smooth(low: float | Tensor, high: float | Tensor, x: Tensor) -> Tensor:
    """Hermite step from 0 at ``low`` to 1 at ``high``."""
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


def inside(distance: Tensor, softness: Tensor | float) -> Tensor:
    """Coverage 0 to 1 of a shape given its signed distance (negative inside), edge ``softness`` wide."""
    return (0.5 - distance / softness).clamp(0, 1)


def paint(picture: Tensor, colour: Tensor, coverage: Tensor) -> Tensor:
    """Lay ``colour`` over the picture where ``coverage`` says."""
    return picture + (colour - picture) * coverage


def ellipse(x: Tensor, y: Tensor, rx: Tensor | float, ry: Tensor | float) -> Tensor:
    """Approximate signed distance to an ellipse round the origin, right near its edge."""
    k = torch.sqrt((x / rx) ** 2 + (y / ry) ** 2 + 1e-8)
    gradient = torch.sqrt((x / (rx * rx)) ** 2 + (y / (ry * ry)) ** 2 + 1e-8)
    return k * (k - 1) / gradient


def noise(x: Tensor, y: Tensor, seed: Tensor) -> Tensor:
    """Repeatable value in [0, 1) of an integer cell: a hash by sines (fine for pictures, for nothing else)."""
    return torch.frac(torch.sin(x * 12.9898 + y * 78.233 + seed * 37.719) * 43758.547).abs()
