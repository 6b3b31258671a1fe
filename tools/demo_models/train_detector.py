"""Train facexlib's RetinaFace mobile0.25 on drawn people, with facexlib's own anchors.

The loss is that of RetinaFace (arXiv 1905.00641) without the dense branch: smooth L1 on boxes (weight 2) and landmarks,
cross-entropy with seven hard negatives for each positive anchor.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from facexlib.detection.retinaface import RetinaFace
from facexlib.detection.retinaface_utils import PriorBox
from torch import Tensor

from tools.demo_models import dataset
from tools.demo_models.canvases import Canvases, compose, disturb
from tools.demo_models.common import (
    Average,
    Clock,
    adamw,
    arguments,
    autocast,
    compile_or_not,
    cosine,
    prepare_device,
    save_tensors,
    say,
    set_rate,
)

VARIANCES = (0.1, 0.2)
MEAN_BGR = (104.0, 117.0, 123.0)


def network_input(pictures: Tensor) -> Tensor:
    """RGB in [0, 1] to what facexlib feeds: BGR, 0 to 255, less the mean."""
    return pictures.flip(1) * 255 - pictures.new_tensor(MEAN_BGR).view(1, 3, 1, 1)


def anchors(config: dict, side: int, device: torch.device) -> Tensor:
    """(A, 4) middle x, y, width, height as shares of the side."""
    return PriorBox(config, image_size=(side, side)).forward().to(device)


def _overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of boxes (B, T, 4) with others (A, 4), all left, top, right, bottom: (B, T, A)."""
    low = torch.maximum(boxes[:, :, None, :2], others[None, None, :, :2])
    high = torch.minimum(boxes[:, :, None, 2:], others[None, None, :, 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    area, other_area = (boxes[..., 2:] - boxes[..., :2]).prod(-1), (others[:, 2:] - others[:, :2]).prod(-1)
    return shared / (area[:, :, None] + other_area - shared)


def targets(made: Canvases, priors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Per anchor: box (B, A, 4) and landmark (B, A, 10) offsets, whether it is a face, whether it is background.

    An anchor is a face from an overlap of 0.35 on, or when no anchor fits a face better; below 0.35 it is background.
    """
    side = made.pictures.shape[-1]
    boxes, marks = made.boxes / side, made.landmarks / side
    corners = torch.cat([priors[:, :2] - priors[:, 2:] / 2, priors[:, :2] + priors[:, 2:] / 2], 1)
    overlap = _overlaps(boxes, corners) * made.there[:, :, None]
    best, who = overlap.max(1)
    forced = F.one_hot(overlap.argmax(2), overlap.shape[2]).bool() & (overlap.amax(2) > 0.2)[:, :, None]
    who = torch.where(forced.any(1), forced.float().argmax(1), who)
    face = (best >= 0.35) | forced.any(1)
    box = boxes.gather(1, who[:, :, None].expand(-1, -1, 4))
    mark = marks.flatten(2).gather(1, who[:, :, None].expand(-1, -1, 10)).unflatten(2, (5, 2))
    middle = ((box[..., :2] + box[..., 2:]) / 2 - priors[:, :2]) / (VARIANCES[0] * priors[:, 2:])
    extent = ((box[..., 2:] - box[..., :2]).clamp(min=1e-4) / priors[:, 2:]).log() / VARIANCES[1]
    points = (mark - priors[None, :, None, :2]) / (VARIANCES[0] * priors[None, :, None, 2:])
    return torch.cat([middle, extent], 2), points.flatten(2), face, ~face


def multibox_loss(out: tuple[Tensor, Tensor, Tensor], made: Canvases, priors: Tensor) -> Tensor:
    """RetinaFace's loss; ``out`` is boxes (B, A, 4), classes (B, A, 2), landmarks (B, A, 10) of the raw network."""
    box, classes, marks = (part.float() for part in out)
    with torch.no_grad():
        wanted_box, wanted_marks, face, background = targets(made, priors)
    count = face.sum().clamp(min=1)
    at_box = (F.smooth_l1_loss(box, wanted_box, reduction="none").sum(2) * face).sum() / count
    at_marks = (F.smooth_l1_loss(marks, wanted_marks, reduction="none").sum(2) * face).sum() / count
    wrong = F.cross_entropy(classes.flatten(0, 1), face.flatten().long(), reduction="none").view_as(face)
    with torch.no_grad():
        ranked = wrong.masked_fill(~background, -1).argsort(1, descending=True).argsort(1)
        hard = background & (ranked < (7 * face.sum(1, keepdim=True)).clamp(min=30))
    at_classes = (wrong * (face | hard)).sum() / count
    return 2 * at_box + at_classes + at_marks


def evaluate(net: RetinaFace, made: Canvases, threshold: float = 0.8) -> dict[str, float]:
    """Recall, precision (overlap 0.5) and mean landmark error as share of the box, by facexlib's own decoding."""
    right = found = real = 0
    errors = []
    for i in range(len(made.pictures)):
        bgr = (made.pictures[i].flip(0) * 255).permute(1, 2, 0).cpu().numpy().astype(np.float32)
        faces = np.asarray(net.detect_faces(bgr, threshold), dtype=np.float32).reshape(-1, 15)
        boxes, marks = made.boxes[i][made.there[i]].cpu(), made.landmarks[i][made.there[i]].cpu()
        real, found = real + len(boxes), found + len(faces)
        if not len(boxes) or not len(faces):
            continue
        overlap = _overlaps(boxes[None], torch.from_numpy(faces[:, :4]))[0]
        best, which = overlap.max(1)
        for j in (best > 0.5).nonzero().flatten().tolist():
            right += 1
            guess = torch.from_numpy(faces[int(which[j]), 5:].copy()).view(5, 2)
            errors.append(float((guess - marks[j]).norm(dim=1).mean() / (boxes[j, 2:] - boxes[j, :2]).max()))
    return {
        "recall": right / max(real, 1),
        "precision": right / max(found, 1),
        "landmark_error": float(np.mean(errors or [1.0])),
    }


def save(net: RetinaFace, average: Average, out: Path) -> None:
    """Write the averaged weights, convolutions in fp16 (0.9 MB), with facexlib's names."""
    average.swap()
    state = {
        key: value.detach().cpu().to(torch.float16 if value.ndim == 4 else value.dtype, copy=True)
        for key, value in net.state_dict().items()
    }
    average.swap()
    save_tensors(
        out / "detector" / "retinaface_mobile025.safetensors",
        state,
        {"format": "pt", "anchors": "16/32, 64/128, 256/512"},
    )


def main() -> None:
    """Train within the time given and write ``detector/retinaface_mobile025.safetensors``."""
    parser = arguments(__doc__ or "", 150)
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--pictures", type=int, default=32_000)
    options = parser.parse_args()
    device = prepare_device(options.device, options.seed)
    drawn = dataset.load(options.data)
    kept_back = 16 if options.smoke else 400
    count = min(options.pictures, len(drawn.pictures) - kept_back)
    pictures, boxes, landmarks = (
        drawn.on(device, 0, count),
        drawn.boxes[:count].to(device),
        drawn.landmarks[:count].to(device),
    )
    net = RetinaFace("mobile0.25", phase="train", device=device)
    net.train()
    average = Average({"net": net}, 0.998)
    optimizer = adamw([p for p in net.parameters() if p.requires_grad], device, decay=0.001)
    sides = {
        320: options.batch or (4 if options.smoke else 96),
        640: max(1, (options.batch or (4 if options.smoke else 96)) // 4),
    }
    priors = {side: anchors(net.cfg, side, device) for side in sides}

    def step(module: torch.nn.Module, side: int) -> Tensor:
        made = disturb(compose(pictures, boxes, landmarks, sides[side], side))
        with autocast(device):
            out = module(network_input(made.pictures))
        return multibox_loss(out, made, priors[side])

    wanted = device.type == "cuda" and not options.no_compile
    runner = compile_or_not(net, lambda module: step(module, 320) + step(module, 640), wanted, "detector")
    say(f"[detector] {count} pictures")
    clock, saved = Clock(options.seconds, "detector"), 0.0
    while (progress := clock.progress()) < 1:
        side = 640 if clock.steps % 3 == 2 else 320
        set_rate(optimizer, cosine(progress, options.rate))
        loss = step(runner, side)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update()
        clock.count(sides[side])
        clock.say(lambda loss=loss: {"loss": float(loss.detach())})
        if clock.elapsed() - saved > 60:
            saved = clock.elapsed()
            save(net, average, options.out)
    save(net, average, options.out)
    started = time.monotonic()
    average.swap()
    net.eval()
    net.phase = "test"
    last = len(drawn.pictures) - kept_back
    unseen = (drawn.on(device, last, kept_back), drawn.boxes[last:].to(device), drawn.landmarks[last:].to(device))
    torch.manual_seed(1)
    shown = 8 if options.smoke else 200
    all_there = torch.ones(shown, 1, dtype=torch.bool, device=device)
    whole = Canvases(unseen[0][:shown].float() / 255, unseen[1][:shown, None], unseen[2][:shown, None], all_there)
    made_of = {side: compose(*unseen, shown, side) for side in (640, 320)}
    for name, made in (("canvases of 640", made_of[640]), ("canvases of 320", made_of[320]), ("whole pictures", whole)):
        with torch.inference_mode():
            figures = evaluate(net, made)
        say(f"[detector] {name}: " + "  ".join(f"{key} {value:.3f}" for key, value in figures.items()))
    say(f"[detector] done: {clock.steps} steps, measured in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
