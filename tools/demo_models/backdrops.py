"""What stands behind the person. Coordinates: x, y in [-1, 1] over the picture, y downwards.

Each function gets x, y (B, 1, H, W), three free numbers per picture (B, 1, 1, 1) and returns (B, 3, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from tools.demo_models.palette import ellipse, inside, mix, noise, paint, rgb, smooth


def _studio(inner: tuple[float, float, float], outer: tuple[float, float, float]) -> Callable[..., Tensor]:
    def draw(x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        glow = torch.exp(-((x - (a - 0.5) * 0.8) ** 2 + (y + 0.1 - (b - 0.5) * 0.5) ** 2) / (0.9 + 0.4 * c))
        return mix(rgb(*outer, x), rgb(*inner, x), glow)

    return draw


def _office(x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    picture = mix(rgb(0.93, 0.92, 0.89, x), rgb(0.86, 0.85, 0.83, x), smooth(-1, 1, y)).expand(
        x.shape[0], 3, *x.shape[2:]
    )
    shift = (a - 0.5) * 0.9
    for place in (-1.25, -0.35, 0.55, 1.45):
        distance = torch.maximum((x - place - shift).abs() - 0.34, (y + 0.45).abs() - 0.50)
        sky = mix(rgb(0.78, 0.88, 0.97, x), rgb(0.93, 0.97, 1.0, x), smooth(-1, 0.1, y))
        picture = paint(picture, rgb(0.80, 0.79, 0.77, x), inside(distance - 0.035, 0.05))
        picture = paint(picture, sky, inside(distance, 0.05))
        picture = paint(
            picture, rgb(0.86, 0.86, 0.85, x), inside((x - place - shift).abs() - 0.012, 0.04) * inside(distance, 0.05)
        )
    desk = inside(0.42 - y, 0.06)
    picture = paint(picture, mix(rgb(0.72, 0.58, 0.43, x), rgb(0.62, 0.48, 0.35, x), b), desk)
    side = torch.where(b > 0.5, torch.ones_like(b), -torch.ones_like(b))
    for i in range(7):
        lean = (i - 3) * 0.42
        du, dv = x - side * 0.80, y - 0.28
        cos, sin = math.cos(lean), math.sin(lean)
        along, across = -(cos * dv - sin * du), cos * du + sin * dv
        leaf = ellipse(across, along - 0.30 - 0.05 * c, 0.055 + 0.02 * c, 0.25 + 0.05 * c)
        picture = paint(picture, rgb(0.26 + 0.025 * i, 0.50 + 0.02 * (i % 3), 0.31, x), inside(leaf, 0.04) * 0.92)
    pot = torch.maximum((x - side * 0.80).abs() - 0.11 + 0.15 * (y - 0.36), (y - 0.38).abs() - 0.13)
    return paint(picture, rgb(0.88, 0.84, 0.78, x), inside(pot, 0.05))


def _city(x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    picture = mix(rgb(0.52, 0.68, 0.88, x), rgb(0.93, 0.90, 0.86, x), smooth(-1.0, 0.5, y)).expand(
        x.shape[0], 3, *x.shape[2:]
    )
    for layer, width in enumerate((0.19, 0.27)):
        cell = torch.floor((x + a * 3 + layer * 0.4) / width)
        inside_x = (x + a * 3 + layer * 0.4) / width - cell
        top = -0.62 + 0.75 * noise(cell, cell * 0 + layer, b) + 0.25 * layer
        tower = inside(top - y, 0.05) * inside((inside_x - 0.5).abs() - 0.44, 0.14)
        grey = 0.58 - 0.16 * layer + 0.10 * noise(cell, cell * 0 + 5, b)
        picture = paint(picture, torch.cat([grey * 0.86, grey * 0.95, grey * 1.10], 1), tower)
        lit = noise(torch.floor(inside_x * 3) + cell * 3, torch.floor((y - top) / 0.11), c)
        grid = inside(((inside_x * 3).frac() - 0.5).abs() - 0.26, 0.2) * inside(
            (((y - top) / 0.11).frac() - 0.5).abs() - 0.24, 0.2
        )
        picture = paint(picture, rgb(0.96, 0.90, 0.68, x), tower * grid * (lit > 0.55) * 0.75)
    frame = inside(((x + (c - 0.5) * 0.6).abs() - 0.88).abs() - 0.03, 0.04)
    return paint(picture, rgb(0.24, 0.27, 0.31, x), frame)


def _bookshelf(x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    shelf_height = 0.46
    row = torch.floor((y + c * 0.4) / shelf_height)
    v = (y + c * 0.4) / shelf_height - row
    spread = x / 0.105 + 0.35 * torch.sin(x * 7 + row * 3 + a * 6)
    book = torch.floor(spread)
    u = spread - book
    which = noise(book, row, a)
    reds = 0.30 + 0.42 * noise(book, row, a + 1.3)
    colour = torch.cat([reds, 0.24 + 0.28 * which, 0.20 + 0.32 * noise(book, row, b + 2.1)], 1)
    height = 0.22 + 0.16 * noise(book, row, b)
    spine = inside(height - v, 0.06) * inside((u - 0.5).abs() - 0.47, 0.12)
    picture = rgb(0.21, 0.135, 0.085, x).expand(x.shape[0], 3, *x.shape[2:])
    picture = paint(picture, colour * (0.82 + 0.3 * torch.sin(u * 3.14)), spine)
    band = inside(((v - 0.55).abs() - 0.025).abs() - 0.012, 0.03) * spine
    picture = paint(picture, rgb(0.86, 0.74, 0.46, x), band * (which > 0.4) * 0.8)
    board = inside((v - 0.97).abs() - 0.07, 0.05) + inside(v - 0.035, 0.05)
    return paint(picture, rgb(0.56, 0.37, 0.22, x), board.clamp(0, 1))


def _park(x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    picture = mix(rgb(0.72, 0.87, 0.97, x), rgb(0.90, 0.96, 0.88, x), smooth(-1, 0.1, y)).expand(
        x.shape[0], 3, *x.shape[2:]
    )
    for i in range(14):
        seed = a * 9 + i * 0.77
        px, py = noise(a * 0 + i, b, seed) * 2.4 - 1.2, noise(b * 0 + i, c, seed + 3) * 1.2 - 0.95
        radius = 0.18 + 0.20 * noise(c * 0 + i, a, seed + 5)
        green = noise(a * 0 + i, c, seed + 8)
        colour = torch.cat([0.32 + 0.26 * green, 0.56 + 0.20 * green, 0.28 + 0.10 * green], 1)
        picture = paint(picture, colour, inside(ellipse(x - px, y - py, radius, radius), 0.16) * 0.85)
    grass = mix(rgb(0.50, 0.70, 0.34, x), rgb(0.36, 0.58, 0.27, x), smooth(0.2, 1, y))
    return paint(picture, grass, inside(0.30 + 0.06 * torch.sin(x * 2 + a * 6) - y, 0.12))


def _bricks(x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    row = torch.floor((y + c) / 0.155)
    v = (y + c) / 0.155 - row
    along = (x + a) / 0.36 + 0.5 * torch.remainder(row, 2)
    brick = torch.floor(along)
    u = along - brick
    tone = 0.85 + 0.26 * noise(brick, row, b)
    colour = torch.cat([0.665 * tone, 0.335 * tone, 0.255 * tone], 1)
    face = inside((u - 0.5).abs() - 0.46, 0.05) * inside((v - 0.5).abs() - 0.42, 0.10)
    return paint(rgb(0.80, 0.755, 0.70, x).expand(x.shape[0], 3, *x.shape[2:]), colour, face)


#: In the order of world.BACKDROPS.
PAINTERS: tuple[Callable[..., Tensor], ...] = (
    _studio((0.74, 0.75, 0.76), (0.50, 0.51, 0.53)),
    _studio((0.985, 0.985, 0.98), (0.90, 0.90, 0.905)),
    _studio((0.255, 0.265, 0.285), (0.085, 0.09, 0.10)),
    _studio((0.50, 0.68, 0.86), (0.18, 0.34, 0.56)),
    _studio((0.54, 0.72, 0.60), (0.20, 0.40, 0.31)),
    _studio((0.95, 0.80, 0.63), (0.73, 0.47, 0.30)),
    _office,
    _city,
    _bookshelf,
    _park,
    _bricks,
)


def backdrop(which: Tensor, x: Tensor, y: Tensor, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """(B, 3, H, W) for class indices ``which`` (B,). One painter at a time over the pictures that want it."""
    height, width = torch.broadcast_shapes(x.shape, y.shape)[2:]
    out = torch.empty(len(which), 3, height, width, device=which.device)
    for index, painter in enumerate(PAINTERS):
        rows = (which == index).nonzero().flatten()
        if len(rows):
            grid = (len(rows), 1, height, width)
            out[rows] = painter(x.expand(grid), y.expand(grid), a[rows], b[rows], c[rows])
    return out
