"""Training pictures of the face detector: canvases with up to four drawn people of all sizes, made on the device.

A canvas is split at a random point into up to four fields. A field shows a picture at random size with its face
wholly inside, or something without a face: a gradient, noise, or the enlarged foot of a picture.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Canvases:
    """pictures (B, 3, S, S) RGB in [0, 1]; boxes (B, 4, 4), landmarks (B, 4, 5, 2) in pixels; there (B, 4): which."""

    pictures: Tensor
    boxes: Tensor
    landmarks: Tensor
    there: Tensor


def _fields(count: int, side: int, device: torch.device) -> Tensor:
    """(B, 4, 4) left, top, right, bottom of each canvas's fields; unused ones are empty."""
    split = (0.35 + 0.3 * torch.rand(count, 2, device=device)) * side
    layout = torch.rand(count, device=device)
    # one field, two side by side, two on top of each other, four
    cut_x = torch.where(
        (layout > 0.45) & ((layout < 0.60) | (layout > 0.75)), split[:, 0], torch.full_like(layout, side)
    ).round()
    cut_y = torch.where(layout > 0.60, split[:, 1], torch.full_like(layout, side)).round()
    zero, end = torch.zeros_like(cut_x), torch.full_like(cut_x, side)
    fields = [
        (zero, zero, cut_x, cut_y),
        (cut_x, zero, end, cut_y),
        (zero, cut_y, cut_x, end),
        (cut_x, cut_y, end, end),
    ]
    return torch.stack([torch.stack(field, 1) for field in fields], 1)


