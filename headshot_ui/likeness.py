"""How much a picture looks like the person, on a scale a person understands.

A recogniser gives unit vectors; their cosine alone says little: two real photos of one person reach
about 0.5 with one network and 0.95 with another. So a similarity is placed between two levels measured
for this very person and recogniser:

    own       median similarity of the person's own photos to the reference, each photo left out of it
    stranger  median similarity of the gallery's strangers to the same reference (0 without a gallery)
    percent = 100 * (similarity - stranger) / (own - stranger), kept within 0 and 100

The reference is the normalised mean of the held-out photos, which training never saw, and of the training
photos only where none was held out. So 100 % reads "as alike as your own photos are to each other".
A picture counts as *matched* when its similarity is above the 95th percentile of all similarities between
two strangers of the gallery (without a gallery: above half-way between stranger and own).

Letters: N photos, G strangers, D numbers per identity vector. All vectors are float32 with norm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from headshot_ui.errors import DatasetError, ModelError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from PIL import Image

    from headshot_ui.dataset.types import Dataset, Face, FaceDetector, PreparedPhoto, Recogniser
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.settings import Settings

GALLERY, GALLERY_KEY = "gallery.safetensors", "embeddings"
IMPOSTOR_PERCENTILE = 95.0
#: Own photos nearer to strangers than this give no usable scale; it is stretched to this and says so.
LEAST_SPREAD = 0.05
#: A second face smaller than this share of the largest one's area is background.
SECOND_FACE_SHARE = 0.1


@dataclass(frozen=True)
class Likeness:
    """How one picture compares to the person."""

    similarity: float  # cosine with the reference, -1 to 1
    percent: float  # 0 to 100; 100 = as alike as the person's own photos are to each other
    matched: bool  # nearer to the person than strangers are to each other, and nothing in `reason`
    reason: str = ""  # why the picture cannot be used, e.g. "no face was found"; "" when it can


@dataclass(frozen=True)
class Calibration:
    """The scale of one person with one recogniser; see the module's text for the formula."""

    reference: np.ndarray  # (D,)
    own: float
    stranger: float
    threshold: float
    note: str = ""  # a sentence when the scale deserves little trust

    def score(self, embedding: np.ndarray) -> Likeness:
        """Place the vector (D,) of one picture on the scale. Never decreases with the similarity."""
        similarity = float(self.reference @ embedding)
        share = (similarity - self.stranger) / max(self.own - self.stranger, LEAST_SPREAD)
        return Likeness(similarity, 100.0 * min(max(share, 0.0), 1.0), similarity > self.threshold)


@dataclass(frozen=True)
class LikenessReport:
    """A set of pictures against the person's photos, as means over single photos (so set sizes do not matter)."""

    pictures: int  # with exactly one face
    held_out: float | None  # mean cosine to the held-out photos; None when there are none
    training: float  # mean cosine to the training photos
    difference: float | None  # training minus held_out: well above zero means that photos were learned by heart
    nearest_training: float  # largest cosine of any picture to any training photo
    nearest_own: float | None  # largest cosine between two of the person's own photos


def calibrate(
    reference: np.ndarray, others: np.ndarray | None = None, gallery: np.ndarray | None = None
) -> Calibration:
    """The scale from the person's own photos.

    ``reference`` (N, D) are the photos pictures are compared with; ``others`` (M, D) are further photos of
    the person that are not in the reference. With others, they give the own level; without, each reference
    photo is left out in turn and compared with the rest. ``gallery`` (G, D) are strangers.
    Raises DatasetError when fewer than two photos are there: one photo has no likeness to itself to learn from.
    """
    import numpy as np

    if len(reference) + (0 if others is None else len(others)) < 2:
        raise DatasetError("Likeness needs at least two usable photos of the person; add more photos.")
    centre = _unit(reference.mean(0))
    own = float(np.median(others @ centre if others is not None and len(others) else leave_one_out(reference)))
    stranger = 0.0
    threshold = own / 2
    if gallery is not None and len(gallery) >= 3:
        _check_width(gallery, centre)
        stranger = float(np.median(gallery @ centre))
        threshold = impostor_threshold(gallery)
    note = ""
    if own - stranger < LEAST_SPREAD or own <= threshold:
        note = (
            "The photos hardly resemble each other more than strangers do, so likeness is a rough guess: "
            "check that all photos show the same person."
        )
    return Calibration(centre, own, stranger, threshold, note)


