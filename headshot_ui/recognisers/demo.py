"""The recogniser of the drawn demo people: a small residual network of our own.

It has only ever seen cartoons. It looks at a wider cut-out than face recognisers for photographs do, because
hair is part of what makes a drawn person that person.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from headshot_ui.errors import ModelError

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from headshot_ui.dataset.types import Face
    from headshot_ui.settings import Settings

SIDE = 112
#: Where the five landmarks (left eye, right eye, nose, mouth corners) lie in the cut-out, in pixels of SIDE;
#: the eyes are 27 % of the side apart.
TEMPLATE = ((41.0, 51.0), (71.0, 51.0), (56.0, 67.0), (46.0, 84.0), (66.0, 84.0))


def alignment(landmarks: Tensor, side: int = SIDE, margin: float = 0.0) -> Tensor:
    """Similarity transforms (B, 2, 3) from cut-out pixels to picture pixels, least squares over the five landmarks.

    landmarks (B, 5, 2) in pixels. ``margin`` widens the view by that share of the side on every edge. With points as
    complex numbers, w the template and z the landmarks, both less their means, z ≈ b w has b = Σ z conj(w) / Σ |w|².
    """
    template = torch.tensor(TEMPLATE, dtype=torch.float32, device=landmarks.device) / SIDE
    template = (template + margin) / (1 + 2 * margin) * side
    z = torch.view_as_complex(landmarks.float().contiguous())
    w = torch.view_as_complex(template)
    z_mean, w_mean = z.mean(1, keepdim=True), w.mean()
    w = w - w_mean
    b = ((z - z_mean) * w.conj()).sum(1, keepdim=True) / w.abs().square().sum()
    shift = z_mean - b * w_mean
    rows = torch.stack([b.real, -b.imag, shift.real, b.imag, b.real, shift.imag], dim=2)
    return rows.view(-1, 2, 3)


def cut_out(pictures: Tensor, transforms: Tensor, side: int = SIDE) -> Tensor:
    """(B, C, H, W) pictures and transforms of ``alignment`` to (B, C, side, side); outside is the edge's colour."""
    height, width = pictures.shape[-2:]
    places = torch.arange(side, device=pictures.device, dtype=torch.float32) + 0.5
    y, x = torch.meshgrid(places, places, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1).view(-1, 3)
    found = points @ transforms.transpose(1, 2)
    grid = found / found.new_tensor([width, height]) * 2 - 1
    return F.grid_sample(
        pictures, grid.view(-1, side, side, 2), mode="bilinear", padding_mode="border", align_corners=False
    )


class _Block(nn.Module):
    """Two 3 x 3 convolutions and a short cut."""

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width_in, width_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width_out)
        self.act = nn.PReLU(width_out)
        self.conv2 = nn.Conv2d(width_out, width_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(width_out)
        same = stride == 1 and width_in == width_out
        self.short = nn.Identity() if same else nn.Sequential(
            nn.AvgPool2d(stride) if stride > 1 else nn.Identity(), nn.Conv2d(width_in, width_out, 1, bias=False),
            nn.BatchNorm2d(width_out))  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        inner = self.act(self.norm1(self.conv1(x)))
        out: Tensor = self.act(self.norm2(self.conv2(inner)) + self.short(x))
        return out


class DemoRecogniserNet(nn.Module):
    """Cut-outs (B, 3, 112, 112) in [0, 1] to unit-norm identity vectors (B, 128)."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 112, 176)) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.PReLU(widths[0])
        )
        blocks: list[nn.Module] = [_Block(widths[0], widths[0], 1)]
        for before, after in zip(widths, widths[1:], strict=False):
            blocks.append(_Block(before, after, 2))
        blocks.append(_Block(widths[-1], widths[-1], 1))
        self.blocks = nn.Sequential(*blocks)
        # A weight for each place and channel keeps where a feature lies, which a plain mean would lose.
        self.gather = nn.Conv2d(widths[-1], widths[-1], 7, groups=widths[-1], bias=False)
        self.norm = nn.BatchNorm1d(widths[-1])
        self.out = nn.Linear(widths[-1], 128)

    def forward(self, x: Tensor) -> Tensor:
        features = self.gather(self.blocks(self.stem(x * 2 - 1))).flatten(1)
        return F.normalize(self.out(self.norm(features)).float(), dim=1)


class DemoRecogniser:
    """The network with its weights, behind the Recogniser protocol."""

    id = "demo"
    note = "Tells drawn demo people apart; it knows nothing about photographs."

    def __init__(self, net: DemoRecogniserNet, device: torch.device) -> None:
        self._net, self._device = net.to(device).eval(), device

    def embed(self, image: Image.Image, face: Face) -> np.ndarray:
        """Unit-norm float32 vector (128,) of the face in an RGB picture."""
        import numpy as np

        small, marks = _near_size(image.convert("RGB"), face.landmarks)
        pixels = torch.from_numpy(np.asarray(small, dtype=np.float32).transpose(2, 0, 1).copy() / 255)[None]
        with torch.inference_mode():
            cut = cut_out(pixels, alignment(torch.tensor([marks])))
            vector: np.ndarray = self._net(cut.to(self._device))[0].float().cpu().numpy()
        return vector


def _near_size(
    image: Image.Image, landmarks: tuple[tuple[float, float], ...]
) -> tuple[Image.Image, list[tuple[float, float]]]:
    """Shrink large pictures first, so that cutting out does not skip pixels."""
    from PIL import Image

    scale = float(alignment(torch.tensor([landmarks]))[0, :, 0].norm())
    if scale <= 1.5:
        return image, list(landmarks)
    size = (max(1, round(image.width / scale)), max(1, round(image.height / scale)))
    across, down = size[0] / image.width, size[1] / image.height
    return image.resize(size, Image.Resampling.LANCZOS), [(x * across, y * down) for x, y in landmarks]


def read_net(path: Path) -> DemoRecogniserNet:
    """The network with weights from a safetensors file (fp16 on disk, float32 in memory)."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    net = DemoRecogniserNet()
    try:
        net.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
        )
    except FileNotFoundError as error:
        raise ModelError(
            f"The demo recogniser is missing: put {path} back, for example by fetching the repository again."
        ) from error
    except (SafetensorError, RuntimeError, OSError) as error:
        raise ModelError(
            f"The demo recogniser {path} is damaged: replace it by the file from the repository."
        ) from error
    return net.eval()


@dataclass(frozen=True)
class DemoRecogniserLoader:
    """How the program finds and loads this recogniser."""

    id: str = "demo"
    title: str = "Demo recogniser (drawn people only)"
    demo: bool = True

    def weights(self, settings: Settings) -> Path:
        """Where the weights lie."""
        return settings.models_dir / "demo" / "recogniser" / "recogniser.safetensors"

    def available(self, settings: Settings) -> bool:
        """Whether the weights are there."""
        return self.weights(settings).is_file()

    def load(self, settings: Settings) -> DemoRecogniser:
        """Read the weights. Raises ModelError when they are missing or damaged."""
        return DemoRecogniser(read_net(self.weights(settings)), torch.device(settings.device))


RECOGNISER = DemoRecogniserLoader()
