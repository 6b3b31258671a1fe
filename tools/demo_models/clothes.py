"""Neck, shoulders and what they wear. Coordinates are body units: origin at the middle of the head, y downwards,
the head reaching from about -0.56 to 0.50; they do not turn with the head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tools.demo_models.palette import CLOTH, TIES, inside, mix, paint, pick, rgb, smooth


def _shoulder_line(x: Tensor, wide: Tensor) -> Tensor:
    """Height of the garment's upper edge at x."""
    reach = (x.abs() / wide).clamp(max=0.9999)
    trapezius = 0.10 * smooth(0.14, 0.40, x.abs()) + 0.06 * reach
    return 0.585 + trapezius + 0.62 * (1 - (1 - reach**3.6) ** (1 / 2.2))


def neck(picture: Tensor, x: Tensor, y: Tensor, skin: Tensor, side: Tensor, px: Tensor) -> Tensor:
    """Paint the neck with the shadow of the chin; ``side`` in [-1, 1] is where the light comes from."""
    width = 0.185 + 0.10 * smooth(0.50, 0.80, y)
    cover = inside(torch.maximum(x.abs() - width, 0.20 - y), px) * inside(y - 0.95, px)
    shade = 0.86 - 0.20 * torch.exp(-((y - 0.44) ** 2) / 0.022) + 0.10 * side * x / 0.2
    return paint(picture, skin * shade.clamp(0.45, 1.05), cover)


def garment(picture: Tensor, which: Tensor, colour_index: Tensor, tie: Tensor, fold: Tensor, wide: Tensor, x: Tensor,
            y: Tensor, skin: Tensor, side: Tensor, px: Tensor) -> Tensor:  # fmt: skip
    """Paint the garment of class ``which`` (B,) over the picture (B, 3, H, W)."""
    cloth = pick(CLOTH, colour_index)
    dark = cloth.mean(1, keepdim=True)
    shade = (
        1.0
        + 0.14 * side * x
        - 0.10 * smooth(0.70, 1.5, y)
        + 0.05 * torch.sin(x * 9 + y * 5 + fold * 12) * smooth(0.7, 1.0, y)
    )
    shade = shade - 0.16 * smooth(0.62, 1.02, x.abs() / wide)
    body = torch.maximum((_shoulder_line(x, wide) - y) * 0.75, x.abs() - wide)
    cover = inside(body, px)
    lit = (cloth * shade + 0.03).clamp(0, 1)
    line = mix(lit * 0.72, lit + 0.12, (dark < 0.22).float())
    out = paint(picture, lit, cover)
    for index, dress in enumerate((_suit, _blazer, _shirt, _sweater, _turtleneck, _hoodie)):
        rows = (which == index).nonzero().flatten()
        if len(rows):
            s = _Strokes(
                x[rows], y[rows], px[rows], cover[rows], lit[rows], line[rows], skin[rows], tie[rows], shade[rows]
            )
            out[rows] = dress(out[rows], s)
    return out


@dataclass(frozen=True)
class _Strokes:
    """What every garment's painter needs, already cut down to its own pictures; (B, 1, H, W) or (B, 3, H, W)."""

    x: Tensor
    y: Tensor
    px: Tensor
    cover: Tensor  # where the garment is
    lit: Tensor  # its colour in this light
    line: Tensor  # a darker or lighter colour for seams
    skin: Tensor
    tie: Tensor  # which tie, 0 to 1
    shade: Tensor


def _vee(s: _Strokes, top: float, depth: float, width: float) -> Tensor:
    """Distance to a V opening: ``width`` half-wide at ``top``, closing at ``depth``."""
    return torch.maximum(s.x.abs() - width * (depth - s.y) / (depth - top), s.y - depth)


def _collar(picture: Tensor, s: _Strokes, colour: Tensor, edge: Tensor) -> Tensor:
    """Two shirt-collar flaps beside the neck."""
    lean = s.x.abs() - 0.150 - 0.22 * (s.y - 0.56)
    flap = torch.maximum(torch.maximum(lean.abs() - 0.062, 0.565 - s.y + 0.55 * lean), s.y - 0.755 + 1.3 * lean)
    picture = paint(picture, edge, inside(flap - 0.010, s.px))
    return paint(picture, colour, inside(flap, s.px))


def _lapels(picture: Tensor, s: _Strokes, opening: Tensor) -> Tensor:
    """Notched lapels along the edge of the opening."""
    band = 0.150 - 0.13 * smooth(0.80, 1.32, s.y)
    notch = torch.maximum((s.y - 0.86 - 0.45 * (s.x.abs() - 0.30)).abs() - 0.020, 0.075 - opening)
    lapel = torch.maximum(opening - band, -notch)
    picture = paint(picture, s.line, inside(lapel - 0.012, s.px) * s.cover)
    return paint(picture, mix(s.lit, s.line, torch.full_like(s.x, 0.16)), inside(lapel, s.px) * s.cover)


