"""Draws cartoon portraits: who (people) in what setting (scenes), batched on any device.

Everything is a signed distance turned into coverage and painted back to front; there are no meshes and no
image files. ``truth`` gives the face boxes and landmarks that belong to a drawing.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tools.demo_models import backdrops, clothes, face, hair
from tools.demo_models.palette import inside, rgb
from tools.demo_models.world import (
    IDENTITY_DIMS,
    SCENE_DIMS,
    column,
    kind,
    sample_people,
    sample_scenes,
)

__all__ = ["IDENTITY_DIMS", "SCENE_DIMS", "draw", "sample_people", "sample_scenes", "truth"]


def _placement(scenes: Tensor) -> dict[str, Tensor]:
    """Where the head is and how it is turned; (B, 1, 1, 1) each, picture coordinates [-1, 1]."""
    framing = kind(scenes, "framing")
    zoom = torch.tensor((1.28, 1.03, 0.83), device=scenes.device)[framing].reshape(-1, 1, 1, 1)
    centre = torch.tensor((0.02, -0.12, -0.26), device=scenes.device)[framing].reshape(-1, 1, 1, 1)
    yaw_class = kind(scenes, "yaw").reshape(-1, 1, 1, 1).float() - 1
    raw = column(scenes, "yaw")
    inner = torch.where(raw < 0.30, raw / 0.30, torch.where(raw < 0.70, (raw - 0.30) / 0.40, (raw - 0.70) / 0.30))
    yaw = torch.where(yaw_class == 0, (inner - 0.5) * 0.24, yaw_class * 0.32 + (inner - 0.5) * 0.20)
    return {
        "scale": zoom * (0.95 + 0.10 * column(scenes, "zoom")),
        "cx": (column(scenes, "shift_x") - 0.5) * 0.14,
        "cy": centre + (column(scenes, "shift_y") - 0.5) * 0.09,
        "roll": (column(scenes, "roll") - 0.5) * 0.20,
        "yaw": yaw,
        "pitch": (column(scenes, "pitch") - 0.5) * 0.10,
    }


def _measures(people: Tensor) -> dict[str, Tensor]:
    """Positions of the features of a face, in head units."""
    long_ = column(people, "face_length")
    return {
        "width": 0.375 + 0.075 * column(people, "face_width"),
        "chin": 0.445 + 0.085 * long_,
        "eye_x": 0.158 + 0.034 * column(people, "eye_spacing"),
        "eye_y": -0.030 - 0.050 * (column(people, "eye_height") - 0.5),
        "eye_half": 0.088 + 0.030 * column(people, "eye_size"),
        "nose_y": 0.128 + 0.062 * column(people, "nose_length"),
        "mouth_y": 0.268 + 0.045 * long_ + 0.020 * column(people, "nose_length"),
        "mouth_half": 0.100 + 0.050 * column(people, "mouth_width"),
    }


def _light_side(scenes: Tensor) -> Tensor:
    light = kind(scenes, "light")
    small = (column(scenes, "place_a") - 0.5) * 0.4
    side = torch.tensor((0.0, -1.0, 1.0, 0.0), device=scenes.device)[light].reshape(-1, 1, 1, 1)
    return side * 1.25 + torch.where(side == 0, small, torch.zeros_like(small))


def draw(people: Tensor, scenes: Tensor, size: int = 256) -> Tensor:
    """Draw a batch.

    Args:
        people: (B, IDENTITY_DIMS) in [0, 1].
        scenes: (B, SCENE_DIMS) in [0, 1], same device.
        size: side of the square pictures in pixels.

    Returns:
        (B, 3, size, size) float32 sRGB in [0, 1].
    """
    place, body = _placement(scenes), _measures(people)
    line = (torch.arange(size, device=people.device, dtype=torch.float32) + 0.5) / size * 2 - 1
    grid_x, grid_y = line.reshape(1, 1, 1, -1), line.reshape(1, 1, -1, 1)
    bx, by = (grid_x - place["cx"]) / place["scale"], (grid_y - place["cy"]) / place["scale"]
    bx, by = torch.broadcast_tensors(bx, by)
    px = 2.6 / size / place["scale"]
    cos, sin = torch.cos(place["roll"]), torch.sin(place["roll"])
    pivot = 0.60
    x = cos * bx + sin * (by - pivot)
    y = -sin * bx + cos * (by - pivot) + pivot
    reach = body["width"] * 1.10
    u = reach * torch.sin(torch.asin((x / reach).clamp(-0.995, 0.995)) - place["yaw"])
    u = u + (x - (x / reach).clamp(-0.995, 0.995) * reach)
    v = y - place["pitch"] * (1 - (y / 0.6) ** 2).clamp(min=0)
    head = face.Head(x=x, y=y, u=u, v=v, px=px, light_x=_light_side(scenes),
                     light_strength=column(scenes, "light_strength"), **body)  # fmt: skip
    tone, side = face.skin_colour(people), head.light_x.clamp(-1, 1)
    picture = backdrops.backdrop(kind(scenes, "backdrop"), grid_x, grid_y, column(scenes, "place_a"),
                                 column(scenes, "place_b"), column(scenes, "place_c"))  # fmt: skip
    picture = hair.behind(picture, head, people)
    picture = clothes.neck(picture, bx, by, tone, side, px)
    wide = 0.92 + 0.12 * column(scenes, "shoulders")
    picture = clothes.garment(picture, kind(scenes, "garment"), kind(scenes, "attire_colour"), column(scenes, "tie"),
                              column(scenes, "fold"), wide, bx, by, tone, side, px)  # fmt: skip
    picture = face.ears(picture, head, people, tone, place["yaw"])
    edge = face.outline(head, people)
    picture = face.skin(picture, head, people, tone, inside(edge, px), face.shading(head))
    picture = face.nose(picture, head, people, tone)
    picture = face.mouth(picture, head, people, scenes, tone)
    picture = hair.beard(picture, head, people, edge)
    picture = face.eyes(picture, head, people, scenes, tone)
    picture = face.brows(picture, head, people, scenes, hair.hair_colour(people))
    picture = hair.in_front(picture, head, people)
    picture = face.glasses(picture, head, people, kind(people, "glasses"))
    return _develop(picture, scenes, grid_x)


def _develop(picture: Tensor, scenes: Tensor, x: Tensor) -> Tensor:
    """Light over the whole picture: side falloff, warmth, exposure."""
    light = kind(scenes, "light").reshape(-1, 1, 1, 1)
    side = _light_side(scenes).clamp(-1, 1)
    strength = 0.07 + 0.06 * column(scenes, "light_strength")
    picture = picture * (1 + strength * side * x * (light > 0))
    warm = rgb(1.035, 0.965, 0.835, x) * torch.ones_like(side)
    picture = torch.where(light == 3, picture * warm, picture)
    picture = picture * (0.96 + 0.08 * column(scenes, "exposure"))
    return picture.clamp(0, 1)


def truth(people: Tensor, scenes: Tensor, size: int = 256) -> tuple[Tensor, Tensor]:
    """Face boxes (B, 4) and landmarks (B, 5, 2) in pixels: eyes, nose, mouth corners; image left first."""
    place, body = _placement(scenes), _measures(people)
    smile = face.smile_of(scenes)
    half = body["mouth_half"] * (1 + 0.22 * smile)
    corner = body["mouth_y"] - 0.085 * smile * 0.65
    zero = torch.zeros_like(half)
    points = [(-body["eye_x"], body["eye_y"]), (body["eye_x"], body["eye_y"]), (zero, body["nose_y"] - 0.01),
              (-half, corner), (half, corner)]  # fmt: skip
    reach = body["width"] * 1.10
    cos, sin = torch.cos(place["roll"]), torch.sin(place["roll"])

    def to_pixels(x: Tensor, y: Tensor) -> Tensor:
        y = y - 0.60
        bx, by = cos * x - sin * y, sin * x + cos * y + 0.60
        pixel_x, pixel_y = bx * place["scale"] + place["cx"], by * place["scale"] + place["cy"]
        return torch.cat([pixel_x.reshape(-1, 1), pixel_y.reshape(-1, 1)], 1).add(1).mul(size / 2)

    landmarks = []
    for u, v in points:
        x = reach * torch.sin(torch.asin((u / reach).clamp(-0.999, 0.999)) + place["yaw"])
        landmarks.append(to_pixels(x, v + place["pitch"] * (1 - (v / 0.6) ** 2).clamp(min=0)))
    centre = to_pixels(zero, (body["chin"] - 0.40) / 2)
    half_w = body["width"].reshape(-1, 1) * place["scale"].reshape(-1, 1) * size / 2
    half_h = (body["chin"].reshape(-1, 1) + 0.40) / 2 * place["scale"].reshape(-1, 1) * size / 2
    boxes = torch.cat(
        [centre[:, :1] - half_w, centre[:, 1:] - half_h, centre[:, :1] + half_w, centre[:, 1:] + half_h], 1
    )
    return boxes, torch.stack(landmarks, 1)
