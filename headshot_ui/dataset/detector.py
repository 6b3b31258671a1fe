"""Finding faces: one network looks at a picture in several sizes, and what it sees is put together.

The network knows faces of about 16 to 250 pixels. A close-up has to be shrunk for it and a group photo must
not be, so no single size serves. A face counts when several sizes agree on it, or one is very sure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headshot_ui.dataset.retinaface import RawFaces, WeightsConfig, load_net, look, read_config
from headshot_ui.dataset.types import Face
from headshot_ui.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import torch
    from PIL import Image

    from headshot_ui.dataset.types import FaceDetector
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.settings import Settings

SCALES = (160, 224, 320, 640)  # longest side of the picture in pixels
LAST_SCALE = 1280  # only where the others found nothing: people far away
SAME_FACE_OVERLAP = 0.4  # intersection over union
PART_OF_FACE = 0.7  # share of the smaller box that lies within the larger one
LEAST_FACE = 12  # pixels, at the scale where it was seen

REAL_FOLDER = "retinaface"  # under models/
DEMO_WEIGHTS = ("demo", "detector", "retinaface_mobile025.safetensors")


def find_weights(settings: Settings) -> tuple[Path | None, Path | None]:
    """(weights for photographs, weights for the drawn demo people); None where there are none."""
    folder = settings.models_dir / REAL_FOLDER
    files = sorted(folder.iterdir()) if folder.is_dir() else []
    real = [path for path in files if path.suffix in (".safetensors", ".pth")]
    demo = settings.models_dir.joinpath(*DEMO_WEIGHTS)
    return (real[0] if real else None), (demo if demo.is_file() else None)


def load_detector(settings: Settings, base: BaseInfo | None = None) -> FaceDetector:
    """The face detector for pictures of ``base``, on ``settings.device``.

    Weights for photographs come first and the demo's serve where there are no others. For a demo base (drawn
    people) it is the other way round, and photographs are still found if weights for them are there.
    Raises ModelError when there are no weights at all, or naming the file that is damaged.
    """
    if base and base.demo:
        return load_any_detector(settings, drawn_first=True)
    return RetinaFaceDetector.from_file(_weights(settings, drawn_first=False)[0], settings.device)


def load_any_detector(settings: Settings, drawn_first: bool) -> FirstThatFinds:
    """The face detector for pictures that may be photographs or drawings, on ``settings.device``.

    Where the first choice finds no face the other one looks too. Raises as ``load_detector``.
    """
    paths = _weights(settings, drawn_first)
    return FirstThatFinds(tuple(RetinaFaceDetector.from_file(path, settings.device) for path in paths))


def _weights(settings: Settings, drawn_first: bool) -> list[Path]:
    """What there is, the better suited first. Raises ModelError when there is nothing."""
    real, demo = find_weights(settings)
    paths = [path for path in ((demo, real) if drawn_first else (real, demo)) if path]
    if not paths:
        place = settings.models_dir.joinpath(*DEMO_WEIGHTS)
        raise ModelError(f"The face detector is missing: put {place} back, for example by getting the program again.")
    return paths


@dataclass(frozen=True)
class FirstThatFinds:
    """Asks one detector after the other until one finds a face."""

    detectors: tuple[FaceDetector, ...]

    def detect(self, image: Image.Image) -> list[Face]:
        """All faces, largest first."""
        for detector in self.detectors:
            faces = detector.detect(image)
            if faces:
                return faces
        return []


@dataclass(frozen=True)
class RetinaFaceDetector:
    """RetinaFace over several scales; behind the FaceDetector protocol."""

    net: torch.nn.Module
    config: WeightsConfig
    device: str

    @classmethod
    def from_file(cls, weights: Path, device: str) -> RetinaFaceDetector:
        """Raises ModelError naming the file that is missing, damaged or of another network."""
        config = read_config(weights)
        return cls(load_net(weights, config, device), config, device)

    def detect(self, image: Image.Image) -> list[Face]:
        """All faces of an RGB picture of any size, largest first, in its pixels."""
        longest = max(image.size)
        faces = self._at(image, _scales(longest))
        if not faces and longest > LAST_SCALE:
            faces = self._at(image, (LAST_SCALE,))
        return faces

    def _at(self, image: Image.Image, scales: Sequence[int]) -> list[Face]:
        seen = []
        small = image.convert("RGB")
        for scale in sorted(scales, reverse=True):  # each from the one before, for the photo itself may be huge
            small = _scaled(small, scale)
            seen.append(self._look_at_scale(image, small))
        return merge([faces for faces in seen if len(faces.scores)], self.config.threshold, self.config.lone_threshold)

    def _look_at_scale(self, image: Image.Image, small: Image.Image) -> RawFaces:
        """Faces of ``small`` in pixels of ``image``, without those too small or too large to be judged there."""
        # Below the threshold a second opinion still counts as agreement.
        raw = look(self.net, small, self.config, self.device, self.config.threshold * 0.6)
        sides = (raw.boxes[:, 2:] - raw.boxes[:, :2]).max(axis=1)
        # Larger than the largest anchor, a face falls apart into its features.
        good = (sides >= LEAST_FACE) & (sides <= 0.8 * self.config.min_sizes[-1][-1])
        stretch = _stretch(image, small)
        boxes = raw.boxes[good].reshape(-1, 2, 2) * stretch
        kept = suppressed(boxes.reshape(-1, 4), raw.scores[good])
        return RawFaces(boxes.reshape(-1, 4)[kept], (raw.landmarks[good] * stretch)[kept], raw.scores[good][kept])


def _scales(longest: int) -> tuple[int, ...]:
    """The scales that make sense for a picture: never enlarged by more than a quarter."""
    fitting = tuple(scale for scale in SCALES if scale <= longest * 1.25)
    return fitting or (longest,)


def _scaled(image: Image.Image, longest: int) -> Image.Image:
    from PIL import Image

    factor = longest / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)


def _stretch(image: Image.Image, small: Image.Image) -> np.ndarray:
    import numpy as np

    return np.array([image.width / small.width, image.height / small.height], dtype=np.float32)


def suppressed(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Indices of the boxes that stay when of any that overlap only the best is kept, best first."""
    import numpy as np

    order = np.argsort(-scores, kind="stable")
    kept: list[int] = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(int(best))
        order = rest[overlaps(boxes[best], boxes[rest]) <= SAME_FACE_OVERLAP]
    return np.array(kept, dtype=np.int64)