def _jacket(picture: Tensor, s: _Strokes, with_tie: bool) -> Tensor:
    white = (rgb(0.955, 0.955, 0.965, s.x) * s.shade).clamp(0, 1)
    opening = _vee(s, 0.55, 1.34, 0.235)
    picture = _lapels(picture, s, opening)
    picture = paint(picture, s.line, inside(opening - 0.010, s.px) * inside(0.60 - s.y, s.px))
    picture = paint(picture, white, inside(opening, s.px) * inside(0.54 - s.y, s.px))
    if not with_tie:
        picture = paint(picture, s.skin * 0.88, inside(_vee(s, 0.52, 0.90, 0.185), s.px) * inside(0.50 - s.y, s.px))
    picture = _collar(picture, s, white, white * 0.80)
    if with_tie:
        tie = pick(TIES, (s.tie.flatten() * 4.999).long())
        stripes = 1 + 0.16 * torch.sign(torch.sin((s.x + s.y) * 42))
        blade = torch.maximum(s.x.abs() - 0.042 - 0.06 * smooth(0.70, 1.3, s.y), 0.68 - s.y)
        knot = torch.maximum(s.x.abs() - 0.068 + 0.30 * (s.y - 0.62), (s.y - 0.665).abs() - 0.060)
        picture = paint(picture, (tie * stripes).clamp(0, 1), inside(blade, s.px) * inside(opening, s.px))
        picture = paint(picture, tie * 0.86, inside(knot, s.px))
    return picture


def _suit(picture: Tensor, s: _Strokes) -> Tensor:
    return _jacket(picture, s, with_tie=True)


def _blazer(picture: Tensor, s: _Strokes) -> Tensor:
    return _jacket(picture, s, with_tie=False)


def _shirt(picture: Tensor, s: _Strokes) -> Tensor:
    picture = paint(picture, s.skin * 0.88, inside(_vee(s, 0.52, 0.84, 0.19), s.px) * inside(0.50 - s.y, s.px))
    picture = _collar(picture, s, (s.lit + 0.03).clamp(0, 1), s.line)
    seam = inside(s.x.abs() - 0.008, s.px) * inside(0.84 - s.y, s.px)
    picture = paint(picture, s.line, seam * 0.8)
    for height in (0.95, 1.13, 1.31):
        button = torch.sqrt(s.x**2 + (s.y - height) ** 2 + 1e-9) - 0.018
        picture = paint(picture, s.line, inside(button, s.px))
    return picture


def _sweater(picture: Tensor, s: _Strokes) -> Tensor:
    ring = torch.sqrt((s.x / 1.15) ** 2 + (s.y - 0.50) ** 2 + 1e-9)
    picture = paint(picture, s.skin * 0.84, inside(ring - 0.195, s.px) * inside(0.50 - s.y, s.px))
    picture = paint(picture, s.line, inside((ring - 0.225).abs() - 0.036, s.px) * inside(0.53 - s.y, s.px))
    ribs = 0.5 + 0.5 * torch.sin(torch.atan2(s.x, s.y - 0.5) * 60)
    return paint(
        picture, mix(s.lit, s.line, 0.5 * ribs), inside((ring - 0.225).abs() - 0.028, s.px) * inside(0.53 - s.y, s.px)
    )


def _turtleneck(picture: Tensor, s: _Strokes) -> Tensor:
    roll = torch.maximum(s.x.abs() - 0.205 - 0.07 * smooth(0.55, 0.75, s.y), (s.y - 0.60).abs() - 0.135)
    picture = paint(picture, s.line, inside(roll - 0.014, s.px))
    picture = paint(picture, s.lit * (0.97 + 0.05 * torch.sin(s.x * 90)), inside(roll, s.px))
    return paint(picture, s.line, inside((s.y - 0.60 - 0.10 * s.x**2).abs() - 0.008, s.px) * inside(roll, s.px))


def _hoodie(picture: Tensor, s: _Strokes) -> Tensor:
    ring = torch.sqrt((s.x / 1.05) ** 2 + (s.y - 0.47) ** 2 + 1e-9)
    picture = paint(picture, s.skin * 0.84, inside(ring - 0.20, s.px) * inside(0.50 - s.y, s.px))
    hood = (ring - 0.285).abs() - 0.085
    picture = paint(picture, s.line, inside(hood - 0.014, s.px) * inside(0.40 - s.y, s.px))
    picture = paint(picture, (s.lit * 0.94).clamp(0, 1), inside(hood, s.px) * inside(0.40 - s.y, s.px))
    for sign in (-1.0, 1.0):
        cord = torch.maximum(
            (s.x - sign * (0.115 + 0.02 * torch.sin(s.y * 9))).abs() - 0.013, (s.y - 0.97).abs() - 0.19
        )
        picture = paint(picture, rgb(0.93, 0.93, 0.92, s.x) * 0.97, inside(cord, s.px))
    return picture
