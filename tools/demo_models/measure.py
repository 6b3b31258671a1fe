"""Does a picture show what its prompt asked for? Measured without the diffusion model and without the recogniser.

Two independent measures: a small classifier trained on drawings alone (train_judge.py), and the plain colour of the
shoulders. Pictures are (B, 3, H, W) in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tools.demo_models import world
from tools.demo_models.palette import CLOTH

if TYPE_CHECKING:
    from PIL import Image

#: Attribute → its classes, in the words that prompts use.
ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "attire_colour": world.COLOURS,
    "garment": world.GARMENTS,
    "backdrop": world.BACKDROPS,
    "light": world.LIGHTS,
    "framing": world.FRAMINGS,
    "expression": world.EXPRESSIONS,
}
WEIGHTS = Path(__file__).with_name("judge.safetensors")
_SIDE = 128


class Judge(nn.Module):
    """Pictures (B, 3, 128, 128) in [0, 1] to the logits of all attributes, one after the other."""

    def __init__(self, widths: tuple[int, ...] = (24, 40, 64, 96, 128)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = 3
        for width in widths:
            for stride in (2, 1):
                layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.SiLU()]
                before = width
        self.features = nn.Sequential(*layers)
        self.squeeze = nn.Conv2d(before, 32, 1)
        self.out = nn.Linear(32 * 16, sum(len(classes) for classes in ATTRIBUTES.values()))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.out(F.silu(self.squeeze(self.features(pictures * 2 - 1))).flatten(1))


def split(logits: Tensor) -> dict[str, Tensor]:
    """Logits (B, all) by attribute."""
    return dict(zip(ATTRIBUTES, logits.split([len(classes) for classes in ATTRIBUTES.values()], dim=1), strict=True))


def truth(scenes: Tensor) -> dict[str, Tensor]:
    """The class of every attribute of drawn scenes, (B,) each."""
    return {name: world.kind(scenes, name) for name in ATTRIBUTES}


def load_judge(path: Path = WEIGHTS) -> Judge:
    """The trained classifier."""
    from safetensors.torch import load_file

    judge = Judge()
    judge.load_state_dict(
        {key: value.float() if value.is_floating_point() else value for key, value in load_file(path).items()}
    )
    return judge.eval()


def to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """Pictures of one size as (B, 3, H, W) in [0, 1]."""
    import numpy as np

    arrays = [np.asarray(image.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255 for image in images]
    return torch.from_numpy(np.stack(arrays))


@torch.inference_mode()
def judged(judge: Judge, pictures: Tensor) -> list[dict[str, str]]:
    """For each picture the most likely class of every attribute, in words."""
    small = F.interpolate(pictures, (_SIDE, _SIDE), mode="area")
    chosen = {name: part.argmax(1).tolist() for name, part in split(judge(small)).items()}
    return [{name: ATTRIBUTES[name][chosen[name][i]] for name in ATTRIBUTES} for i in range(len(pictures))]


def shoulder_colours(pictures: Tensor) -> list[str]:
    """The colour word nearest to the shoulders' median colour; brightness counts half, because light changes it."""
    height, width = pictures.shape[-2:]
    band = pictures[:, :, round(height * 0.90) : round(height * 0.99)]
    sides = torch.cat([band[..., round(width * a) : round(width * b)] for a, b in ((0.20, 0.34), (0.66, 0.80))], 3)
    colours = sides.flatten(2).median(2).values
    table = torch.tensor(CLOTH, device=pictures.device)

    def axes(rgb: Tensor) -> Tensor:
        grey = rgb.mean(-1, keepdim=True)
        return torch.cat([(rgb - grey) * 1.6, grey * 0.8], -1)

    nearest = torch.cdist(axes(colours), axes(table)).argmin(1).tolist()
    return [world.COLOURS[i] for i in nearest]


def asked(prompt: str) -> dict[str, str]:
    """The attributes that a prompt of the presets' form names."""
    found = {}
    for name in ("backdrop", "light", "framing", "expression"):
        found.update((name, phrase) for phrase in ATTRIBUTES[name] if phrase in prompt)
    for colour in world.COLOURS:
        for garment in world.GARMENTS:
            if f"a {colour} {garment}" in prompt:
                found |= {"attire_colour": colour, "garment": garment}
    return found
