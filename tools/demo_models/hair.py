"""Hair and beards, in the coordinates of face.py."""

from __future__ import annotations

import torch
from torch import Tensor

from tools.demo_models.face import Head
from tools.demo_models.palette import HAIR, inside, mix, paint, pick, smooth
from tools.demo_models.world import column, kind


def hair_colour(people: Tensor) -> Tensor:
    """(B, 3, 1, 1)."""
    return (pick(HAIR, kind(people, "hair_colour")) * (0.82 + 0.40 * column(people, "hair_shade"))).clamp(0, 1)


def _strands(head: Head, people: Tensor, colour: Tensor) -> Tensor:
    """Colour field with fine streaks and one soft sheen round the skull."""
    angle = torch.atan2(head.x - 0.10 * (column(people, "parting") - 0.5), 0.75 - head.y)
    waves = column(people, "hair_waves")
    streak = (
        torch.sin(angle * 85 + waves * 6 * torch.sin(head.y * 16)) * 0.5 + torch.sin(angle * 37 + 2 + head.y * 6) * 0.5
    )
    radius = torch.sqrt(head.x**2 + (head.y + 0.02) ** 2 + 1e-9)
    sheen = torch.exp(-((radius - 0.47) ** 2) / 0.0028 - (head.x + 0.10 - 0.16 * head.light_x) ** 2 / 0.045) * (
        head.y < 0
    )
    side = 1 + 0.10 * head.light_x * head.x / 0.4
    tone = colour * (0.90 + 0.13 * streak) * side
    return (tone + (0.10 + 0.16 * colour) * sheen * 0.9).clamp(0, 1)


def _shell(head: Head, grow: Tensor | float, drop: float = 0.0) -> Tensor:
    """Signed distance to the skull grown outwards by ``grow``."""
    rx, ry = head.width + grow, 0.56 + grow
    k = torch.sqrt((head.x / rx) ** 2 + ((head.y - drop) / ry) ** 2 + 1e-8)
    return (k - 1) * torch.minimum(rx, ry) if isinstance(ry, Tensor) else (k - 1) * rx


def _volume(people: Tensor) -> Tensor:
    return 0.035 + 0.085 * column(people, "hair_volume")


def _edge_waves(head: Head, people: Tensor) -> Tensor:
    waves = smooth(0.35, 0.75, column(people, "hair_waves"))
    return waves * 0.016 * torch.sin(torch.atan2(head.x, -head.y) * 19 + head.y * 10)


def behind(picture: Tensor, head: Head, people: Tensor) -> Tensor:
    """Hair that hangs behind neck and shoulders: medium to the jaw, long over the shoulders."""
    length = kind(people, "hair_length").reshape(-1, 1, 1, 1)
    colour = _strands(head, people, hair_colour(people)) * 0.80
    bottom = mix(0.46, 0.98, (length == 3).float()) + 0.10 * (column(people, "hair_volume") - 0.5)
    waves = smooth(0.35, 0.75, column(people, "hair_waves"))
    reach = head.width + _volume(people) + 0.05 * smooth(0.0, 0.7, head.y) + waves * 0.016 * torch.sin(head.y * 21)
    fall = torch.maximum(torch.maximum(head.x.abs() - reach, head.y - bottom + 0.30 * head.x**2), -head.y)
    shape = torch.minimum(fall, _shell(head, _volume(people) + 0.02))
    return paint(picture, colour, inside(shape, head.px * 1.5) * (length >= 2))