def leave_one_out(embeddings: np.ndarray) -> np.ndarray:
    """(N, D) → (N,): similarity of each photo to the normalised mean of all the others; N ≥ 2."""
    import numpy as np

    rest = embeddings.sum(0, keepdims=True) - embeddings
    rest /= np.maximum(np.linalg.norm(rest, axis=1, keepdims=True), 1e-12)
    similarities: np.ndarray = (embeddings * rest).sum(1)
    return similarities


def impostor_threshold(gallery: np.ndarray) -> float:
    """The similarity that 95 % of all pairs of different strangers in (G, D) stay below; G ≥ 3."""
    import numpy as np

    pairs = (gallery @ gallery.T)[np.triu_indices(len(gallery), k=1)]
    return float(np.percentile(pairs, IMPOSTOR_PERCENTILE))


def first_match(embedding: np.ndarray, gallery: np.ndarray) -> int:
    """Index of the identity in ``gallery`` (G, D) that is nearest to ``embedding`` (D,)."""
    return int((gallery @ embedding).argmax())


def rank(likenesses: Sequence[Likeness | None]) -> list[int]:
    """Indices, best first: usable pictures by similarity, then rejected ones, then those never measured."""

    def key(index: int) -> tuple[int, float]:
        likeness = likenesses[index]
        if likeness is None:
            return (2, 0.0)
        return (1 if likeness.reason else 0, -likeness.similarity)

    return sorted(range(len(likenesses)), key=key)


class Judge(Protocol):
    """Scores pictures of one person."""

    def score(self, image: Image.Image) -> Likeness:
        """Likeness of the one face in an RGB picture of any size; ``reason`` says why there is none."""


