"""facexlib's RetinaFace (mobile0.25) with our own surroundings: weights, anchors and decoding.

facexlib's helper downloads, allows one set of anchors only and looks at one size; none of that suits here.
Shapes: A anchors, N faces found. Boxes are left, top, right, bottom.
Reference: Deng et al., RetinaFace, arXiv 1905.00641.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from headshot_ui.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import torch
    from PIL import Image

STRIDES = (8, 16, 32)
VARIANCES = (0.1, 0.2)
MEAN_BGR = (104.0, 117.0, 123.0)


@dataclass(frozen=True)
class WeightsConfig:
    """What the numbers in a weights file were trained with, which the file itself does not say."""

    min_sizes: tuple[tuple[int, int], ...] = ((16, 32), (64, 128), (256, 512))  # pixels, two for each stride
    negative_slope: float | None = None  # of the rectifiers; None: as facexlib builds them
    threshold: float = 0.9  # score of a face that several scales see
    lone_threshold: float = 0.98  # score of a face that one scale alone sees


#: biubug6's own file, trained on WIDER FACE, has other anchors and plain rectifiers. With facexlib's leaky ones it
#: seems to work, yet its boxes and landmarks are off by a fifth of the face.
KNOWN = {
    "mobilenet0.25_Final": WeightsConfig(min_sizes=((10, 20), (32, 64), (128, 256)), negative_slope=0.0),
}


@dataclass(frozen=True)
class RawFaces:
    """What one look at a picture of one size gives, in pixels of that picture, unsorted."""

    boxes: np.ndarray  # (N, 4) float32
    landmarks: np.ndarray  # (N, 5, 2) float32
    scores: np.ndarray  # (N,) float32, 0 to 1


def read_config(weights: Path) -> WeightsConfig:
    """From ``<weights>.json`` beside the file (fields of WeightsConfig), else the table, else facexlib's own.

    Raises ModelError when the JSON cannot be understood.
    """
    known = KNOWN.get(weights.stem, WeightsConfig())
    path = weights.with_suffix(".json")
    if not path.is_file():
        return known
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if "min_sizes" in data:
            data["min_sizes"] = tuple((int(small), int(large)) for small, large in data["min_sizes"])
        config = replace(known, **data)
        if len(config.min_sizes) != len(STRIDES):
            raise ValueError("three pairs of anchor sizes are needed")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise ModelError(f"The face detector's settings {path} cannot be read: correct or remove that file.") from error
    return config


def read_state(path: Path) -> Mapping[str, torch.Tensor]:
    """Tensors of a .safetensors or .pth file, names without “module.”; nothing in a .pth is ever run.

    Raises ModelError naming the file when it is missing or damaged.
    """
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        return {name.removeprefix("module."): value for name, value in state.items()}
    except FileNotFoundError as error:
        raise ModelError(f"The face detector is missing: put its weights at {path}.") from error
    except Exception as error:  # every reader has its own errors for a damaged file
        raise ModelError(f"The face detector {path} is damaged: get the file again.") from error


def build_net(config: WeightsConfig, device: str) -> torch.nn.Module:
    """The network with random weights. It gives boxes (1, A, 4), scores (1, A, 2) and landmarks (1, A, 10)."""
    import torch
    from facexlib.detection.retinaface import RetinaFace

    net: torch.nn.Module = RetinaFace("mobile0.25", device=torch.device(device))
    if config.negative_slope is not None:
        for layer in net.modules():
            if isinstance(layer, torch.nn.LeakyReLU):
                layer.negative_slope = config.negative_slope
    return net.eval()


def load_net(path: Path, config: WeightsConfig, device: str) -> torch.nn.Module:
    """The network with the weights of ``path``. Raises ModelError when it is missing, damaged or another network."""
    state = read_state(path)
    net = build_net(config, device)
    try:
        absent = net.load_state_dict(state, strict=False).missing_keys
    except (RuntimeError, AttributeError) as error:
        raise ModelError(f"{path} does not hold RetinaFace mobile0.25: replace it by the right file.") from error
    absent = [name for name in absent if not name.endswith("num_batches_tracked")]  # counts batches of training only
    if absent:
        raise ModelError(f"{path} is incomplete (no “{absent[0]}”): replace it by the right file.")
    return net


@lru_cache(maxsize=64)  # photos of one phone have few shapes
def anchors(height: int, width: int, min_sizes: tuple[tuple[int, int], ...]) -> np.ndarray:
    """(A, 4) middle x, middle y, width, height as shares of the picture, in the order of the network's output."""
    import numpy as np

    levels = []
    for stride, sizes in zip(STRIDES, min_sizes, strict=True):
        rows, columns = -(-height // stride), -(-width // stride)
        y, x, size = np.meshgrid(np.arange(rows) + 0.5, np.arange(columns) + 0.5, np.array(sizes), indexing="ij")
        level = np.stack([x * stride / width, y * stride / height, size / width, size / height], axis=-1)
        levels.append(level.reshape(-1, 4))
    return np.concatenate(levels).astype(np.float32)


def look(net: torch.nn.Module, image: Image.Image, config: WeightsConfig, device: str, threshold: float) -> RawFaces:
    """All anchors of one RGB picture whose score is at least ``threshold``; overlapping ones are not merged.

    Decoding as in SSD: middle = anchor + offset · 0.1 · anchor size, extent = anchor size · exp(0.2 · offset).
    """
    import numpy as np
    import torch

    bgr = np.asarray(image, dtype=np.float32)[:, :, ::-1] - np.array(MEAN_BGR, dtype=np.float32)
    pixels = torch.from_numpy(np.ascontiguousarray(bgr.transpose(2, 0, 1))[None])
    with torch.inference_mode():
        offsets, classes, marks = (part[0].float().cpu().numpy() for part in net(pixels.to(device)))
    keep = classes[:, 1] >= threshold
    anchor = anchors(image.height, image.width, config.min_sizes)[keep]
    offsets, marks = offsets[keep], marks[keep].reshape(-1, 5, 2)
    middle = anchor[:, :2] + offsets[:, :2] * VARIANCES[0] * anchor[:, 2:]
    half = anchor[:, 2:] * np.exp(offsets[:, 2:] * VARIANCES[1]) / 2
    points = anchor[:, None, :2] + marks * VARIANCES[0] * anchor[:, None, 2:]
    size = np.array([image.width, image.height], dtype=np.float32)
    boxes = np.concatenate([(middle - half) * size, (middle + half) * size], axis=1)
    return RawFaces(boxes, points * size, classes[keep, 1])
