"""The face. Coordinates are head units: (x, y) on the picture plane turned with the head, (u, v) on the face's own
surface, which slides over the head as it turns. Units as in clothes.py; v grows downwards."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tools.demo_models.palette import IRIS, SKIN, ellipse, inside, mix, paint, pick, ramp, rgb, smooth
from tools.demo_models.world import column, kind


@dataclass(frozen=True)
class Head:
    """Measures of one head, each (B, 1, 1, 1), and the coordinates of its pixels (B, 1, H, W)."""

    x: Tensor
    y: Tensor
    u: Tensor
    v: Tensor
    px: Tensor  # width of one pixel
    width: Tensor  # half-width at the cheekbones
    chin: Tensor  # y of the chin
    eye_x: Tensor
    eye_y: Tensor
    eye_half: Tensor  # half the width of an eye
    nose_y: Tensor
    mouth_y: Tensor
    mouth_half: Tensor
    light_x: Tensor
    light_strength: Tensor


def skin_colour(people: Tensor) -> Tensor:
    """(B, 3, 1, 1)."""
    tone = ramp(SKIN, column(people, "skin"))
    under = (column(people, "undertone") - 0.5) * 0.06
    return (tone * torch.cat([1 + under, torch.ones_like(under), 1 - 1.4 * under], 1)).clamp(0, 1)


def outline(head: Head, people: Tensor) -> Tensor:
    """Signed distance to the skull and jaw."""
    jaw, chin_w, cheeks = column(people, "jaw"), column(people, "chin"), column(people, "cheeks")
    low = (head.y / head.chin).clamp(min=0)
    width = head.width * (1 + 0.075 * (cheeks - 0.35) * torch.exp(-((low - 0.52) ** 2) / 0.05))
    width = width * (1 - (0.30 - 0.26 * chin_w) * smooth(0.35, 1.1, low))
    power = torch.where(head.y > 0, 2.05 + 1.35 * jaw, torch.full_like(jaw, 2.15))
    tall = torch.where(head.y > 0, head.chin, torch.full_like(head.chin, 0.56))
    k = ((head.x.abs() / width + 1e-6) ** power + (head.y.abs() / tall + 1e-6) ** power) ** (1 / power)
    return (k - 1) * torch.minimum(width, tall) * 0.95


def ears(picture: Tensor, head: Head, people: Tensor, skin: Tensor, turn: Tensor) -> Tensor:
    """Both ears; the one on the far side goes behind the head as it turns."""
    size = 0.85 + 0.45 * column(people, "ears")
    for side in (-1.0, 1.0):
        px = head.x - side * (head.width * 0.985 - 0.05 * side * turn)
        ear = ellipse(px, head.y - 0.045, 0.055 * size, 0.118 * size)
        picture = paint(picture, skin * 0.90, inside(ear, head.px))
        inner = ellipse(px - side * 0.008, head.y - 0.045, 0.028 * size, 0.072 * size)
        picture = paint(picture, skin * 0.74, inside(inner, head.px * 3) * 0.7)
    return picture


def shading(head: Head) -> Tensor:
    """How bright the skin is, about 0.6 to 1.15: a lit ellipsoid with a nose, cheeks and eye sockets on it."""
    nx, ny = head.x / (head.width * 1.12), (head.y + 0.02) / 0.62

    def bump(cu: Tensor | float, cv: Tensor | float, su: float, sv: float, height: float) -> tuple[Tensor, Tensor]:
        du, dv = head.u - cu, head.v - cv
        g = height * torch.exp(-(du**2) / (2 * su * su) - dv**2 / (2 * sv * sv))
        return g * du / (su * su), g * dv / (sv * sv)

    parts = [bump(0.0, head.nose_y - 0.03, 0.050, 0.055, 0.034), bump(0.0, head.nose_y - 0.15, 0.034, 0.11, 0.016)]
    for side in (-1.0, 1.0):
        parts.append(bump(side * head.eye_x, head.eye_y, 0.085, 0.060, -0.013))
        parts.append(bump(side * (head.eye_x + 0.03), head.nose_y, 0.10, 0.09, 0.012))
    parts.append(bump(0.0, head.chin - 0.075, 0.075, 0.055, 0.010))
    for du, dv in parts:
        nx, ny = nx + du, ny + dv
    nz = (1 - 0.72 * (nx**2 + ny**2)).clamp(min=0.06).sqrt()
    length = torch.sqrt(nx**2 + ny**2 + nz**2)
    lx = head.light_x * (0.35 + 0.45 * head.light_strength)
    lambert = ((nx * lx - 0.42 * ny + 0.85 * nz) / length / torch.sqrt(lx**2 + 0.42**2 + 0.85**2)).clamp(min=0)
    return 0.56 + 0.50 * lambert


def skin(picture: Tensor, head: Head, people: Tensor, tone: Tensor, cover: Tensor, shade: Tensor) -> Tensor:
    """Shaded skin with blush, lit rim of lips and freckles."""
    shadow = tone * rgb(0.80, 0.70, 0.70, tone)
    lit = mix(shadow, tone * 1.04, ((shade - 0.56) / 0.48).clamp(0, 1.1)).clamp(0, 1)
    blush = column(people, "blush")
    for side in (-1.0, 1.0):
        spot = torch.exp(-((head.u - side * (head.eye_x + 0.055)) ** 2) / 0.010 - (head.v - head.nose_y) ** 2 / 0.007)
        lit = mix(lit, lit * rgb(1.04, 0.80, 0.80, tone), spot * (0.15 + 0.50 * blush))
    freckled = smooth(0.72, 0.80, column(people, "freckles"))
    for i in range(12):
        fu = (0.075 + 0.034 * (i % 4)) * (1 if i % 2 else -1) + 0.012 * ((i * 7) % 5 - 2)
        fv = head.nose_y - 0.075 + 0.030 * (i // 3) + 0.010 * ((i * 5) % 3)
        dot = torch.sqrt((head.u - fu) ** 2 + (head.v - fv) ** 2 + 1e-9) - 0.0085
        lit = mix(lit, lit * rgb(0.74, 0.60, 0.52, tone), inside(dot, head.px) * freckled)
    return paint(picture, lit, cover)


def eyes(picture: Tensor, head: Head, people: Tensor, scenes: Tensor, tone: Tensor) -> Tensor:
    """Whites, irises, pupils, highlights, lids and lashes."""
    iris_colour = (pick(IRIS, kind(people, "iris")) * (0.80 + 0.45 * column(people, "iris_shade"))).clamp(0, 1)
    smile = smile_of(scenes)
    open_ = (0.80 + 0.40 * column(people, "eye_open")) * (1 - 0.16 * smile) * (0.90 + 0.14 * column(scenes, "lids"))
    tilt = (column(people, "eye_tilt") - 0.5) * 0.42
    half = head.eye_half
    gaze = (column(scenes, "gaze") - 0.5) * 0.040
    for side in (-1.0, 1.0):
        du, dv = head.u - side * head.eye_x, head.v - head.eye_y
        dv = dv + side * tilt * du
        bow = 1 - (du / half) ** 2
        top, low = -0.58 * half * open_ * bow, (0.40 - 0.10 * smile) * half * open_ * bow
        shape = torch.maximum(top - dv, dv - low) * 0.85
        opening = inside(shape, head.px)
        picture = paint(picture, tone * 0.80, inside(shape - 0.016, head.px * 5) * 0.55)
        white = rgb(0.975, 0.972, 0.965, tone) * (0.90 + 0.10 * smooth(-0.05, 0.03, dv))
        picture = paint(picture, white, opening)
        round_ = torch.sqrt((du - gaze) ** 2 + (dv + 0.006) ** 2 + 1e-9)
        radius = half * 0.535
        picture = paint(picture, iris_colour * 0.55, inside(round_ - radius, head.px) * opening)
        glow = 0.86 + 0.42 * smooth(-radius * 0.6, radius * 0.9, dv)
        picture = paint(picture, (iris_colour * glow).clamp(0, 1), inside(round_ - radius * 0.84, head.px) * opening)
        picture = paint(picture, rgb(0.06, 0.055, 0.06, tone), inside(round_ - radius * 0.43, head.px) * opening)
        spark = torch.sqrt((du - gaze - 0.016 - 0.012 * head.light_x) ** 2 + (dv + 0.024) ** 2 + 1e-9) - 0.0125
        picture = paint(picture, rgb(1, 1, 1, tone), inside(spark, head.px) * opening * 0.95)
        lash_range = inside(du.abs() - half * 1.04, 0.02)
        lash = (dv - top).abs() - 0.0105 * (0.7 + 0.5 * (side * du / half).clamp(-1, 1))
        picture = paint(picture, rgb(0.13, 0.095, 0.085, tone), inside(lash, head.px) * lash_range)
        crease = (dv - top + 0.030 + 0.01 * bow).abs() - 0.0045
        picture = paint(picture, tone * 0.62, inside(crease, head.px) * inside(du.abs() - half * 0.92, 0.05) * 0.75)
        under = (dv - low - 0.004).abs() - 0.003
        picture = paint(picture, tone * 0.66, inside(under, head.px) * inside(du.abs() - half * 0.85, 0.05) * 0.6)
    return picture


def brows(picture: Tensor, head: Head, people: Tensor, scenes: Tensor, hair: Tensor) -> Tensor:
    """Two tapered strokes."""
    thick = 0.0125 + 0.024 * column(people, "brow_thickness")
    arch = (column(people, "brow_arch") - 0.35) * 0.090
    lift = 0.108 + 0.058 * column(people, "brow_height") + 0.018 * (column(scenes, "brow_raise") - 0.5)
    half = head.eye_half * 1.16
    dark = mix(hair * 0.78, rgb(0.16, 0.12, 0.10, hair), torch.full_like(thick, 0.22))
    for side in (-1.0, 1.0):
        du = side * head.u - head.eye_x * 1.02
        t = du / half
        curve = head.eye_y - lift - arch * (1 - t**2) - 0.012 * t + 0.030 * smooth(0.3, 1.1, t)
        taper = thick * (1.0 - 0.45 * (t + 0.1).clamp(0, 1))
        stroke = torch.maximum((head.v - curve).abs() - taper, (du.abs() - half))
        picture = paint(picture, dark, inside(stroke, head.px * 1.6) * 0.93)
    return picture


def nose(picture: Tensor, head: Head, people: Tensor, tone: Tensor) -> Tensor:
    """Soft underside, nostrils and a touch of light."""
    wide = 0.052 + 0.044 * column(people, "nose_width")
    base = ellipse(head.u, head.v - head.nose_y - 0.010, wide * 1.10, 0.030)
    above = ellipse(head.u, head.v - head.nose_y + 0.018, wide * 0.98, 0.040)
    picture = paint(
        picture, tone * rgb(0.70, 0.57, 0.55, tone), inside(base, 0.022) * (1 - inside(above, 0.024)) * 0.85
    )
    for side in (-1.0, 1.0):
        hole = ellipse(head.u - side * wide * 0.50, head.v - head.nose_y - 0.012, wide * 0.27, 0.0105)
        picture = paint(picture, tone * rgb(0.42, 0.28, 0.27, tone), inside(hole, head.px * 1.6) * 0.85)
        wing = (ellipse(head.u - side * wide * 0.86, head.v - head.nose_y + 0.006, wide * 0.36, 0.034)).abs() - 0.003
        far = inside(-(side * head.u - wide * 0.95), 0.02)
        picture = paint(picture, tone * rgb(0.66, 0.53, 0.51, tone), inside(wing, head.px * 1.5) * far * 0.65)
    shine = torch.exp(-((head.u - 0.012 * head.light_x) ** 2) / 0.0006 - (head.v - head.nose_y + 0.035) ** 2 / 0.0010)
    return picture + (1 - picture) * shine * 0.20


def smile_of(scenes: Tensor) -> Tensor:
    """0.15 neutral, 0.6 gentle, 1 broad."""
    levels = torch.tensor((0.15, 0.60, 1.0), device=scenes.device)
    return levels[kind(scenes, "expression")].reshape(-1, 1, 1, 1)


def mouth(picture: Tensor, head: Head, people: Tensor, scenes: Tensor, tone: Tensor) -> Tensor:
    """Lips that curve with the smile; a broad smile shows teeth."""
    smile = smile_of(scenes)
    broad = smooth(0.75, 0.95, smile)
    half = head.mouth_half * (1 + 0.22 * smile)
    full = 0.020 + 0.026 * column(people, "lip_fullness")
    t = (head.u / half).clamp(-1.6, 1.6)
    line = head.mouth_y - 0.085 * smile * (t**2 - 0.35)
    gap = broad * (0.034 + 0.020 * column(scenes, "mouth_open")) * (1 - t**2)
    redness = column(people, "lip_colour")
    colour = (tone * mix(rgb(0.90, 0.62, 0.60, tone), rgb(0.94, 0.46, 0.50, tone), redness)).clamp(0, 1)
    bow = (1 - t**2).clamp(min=-0.5)
    upper_edge = line - gap - full * 0.85 * bow * (1 - 0.22 * torch.exp(-(t**2) / 0.03))
    lower_edge = line + gap + full * 1.10 * bow
    lips = torch.maximum(upper_edge - head.v, head.v - lower_edge)
    reach = inside(head.u.abs() - half, 0.012)
    picture = paint(picture, tone * 0.74, inside(head.v - lower_edge - 0.018, 0.03) * inside(lower_edge - head.v, 0.02)
                    * inside(head.u.abs() - half * 0.6, 0.08) * 0.45)  # fmt: skip
    below = (head.v > line).float()
    picture = paint(picture, colour * mix(0.86, 1.04, below), inside(lips, head.px) * reach)
    hollow = torch.maximum(line - gap - head.v, head.v - line - gap)
    picture = paint(picture, rgb(0.30, 0.10, 0.10, tone), inside(hollow, head.px) * reach * (gap > 0.002))
    teeth = torch.maximum(line - gap + 0.002 - head.v, head.v - line - gap * 0.35)
    picture = paint(
        picture,
        rgb(0.965, 0.955, 0.935, tone),
        inside(teeth, head.px) * inside(head.u.abs() - half * 0.86, 0.02) * broad,
    )
    seam = (head.v - line).abs() - 0.0055 * (0.6 + 0.4 * bow)
    picture = paint(picture, tone * rgb(0.48, 0.30, 0.29, tone), inside(seam, head.px) * reach * (1 - broad))
    for side in (-1.0, 1.0):
        corner_v = head.mouth_y - 0.085 * smile * 0.65
        corner = torch.sqrt((head.u - side * half) ** 2 + (head.v - corner_v) ** 2 + 1e-9) - 0.012
        picture = paint(picture, tone * rgb(0.60, 0.45, 0.44, tone), inside(corner, 0.02) * 0.75)
        fold_u = side * head.u - half - 0.035
        fold = (fold_u - 0.35 * (head.v - head.mouth_y) ** 2 + 0.20 * (head.v - head.mouth_y + 0.06)).abs() - 0.004
        between = inside((head.v - head.mouth_y + 0.055).abs() - 0.055, 0.04)
        picture = paint(picture, tone * 0.72, inside(fold, head.px * 2) * between * smile * 0.55)
    return picture


def glasses(picture: Tensor, head: Head, people: Tensor, shown: Tensor) -> Tensor:
    """Round or square frames; ``shown`` (B,) holds world.GLASSES indices."""
    some = (shown > 0).float().reshape(-1, 1, 1, 1)
    square = (shown == 2).float().reshape(-1, 1, 1, 1)
    style = column(people, "glasses_style")
    colour = mix(rgb(0.10, 0.095, 0.10, style), rgb(0.46, 0.26, 0.13, style), smooth(0.45, 0.55, style))
    colour = mix(colour, rgb(0.72, 0.60, 0.36, style), smooth(0.78, 0.82, style))
    thick = 0.0125 + 0.006 * (style < 0.78)
    across, tall = head.eye_half * 1.32, mix(head.eye_half * 1.24, head.eye_half * 1.02, square)
    for side in (-1.0, 1.0):
        du, dv = head.u - side * head.eye_x * 1.04, head.v - head.eye_y - 0.012
        power = mix(2.0, 4.5, square)
        k = ((du.abs() / across + 1e-6) ** power + (dv.abs() / tall + 1e-6) ** power) ** (1 / power)
        rim = (k - 1) * tall
        picture = picture + (1 - picture) * inside(rim, head.px) * some * 0.07
        glint = inside((du + dv * 0.9 + 0.03).abs() - 0.012, 0.02) * inside(rim + 0.02, 0.02)
        picture = picture + (1 - picture) * glint * some * 0.18
        picture = paint(picture, colour, inside(rim.abs() - thick, head.px) * some)
        arm = torch.maximum(
            (dv + 0.035).abs() - thick,
            (head.width * 1.0 - side * head.x) * 0 + head.eye_x * 1.04 + across - side * head.u,
        )
        picture = paint(
            picture, colour, inside(arm, head.px) * inside(side * head.x - head.width * 1.0, head.px) * some
        )
    bridge = torch.maximum(
        (head.v - head.eye_y + 0.005 + 0.25 * (0.06**2 - head.u**2)).abs() - thick,
        head.u.abs() - (head.eye_x * 1.04 - across),
    )
    return paint(picture, colour, inside(bridge, head.px) * some)