def overlaps(box: np.ndarray, others: np.ndarray, *, within: bool = False) -> np.ndarray:
    """Intersection over union of one box (4,) with others (N, 4); ``within``: over the smaller of the two areas."""
    import numpy as np

    shared = (np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])).clip(min=0).prod(axis=1)
    area, areas = (box[2:] - box[:2]).prod(), (others[:, 2:] - others[:, :2]).prod(axis=1)
    whole = np.minimum(area, areas) if within else area + areas - shared
    share: np.ndarray = shared / np.maximum(whole, 1e-6)
    return share


def merge(seen: Sequence[RawFaces], threshold: float, lone_threshold: float) -> list[Face]:
    """Faces seen at several scales as one list, largest first.

    Boxes on the same face are averaged, weighted by their scores. A face stays when its best score reaches
    ``threshold`` and a second scale saw it too, or ``lone_threshold`` where one scale alone saw it.
    """
    import numpy as np

    if not seen:
        return []
    boxes = np.concatenate([faces.boxes for faces in seen])
    landmarks = np.concatenate([faces.landmarks for faces in seen])
    scores = np.concatenate([faces.scores for faces in seen])
    scale = np.concatenate([np.full(len(faces.scores), index) for index, faces in enumerate(seen)])
    left = np.argsort(-scores, kind="stable")
    found: list[Face] = []
    while len(left):
        group = left[overlaps(boxes[left[0]], boxes[left]) > SAME_FACE_OVERLAP]
        left = left[~np.isin(left, group)]
        best = float(scores[group].max())
        if best >= (threshold if len(set(scale[group])) > 1 else lone_threshold):
            weights = scores[group] ** 2
            box = np.average(boxes[group], axis=0, weights=weights)
            points = np.average(landmarks[group], axis=0, weights=weights)
            found.append(Face(tuple(box.tolist()), tuple((float(x), float(y)) for x, y in points), best))
    return _without_parts(sorted(found, key=lambda face: -_area(face)))


def _without_parts(faces: list[Face]) -> list[Face]:
    """Drop boxes on an eye or a mouth: those that lie within a larger face."""
    import numpy as np

    kept: list[Face] = []
    for face in faces:
        larger = np.array([other.box for other in kept]).reshape(-1, 4)
        if not len(larger) or overlaps(np.array(face.box), larger, within=True).max() < PART_OF_FACE:
            kept.append(face)
    return kept


def _area(face: Face) -> float:
    left, top, right, bottom = face.box
    return max(right - left, 0.0) * max(bottom - top, 0.0)