@dataclass(frozen=True)
class PersonJudge:
    """The judge made by ``make_judge``."""

    recogniser: Recogniser
    detector: FaceDetector
    calibration: Calibration
    training: np.ndarray  # (N, D)
    held_out: np.ndarray  # (M, D); M may be 0
    gallery: np.ndarray | None  # (G, D)

    def score(self, image: Image.Image) -> Likeness:
        """See ``Judge.score``."""
        embedding, reason = self._embed(image)
        if embedding is None:
            return Likeness(0.0, 0.0, False, reason)
        likeness = self.calibration.score(embedding)
        return Likeness(likeness.similarity, likeness.percent, likeness.matched and not reason, reason)

    def first_matches(self, images: Sequence[Image.Image]) -> int:
        """How many of the pictures are nearer to the person than to every stranger of the gallery.

        Raises ModelError without a gallery.
        """
        import numpy as np

        if self.gallery is None:
            raise ModelError(f"The recogniser “{self.recogniser.id}” has no gallery of strangers to compare with.")
        everyone = np.vstack([self.calibration.reference[None], self.gallery])
        return sum(first_match(embedding, everyone) == 0 for embedding in self._usable(images))

    def report(self, images: Sequence[Image.Image]) -> LikenessReport:
        """Means over all pictures with one face: the alarm for photos learned by heart.

        Raises DatasetError when none of the pictures shows exactly one face.
        """
        import numpy as np

        found = self._usable(images)
        if not found:
            raise DatasetError("None of the pictures shows exactly one face, so likeness cannot be measured.")
        pictures = np.stack(found)
        to_training = pictures @ self.training.T
        held_out = float((pictures @ self.held_out.T).mean()) if len(self.held_out) else None
        training = float(to_training.mean())
        own = np.vstack([self.training, self.held_out])
        pairs = (own @ own.T)[np.triu_indices(len(own), k=1)]
        return LikenessReport(
            pictures=len(found),
            held_out=held_out,
            training=training,
            difference=None if held_out is None else training - held_out,
            nearest_training=float(to_training.max()),
            nearest_own=float(pairs.max()) if len(pairs) else None,
        )

    def _usable(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """Identity vectors of the pictures that show exactly one face."""
        return [embedding for embedding, reason in map(self._embed, images) if embedding is not None and not reason]

    def _embed(self, image: Image.Image) -> tuple[np.ndarray | None, str]:
        """Identity vector of the largest face, and why the picture is rejected ("" if it is not)."""
        faces = self.detector.detect(image)
        if not faces:
            return None, "no face was found"
        reason = ""
        if len(faces) > 1 and _area(faces[1]) > SECOND_FACE_SHARE * _area(faces[0]):
            reason = "several faces were found"
        return self.recogniser.embed(image, faces[0]), reason


def load_recogniser(settings: Settings, base: BaseInfo) -> Recogniser:
    """The recogniser for pictures of this base: the demo's for drawn people, else one made for photographs.

    Raises ModelError when its weights are missing (naming their place) or damaged.
    """
    from headshot_ui.recognisers import find_recogniser

    return find_recogniser(settings, base).load(settings)


def load_gallery(settings: Settings, recogniser: Recogniser) -> np.ndarray | None:
    """Unit vectors (G, D) float32 of strangers beside the recogniser's weights; None where it has none.

    Raises ModelError when the file is damaged.
    """
    import numpy as np

    from headshot_ui.recognisers import all_recognisers

    loader = next((loader for loader in all_recognisers() if loader.id == recogniser.id), None)
    if loader is None or not (path := loader.weights(settings).with_name(GALLERY)).is_file():
        return None
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # the NumPy reader knows no bfloat16

    try:
        vectors: np.ndarray = load_file(path)[GALLERY_KEY].float().numpy()
        if vectors.ndim != 2 or not np.isfinite(vectors).all():
            raise ValueError("not a table of finite numbers")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise ModelError(f"The gallery of strangers {path} is damaged; get a complete copy of the program.") from error
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return vectors


def load_judge(settings: Settings, base: BaseInfo, detector: FaceDetector, dataset: Dataset) -> PersonJudge:
    """A judge with the recogniser that suits ``base`` and its gallery. Raises what those raise."""
    recogniser = load_recogniser(settings, base)
    return make_judge(recogniser, detector, dataset, load_gallery(settings, recogniser))


def make_judge(
    recogniser: Recogniser, detector: FaceDetector, dataset: Dataset, gallery: np.ndarray | None = None
) -> PersonJudge:
    """A judge for the person of ``dataset``; held-out photos are the reference where there are any.

    ``gallery`` (G, D): see ``load_gallery``. Raises DatasetError when fewer than two photos can be used or a
    prepared photo is missing, ModelError when the gallery was made by another recogniser.
    """
    import numpy as np

    def embeddings(verdict: str) -> np.ndarray:
        faces = [_embed_photo(recogniser, detector, dataset.folder, p) for p in dataset.photos if p.verdict == verdict]
        found = [face for face in faces if face is not None]
        return np.stack(found) if found else np.zeros((0, 0), np.float32)

    training, held_out = embeddings("train"), embeddings("held_out")
    if not len(training):
        raise DatasetError("No training photo shows a face, so likeness cannot be measured; prepare the photos again.")
    held_out = held_out.reshape(-1, training.shape[1])
    reference, others = (held_out, training) if len(held_out) else (training, None)
    calibration = calibrate(reference, others, gallery)
    return PersonJudge(recogniser, detector, calibration, training, held_out, gallery)


def _embed_photo(
    recogniser: Recogniser, detector: FaceDetector, folder: Path, photo: PreparedPhoto
) -> np.ndarray | None:
    """(D,) of a prepared photo; None when no face is known or found in it."""
    from PIL import Image

    try:
        with Image.open(folder / photo.crop) as opened:
            image = opened.convert("RGB")
    except OSError as error:
        raise DatasetError(f"The prepared photo {photo.crop} is missing or damaged; prepare them again.") from error
    face = photo.face
    if face is None:
        faces = detector.detect(image)
        if not faces:
            return None
        face = faces[0]
    return recogniser.embed(image, face)


def _area(face: Face) -> float:
    left, top, right, bottom = face.box
    return max(right - left, 0.0) * max(bottom - top, 0.0)


def _unit(vector: np.ndarray) -> np.ndarray:
    import numpy as np

    return vector / max(float(np.linalg.norm(vector)), 1e-12)


def _check_width(gallery: np.ndarray, centre: np.ndarray) -> None:
    if gallery.shape[1] != len(centre):
        raise ModelError(
            f"The gallery of strangers has {gallery.shape[1]} numbers a face but the recogniser gives {len(centre)}; "
            "download both again."
        )
