"""The outline of a face, by facexlib's ParseNet: which pixels of an aligned face are face and which are not.

facexlib's own loading function downloads, so the network is built here and its weights are read from
``models/parser/``.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.errors import ModelError
from headshot_ui.restoration.device import DeviceNet
from headshot_ui.restoration.weights import find_file, read_state
from headshot_ui.wording import how_to_get

if TYPE_CHECKING:
    import numpy as np
    import torch

    from headshot_ui.settings import Settings

SIDE = 512
RELEASE = "https://github.com/xinntao/facexlib/releases/tag/v0.2.2"
#: ParseNet's classes that are left as they were, by facexlib's own table: background, hat, necklace, neck, clothes.
NOT_FACE = (0, 14, 16, 17, 18)
CLASSES = 19
BLUR_KERNEL, BLUR_SIGMA, BORDER_PX = 101, 11, 10


class FaceParser:
    """ParseNet in memory."""

    def __init__(self, net: torch.nn.Module, device: str) -> None:
        self._held = DeviceNet(net, device)

    def mask(self, face: np.ndarray) -> np.ndarray:
        """(S, S) float32 of 0 to 1 for an aligned RGB face (S, S, 3) uint8: 1 within its outline, fading out beyond."""
        import cv2
        import numpy as np
        import torch

        large = cv2.resize(face, (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
        x = torch.from_numpy(large.astype(np.float32).transpose(2, 0, 1)[None] / 127.5 - 1)
        classes = self._held.run(lambda net, pixels: net(pixels)[0], x)[0].argmax(0).numpy()
        mask: np.ndarray = cv2.resize(soft_outline(classes), face.shape[:2])
        return mask

    def keep(self, parts: frozenset[str]) -> None:
        """Any part's name: on the device; frozenset(): off it."""
        self._held.keep(parts)

    def release(self) -> None:
        """Drop everything."""
        self._held.release()


def soft_outline(classes: np.ndarray) -> np.ndarray:
    """(512, 512) class numbers to float32 of 0 to 1, blurred twice and nothing at the very edge, as facexlib does."""
    import cv2
    import numpy as np

    mask = np.where(np.isin(classes, NOT_FACE), 0.0, 255.0)
    for _ in range(2):
        mask = cv2.GaussianBlur(mask, (BLUR_KERNEL, BLUR_KERNEL), BLUR_SIGMA)
    inner = np.zeros_like(mask)
    within = slice(BORDER_PX, -BORDER_PX)
    inner[within, within] = mask[within, within]
    return (inner / 255).astype(np.float32)


def weights(settings: Settings) -> Path:
    """Where its file lies, or would lie."""
    return find_file(settings.models_dir / "parser", ("parsing_parsenet",))


def missing(settings: Settings) -> str:
    """What is missing and what to do, in one sentence; "" when it can be used."""
    path = weights(settings)
    if path.is_file():
        return ""
    return (
        f"The outline of a face needs a network that is not installed: {how_to_get('parser')}; or take {path.name} "
        f"from {RELEASE} and put it at {path}; or restore without the outline."
    )


def load_parser(settings: Settings) -> FaceParser:
    """Read it. Raises ModelError naming the file that is missing, damaged or of another network."""
    reason = missing(settings)
    if reason:
        raise ModelError(reason)
    path = weights(settings)
    state = read_state(path, "facexlib's ParseNet")
    net = build_net()
    try:
        net.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        raise ModelError(f"{path} does not hold facexlib's ParseNet: replace it by the right file.") from error
    return FaceParser(net, settings.device)


def build_net() -> torch.nn.Module:
    """ParseNet with random weights: (B, 3, 512, 512) RGB in [-1, 1] to class scores (B, 19, 512, 512) and a picture."""
    from facexlib.parsing.parsenet import ParseNet

    net: torch.nn.Module = ParseNet(in_size=SIDE, out_size=SIDE, parsing_ch=CLASSES)
    return net.eval()