def _plain(count: int, side: int, device: torch.device) -> Tensor:
    """Backgrounds without a face: colour gradients with more or less coarse noise."""
    corners = torch.rand(count, 3, 2, 2, device=device)
    coarse = torch.rand(count, 3, side // 16, side // 16, device=device)
    out = F.interpolate(corners, (side, side), mode="bilinear", align_corners=True)
    rough = torch.rand(count, 1, 1, 1, device=device) ** 2
    return out * (1 - rough) + rough * F.interpolate(coarse, (side, side), mode="bilinear")


def _affine(source: Tensor, scale: Tensor, shift: Tensor, side: int) -> Tensor:
    """Sample (B, 3, s, s) pictures so that canvas = scale * picture + shift, pixels; outside is black."""
    size = source.shape[-1]
    rows = torch.zeros(len(source), 2, 3, device=source.device)
    rows[:, 0, 0] = rows[:, 1, 1] = side / (scale * size)
    rows[:, :, 2] = (side / 2 - shift) * 2 / (scale[:, None] * size) - 1
    grid = F.affine_grid(rows, [len(source), 3, side, side], align_corners=False)
    return F.grid_sample(source, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _scaled(source: Tensor, scale: Tensor, shift: Tensor, side: int) -> Tensor:
    """``_affine`` from the source halved or quartered where it gets much smaller, so that nothing is skipped."""
    out = _affine(source, scale, shift, side)
    for times in (2, 4, 8):
        if bool((scale < 1.5 / times).any()):
            smaller = _affine(F.avg_pool2d(source, times), scale * times, shift, side)
            out = torch.where((scale < 1.5 / times).view(-1, 1, 1, 1), smaller, out)
    return out


def compose(
    pictures: Tensor, boxes: Tensor, landmarks: Tensor, count: int, side: int, smallest: float = 18.0
) -> Canvases:
    """Put ``count`` canvases together. pictures (N, 3, 256, 256) uint8 with boxes (N, 4), landmarks (N, 5, 2)."""
    device = pictures.device
    size = pictures.shape[-1]
    fields = _fields(count, side, device)
    canvas = _plain(count, side, device)
    places = torch.arange(side, device=device) + 0.5
    x, y = places.view(1, 1, 1, side), places.view(1, 1, side, 1)
    all_boxes, all_marks, there = [], [], []
    for i in range(4):
        left, top, right, bottom = fields[:, i].unbind(1)
        room = torch.minimum(right - left, bottom - top)
        index = torch.randint(len(pictures), (count,), device=device)
        box, marks, source = boxes[index], landmarks[index], pictures[index].float() / 255
        face = (box[:, 2:] - box[:, :2]).amax(1)
        low, high = torch.full_like(room, smallest).log(), (room * 0.9).clamp(min=smallest + 1).log()
        scale = torch.exp(low + (high - low) * torch.rand(count, device=device)) / face
        whole = (torch.rand(count, device=device) < 0.3) & (right - left == side) & (bottom - top == side)
        scale = torch.where(whole, side / size * torch.ones_like(scale), scale)
        free_x = (right - left) - scale * (box[:, 2] - box[:, 0])
        free_y = (bottom - top) - scale * (box[:, 3] - box[:, 1])
        shift_x = left + free_x * torch.rand(count, device=device) - scale * box[:, 0]
        shift_y = top + free_y * torch.rand(count, device=device) - scale * box[:, 1]
        shift = torch.stack([shift_x, shift_y], 1)
        shift = torch.where(whole[:, None], torch.zeros_like(shift), shift)
        fits = (room > smallest * 1.3) & (((free_x > 0) & (free_y > 0)) | whole)
        kind = torch.rand(count, device=device)
        face_shown = fits & (kind < 0.85)
        # The foot of a picture, clothes only, as something that looks alike but is no face.
        foot = ~face_shown & (kind > 0.90)
        foot_scale = (bottom - top).clamp(min=16) / (size - box[:, 3] - 4).clamp(min=8)
        scale = torch.where(foot, foot_scale, scale)
        shift = torch.where(foot[:, None], torch.stack([left - scale * 40, top - scale * (box[:, 3] + 4)], 1), shift)
        layer = _scaled(source, scale, shift, side)
        inside = (
            (x >= left.view(-1, 1, 1, 1))
            & (x < right.view(-1, 1, 1, 1))
            & (y >= top.view(-1, 1, 1, 1))
            & (y < bottom.view(-1, 1, 1, 1))
        )
        reach = scale.view(-1, 1, 1, 1) * size
        x0, y0 = shift[:, 0].view(-1, 1, 1, 1), shift[:, 1].view(-1, 1, 1, 1)
        inside = inside & (x >= x0) & (x < x0 + reach) & (y >= y0) & (y < y0 + reach)
        canvas = torch.where(inside & (face_shown | foot).view(-1, 1, 1, 1), layer, canvas)
        all_boxes.append(box * scale[:, None] + shift.repeat(1, 2))
        all_marks.append(marks * scale.view(-1, 1, 1) + shift[:, None])
        there.append(face_shown)
    return Canvases(canvas, torch.stack(all_boxes, 1), torch.stack(all_marks, 1), torch.stack(there, 1))


def disturb(made: Canvases) -> Canvases:
    """Mirror half of the canvases; change colours, blur and add noise."""
    pictures, boxes, marks = made.pictures, made.boxes, made.landmarks
    count, side, device = len(pictures), pictures.shape[-1], pictures.device
    mirror = torch.rand(count, device=device) < 0.5
    pictures = torch.where(mirror.view(-1, 1, 1, 1), pictures.flip(3), pictures)
    flipped = torch.stack([side - boxes[..., 2], boxes[..., 1], side - boxes[..., 0], boxes[..., 3]], -1)
    boxes = torch.where(mirror.view(-1, 1, 1), flipped, boxes)
    turned = torch.stack([side - marks[..., 0], marks[..., 1]], -1)[:, :, [1, 0, 2, 4, 3]]
    marks = torch.where(mirror.view(-1, 1, 1, 1), turned, marks)
    soft = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, 1)
    pictures = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.25, soft, pictures)
    grey = pictures.mean(1, keepdim=True)
    pictures = grey + (pictures - grey) * (torch.rand(count, 1, 1, 1, device=device) * 1.3)
    gain = 1 + torch.randn(count, 3, 1, 1, device=device) * 0.06 + torch.randn(count, 1, 1, 1, device=device) * 0.15
    noise = torch.randn_like(pictures) * (torch.rand(count, 1, 1, 1, device=device) ** 2 * 0.06)
    return Canvases((pictures * gain + noise).clamp(0, 1), boxes, marks, made.there)