def in_front(picture: Tensor, head: Head, people: Tensor) -> Tensor:
    """The cap of hair over the skull, with its hairline and parting, and locks beside the face."""
    length = kind(people, "hair_length").reshape(-1, 1, 1, 1)
    parting = kind(people, "parting").reshape(-1, 1, 1, 1)
    base = hair_colour(people)
    colour = _strands(head, people, base)
    high = -0.285 - 0.105 * column(people, "hairline")
    wave = _edge_waves(head, people)
    w = head.width
    swept_left = (
        high
        + 0.20 * smooth(-0.12, 0.40, head.u)
        - 0.07 * smooth(0.0, -0.30, head.u)
        + 0.10 * smooth(-0.22, -0.40, head.u)
    )
    swept_right = (
        high + 0.20 * smooth(0.12, -0.40, head.u) - 0.07 * smooth(0.0, 0.30, head.u) + 0.10 * smooth(0.22, 0.40, head.u)
    )
    middle = high - 0.055 + 0.26 * smooth(0.02, 0.42, head.u.abs())
    fringe = high + 0.135 + 0.020 * torch.sin(head.u * 40) - 0.04 * head.u
    line = torch.where(
        parting == 0, swept_left, torch.where(parting == 1, swept_right, torch.where(parting == 2, middle, fringe))
    )
    shell = _shell(head, _volume(people)) + wave
    cap = torch.maximum(shell, head.v - line - wave)
    sideburn_low = mix(0.02, 0.14, (length >= 1).float() * column(people, "hair_volume"))
    temples = torch.maximum(torch.maximum(shell, w * 0.885 - head.x.abs()), head.y - sideburn_low)
    shape = torch.minimum(cap, temples)
    locks_low = mix(0.42, 0.90, (length == 3).float())
    inner = w * (0.86 + 0.10 * smooth(-0.1, 0.35, head.y))
    reach = w + _volume(people) + 0.035 * smooth(-0.10, 0.30, head.y) + 0.040 * smooth(0.2, 0.8, head.y) + wave
    tip = locks_low - 1.1 * (head.x.abs() - 0.5 * (inner + reach)).abs() ** 1.5 * 4
    low = torch.maximum(head.y - tip, -0.02 - head.y)
    locks = torch.maximum(torch.maximum(inner - head.x.abs(), head.x.abs() - reach), low)
    shape = torch.where(length >= 2, torch.minimum(shape, locks), shape)
    some = (length >= 1).float()
    shadow = inside(shape - 0.028, 0.06) * some * 0.20
    picture = paint(picture, picture * 0.55, shadow * inside(shell, head.px))
    picture = paint(picture, colour * 0.70, inside(shape - 0.007, head.px) * some)
    picture = paint(picture, colour, inside(shape, head.px * 1.3) * some)
    split = torch.where(parting == 0, head.u + 0.16, torch.where(parting == 1, head.u - 0.16, head.u))
    gap = ((split - 0.10 * (head.v + 0.45)).abs() - 0.006 < 0).float()
    return paint(picture, colour * 0.72, gap * inside(cap, head.px) * (parting < 3) * some * 0.8)


def beard(picture: Tensor, head: Head, people: Tensor, face_distance: Tensor) -> Tensor:
    """Stubble, moustache or beard between the mouth and the edge of the jaw."""
    which = kind(people, "beard").reshape(-1, 1, 1, 1)
    shape = column(people, "beard_shape")
    colour = hair_colour(people)
    grain = 0.92 + 0.09 * torch.sin(head.u * 130 + torch.sin(head.v * 70) * 2) * torch.sin(head.v * 105)
    tone = (colour * grain).clamp(0, 1)
    top = mix(0.155, 0.235, shape) - 0.30 * smooth(0.62, 1.0, head.u.abs() / head.width) + 0.02 * head.u.abs()
    longer = 0.008 + 0.055 * smooth(0.5, 1.0, shape) * smooth(0.25, 0.5, head.y)
    lips = ((head.u / (head.mouth_half * 1.22)) ** 2 + ((head.v - head.mouth_y - 0.008) / 0.072) ** 2).sqrt() - 1
    jaw = torch.maximum(torch.maximum(face_distance - longer, top - head.v), -lips * 0.07)
    strip_v = head.v - (head.mouth_y - 0.066) - 0.55 * head.u**2
    moustache = torch.maximum(
        strip_v.abs() - 0.026 - 0.012 * shape, head.u.abs() - head.mouth_half * (1.02 + 0.20 * shape)
    )
    full = torch.minimum(jaw, moustache)
    picture = paint(picture, tone, inside(jaw, 0.05) * (which == 1) * 0.30)
    picture = paint(picture, tone, inside(moustache, head.px * 2.5) * (which == 2) * 0.95)
    return paint(picture, tone, inside(full, head.px * 3.0) * (which == 3) * 0.96)
