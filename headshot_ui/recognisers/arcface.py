"""ArcFace with facexlib's IR-SE50 network: the recogniser for photographs.

facexlib's own loading function insists on CUDA and downloads, so the network is built here and its weights
are read from ``models/arcface/``. Faces are brought to the 112 × 112 template of InsightFace, RGB in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from headshot_ui.errors import ModelError
from headshot_ui.wording import how_to_get

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from PIL import Image

    from headshot_ui.dataset.types import Face
    from headshot_ui.settings import Settings

SIDE = 112
#: InsightFace's ``arcface_dst``: left eye, right eye, nose, left and right mouth corner in pixels of SIDE.
TEMPLATE = ((38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041))
WEIGHTS = ("recognition_arcface_ir_se50.safetensors", "recognition_arcface_ir_se50.pth")


def alignment(landmarks: Sequence[tuple[float, float]]) -> np.ndarray:
    """(2, 3) similarity from picture pixels to template pixels, least squares over the five landmarks.

    With points as complex numbers z (landmarks) and w (template), both less their means, w ≈ a z has the
    solution a = Σ w conj(z) / Σ |z|²: rotation and scale in one number, and never a mirror image.
    """
    import numpy as np

    z = np.array([complex(x, y) for x, y in landmarks])
    w = np.array([complex(x, y) for x, y in TEMPLATE])
    z_mean, w_mean = z.mean(), w.mean()
    spread = float((np.abs(z - z_mean) ** 2).sum())
    if spread <= 0:
        raise ValueError("the five landmarks are one point")
    a = ((w - w_mean) * np.conj(z - z_mean)).sum() / spread
    shift = w_mean - a * z_mean
    return np.array([[a.real, -a.imag, shift.real], [a.imag, a.real, shift.imag]])


def aligned(image: Image.Image, face: Face) -> Image.Image:
    """The face as an RGB picture of 112 × 112 with its landmarks on the template."""
    import numpy as np
    from PIL import Image

    forward = alignment(face.landmarks)
    scale = float(np.hypot(forward[0, 0], forward[1, 0]))
    landmarks = face.landmarks
    if scale < 0.5:  # shrink first: the transform looks at single pixels and would skip most of a large face
        size = (max(1, round(image.width * scale * 2)), max(1, round(image.height * scale * 2)))
        across, down = size[0] / image.width, size[1] / image.height
        image = image.resize(size, Image.Resampling.BOX)
        landmarks = tuple((x * across, y * down) for x, y in landmarks)
        forward = alignment(landmarks)
    back = np.linalg.inv(np.vstack([forward, [0, 0, 1]]))[:2]
    return image.convert("RGB").transform(
        (SIDE, SIDE), Image.Transform.AFFINE, tuple(back.flatten()), Image.Resampling.BICUBIC
    )


class ArcFace:
    """The network with its weights, behind the Recogniser protocol."""

    id = "arcface"
    note = "Compares faces in photographs."

    def __init__(self, net: torch.nn.Module, device: str) -> None:
        self._net, self._device = net.to(device).eval(), device

    def embed(self, image: Image.Image, face: Face) -> np.ndarray:
        """Unit-norm float32 vector (512,) of the face in an RGB picture."""
        import numpy as np

        rgb = np.asarray(aligned(image, face), dtype=np.float32) / 127.5 - 1
        # Contiguous, because facexlib's network flattens with a view, which the channels-last layout breaks.
        pixels = np.ascontiguousarray(rgb.transpose(2, 0, 1)[None])
        with torch.inference_mode():
            vector: np.ndarray = self._net(torch.from_numpy(pixels).to(self._device))[0].float().cpu().numpy()
        vector /= max(float(np.linalg.norm(vector)), 1e-12)
        return vector


def build_net() -> torch.nn.Module:
    """facexlib's IR-SE50 with random weights: (B, 3, 112, 112) RGB in [-1, 1] to unit-norm (B, 512)."""
    from facexlib.recognition.arcface_arch import Backbone

    net: torch.nn.Module = Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se")
    return net.eval()


def read_state(path: Path) -> Mapping[str, torch.Tensor]:
    """Tensors of a .safetensors or .pth file; nothing else in a .pth is ever run. Raises ModelError."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Mapping[str, torch.Tensor] = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        return state
    except FileNotFoundError as error:
        raise ModelError(
            f"The face recogniser is missing: {how_to_get('arcface')}, or put its weights at {path}."
        ) from error
    except Exception as error:  # every reader has its own errors for a damaged file
        raise ModelError(f"The face recogniser {path} is damaged: {how_to_get('arcface')}.") from error


@dataclass(frozen=True)
class ArcFaceLoader:
    """How the program finds and loads this recogniser."""

    id: str = "arcface"
    title: str = "ArcFace (photographs)"
    demo: bool = False

    def weights(self, settings: Settings) -> Path:
        """Where the weights lie, or would: ``models/arcface/``."""
        places = [settings.models_dir / "arcface" / name for name in WEIGHTS]
        return next((place for place in places if place.is_file()), places[0])

    def available(self, settings: Settings) -> bool:
        """Whether the weights are there."""
        return self.weights(settings).is_file()

    def load(self, settings: Settings) -> ArcFace:
        """Read the weights. Raises ModelError when they are missing, damaged or of another network."""
        path = self.weights(settings)
        state = read_state(path)
        net = build_net()
        try:
            net.load_state_dict(state)
        except (RuntimeError, TypeError, AttributeError) as error:
            raise ModelError(f"{path} does not hold ArcFace IR-SE50 weights: replace it by the right file.") from error
        return ArcFace(net, settings.device)


RECOGNISER = ArcFaceLoader()
