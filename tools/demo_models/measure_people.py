"""Train the bundled people with the program itself and measure what was learned.

    python -m tools.demo_models.measure_people --out /tmp/people --people robin alex kim noor sam

Every person: ten photos → LoRA → 32 unselected pictures over 8 presets, before and after training. Identity is told
by the recogniser among the 50 strangers of the gallery and the five bundled people, each known by held-back photos
that training never sees. Clothes and places are told by the classifier of ``measure.py``.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tools.demo_models import measure

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from headshot_ui.dataset.types import FaceDetector, Recogniser
    from headshot_ui.generation.records import Picture
    from headshot_ui.settings import Settings

PEOPLE = ("robin", "alex", "kim", "noor", "sam")
BASE = "demo-sdxl"
LOOKS, EACH = 8, 4
SMALL = 64  # pixels at which two pictures are compared with each other


@dataclass(frozen=True)
class Figures:
    """What was learned of one person; shares are 0 to 1, similarities cosines."""

    person: str
    pictures: int
    identities: int
    first_match_before: float
    first_match_after: float
    held_out_similarity: float  # mean over pictures and held-back photos, after training
    training_similarity: float  # the same with the photos trained on
    impostor_95: float  # 95 % of pairs of strangers are less alike than this
    asked_and_worn: float  # matched pictures with the asked attire before the asked place, neither in any photo
    asked_counted: int  # how many pictures that share is taken from
    nearest_face: float  # greatest similarity of a picture to one of the training photos, by the recogniser
    nearest_own: float  # greatest similarity between two training photos
    nearest_photo: float  # least distance of a picture to a training photo, root mean square over 64 x 64 pixels
    nearest_photo_before: float  # the same before training, when nothing can have been learned by heart
    nearest_pair: float  # least distance between two training photos
    train_seconds: float
    steps: int


@dataclass(frozen=True)
class Learned:
    """One person after ``learn``."""

    figures: Figures
    before: tuple[Picture, ...]
    after: tuple[Picture, ...]


@dataclass(frozen=True)
class Bench:
    """Everything that measuring needs, loaded once."""

    settings: Settings
    detector: FaceDetector
    recogniser: Recogniser
    classifier: measure.Judge
    people: dict[str, np.ndarray]  # name → (held-back photos, D)
    gallery: np.ndarray  # (G, D)
    base: str = BASE


def open_bench(settings: Settings, base_id: str = BASE) -> Bench:
    """Load detector, recogniser, classifier and the held-back photos of all bundled people."""
    from headshot_ui import families
    from headshot_ui.dataset.detector import load_detector
    from headshot_ui.likeness import load_gallery, load_recogniser

    base = families.find_base(base_id, settings)
    detector, recogniser = load_detector(settings, base), load_recogniser(settings, base)
    gallery = load_gallery(settings, recogniser)
    if gallery is None:
        raise SystemExit("models/demo/recogniser/gallery.safetensors is missing; run tools.demo_models.make_people.")
    held_out = {}
    for name in PEOPLE:
        photos = sorted((settings.models_dir / "demo" / "held_out" / name).glob("*.jpg"))
        vectors = [embed(detector, recogniser, open_picture(photo)) for photo in photos]
        held_out[name] = _stack([v for v in vectors if v is not None])
    return Bench(settings, detector, recogniser, measure.load_judge(), held_out, gallery, base_id)


def open_picture(path: Path) -> Image.Image:
    """An RGB picture, read whole."""
    from PIL import Image

    with Image.open(path) as image:
        return image.convert("RGB")


def _stack(vectors: Sequence[np.ndarray]) -> np.ndarray:
    import numpy as np

    return np.stack(vectors)


def embed(detector: FaceDetector, recogniser: Recogniser, image: Image.Image) -> np.ndarray | None:
    """Identity vector of the largest face, or None."""
    faces = detector.detect(image)
    return recogniser.embed(image, faces[0]) if faces else None


def matches(bench: Bench, name: str, vectors: Sequence[np.ndarray | None]) -> list[bool]:
    """Whether each picture is nearest to this person among everyone; a picture without a face is not."""
    import numpy as np

    others = [vectors.mean(0) for other, vectors in bench.people.items() if other != name]
    everyone = np.vstack([bench.people[name].mean(0)[None], *(o[None] for o in others), bench.gallery])
    everyone /= np.linalg.norm(everyone, axis=1, keepdims=True)
    return [vector is not None and int((everyone @ vector).argmax()) == 0 for vector in vectors]


def small_pixels(images: Sequence[Image.Image]) -> np.ndarray:
    """(N, 64 * 64 * 3) in [0, 1]."""
    import numpy as np
    from PIL import Image

    resized = [image.resize((SMALL, SMALL), Image.Resampling.BOX) for image in images]
    return np.stack([np.asarray(image, dtype=np.float32).ravel() / 255 for image in resized])


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(A, B) root mean square differences."""
    import numpy as np

    return np.sqrt(((a[:, None] - b[None]) ** 2).mean(2))


def learn(bench: Bench, name: str, out: Path, training: Mapping[str, Any] | None = None, guidance: float | None = None,
          seed: int = 0, each: int = EACH) -> Learned:  # fmt: skip
    """Prepare, draw before, train, draw after, measure. ``training``: TrainSpec fields; ``each``: pictures a look."""
    import numpy as np

    from headshot_ui import families
    from headshot_ui.dataset.prepare import prepare
    from headshot_ui.generation.presets import load_presets
    from headshot_ui.generation.runner import generate
    from headshot_ui.likeness import impostor_threshold
    from headshot_ui.specs import GenerateSpec, PrepareSpec, TrainSpec
    from headshot_ui.store import Store
    from headshot_ui.training.runner import train

    settings, store = bench.settings, Store(bench.settings)
    base = families.find_base(bench.base, settings)

    def quiet(*_: object, **__: object) -> None:
        pass

    photos = str(settings.models_dir / "demo" / "people" / name)
    files = tuple(str(path) for path in sorted(Path(photos).glob("*.jpg")))
    dataset = prepare(PrepareSpec(name, files, bench.base, held_out=0), store, base, bench.detector, quiet)
    crops = [open_picture(dataset.folder / photo.crop) for photo in dataset.photos if photo.verdict == "train"]
    loaded = families.load_base(base, settings)
    looks = tuple(load_presets(settings))[:LOOKS]
    wanted = GenerateSpec(name, bench.base, presets=looks, count=each, seed=seed, guidance_scale=guidance)
    before = generate(wanted, store, loaded, quiet)
    trained = train(TrainSpec(name, bench.base, seed=seed, **(training or {})), store, loaded, dataset, quiet)
    after = generate(GenerateSpec(**{**wanted.to_json(), "presets": looks, "lora": "latest"}), store, loaded, quiet)
    loaded.release()

    before_images, after_images = (
        [open_picture(picture.path) for picture in made.pictures] for made in (before, after)
    )
    before_vectors, vectors = ([embed(bench.detector, bench.recogniser, image) for image in images]
                               for images in (before_images, after_images))  # fmt: skip
    matched = matches(bench, name, vectors)
    shown = measure.judged(bench.classifier, measure.to_tensor(after_images))
    in_photos = measure.judged(bench.classifier, measure.to_tensor(crops))
    worn = [_worn(measure.asked(picture.prompt), seen, in_photos) for picture, seen, hit
            in zip(after.pictures, shown, matched, strict=True) if hit]  # fmt: skip
    counted = [value for value in worn if value is not None]
    found = _stack([vector for vector in vectors if vector is not None])
    own = _stack([v for v in (embed(bench.detector, bench.recogniser, crop) for crop in crops) if v is not None])
    photo_pixels = small_pixels(crops)
    pairs = distances(photo_pixels, photo_pixels)[np.triu_indices(len(crops), k=1)]
    _sheet(out / f"{name}.png", crops, before_images, after_images)
    figures = Figures(
        person=name,
        pictures=len(after_images),
        identities=len(bench.gallery) + len(bench.people),
        first_match_before=float(np.mean(matches(bench, name, before_vectors))),
        first_match_after=float(np.mean(matched)),
        held_out_similarity=float((found @ bench.people[name].T).mean()),
        training_similarity=float((found @ own.T).mean()),
        impostor_95=impostor_threshold(bench.gallery),
        asked_and_worn=float(np.mean(counted)) if counted else 0.0,
        asked_counted=len(counted),
        nearest_face=float((found @ own.T).max()),
        nearest_own=float((own @ own.T)[np.triu_indices(len(own), k=1)].max()),
        nearest_photo=float(distances(small_pixels(after_images), photo_pixels).min()),
        nearest_photo_before=float(distances(small_pixels(before_images), photo_pixels).min()),
        nearest_pair=float(pairs.min()),
        train_seconds=trained.seconds,
        steps=trained.steps,
    )
    return Learned(figures, before.pictures, after.pictures)


def _worn(asked: dict[str, str], seen: dict[str, str], photos: list[dict[str, str]]) -> bool | None:
    """Whether attire and place are as asked; None when a training photo shows that attire or that place."""
    for photo in photos:
        if photo["backdrop"] == asked["backdrop"]:
            return None
        if (photo["attire_colour"], photo["garment"]) == (asked["attire_colour"], asked["garment"]):
            return None
    return all(seen[part] == asked[part] for part in ("attire_colour", "garment", "backdrop"))


def _sheet(
    path: Path, photos: Sequence[Image.Image], before: Sequence[Image.Image], after: Sequence[Image.Image]
) -> None:
    """Ten photos, ten pictures before and thirty after training, in rows of ten."""
    from PIL import Image

    rows = [list(photos)[:10], list(before)[::3][:10], *(list(after)[i : i + 10] for i in (0, 10, 20))]
    side = 160
    sheet = Image.new("RGB", (10 * side, len(rows) * side + 16), "white")
    for down, row in enumerate(rows):
        for across, image in enumerate(row):
            place = (across * side, down * side + 8 * (down > 0) + 8 * (down > 1))
            sheet.paste(image.resize((side, side), Image.Resampling.LANCZOS), place)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)


def number_or_word(value: str) -> int | float | str:
    """A field of TrainSpec from the command line."""
    for kind in (int, float):
        try:
            return kind(value)
        except ValueError:
            continue
    return value


def main() -> None:
    """Measure the people asked for and write ``figures.json`` and one sheet each."""
    from headshot_ui.settings import Settings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--base", default=BASE)
    parser.add_argument("--people", nargs="*", default=PEOPLE)
    parser.add_argument("--guidance", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="fields of TrainSpec")
    options = parser.parse_args()
    training = {key: number_or_word(value) for key, value in (pair.split("=") for pair in options.set)}
    bench = open_bench(Settings.from_environment(outputs_dir=options.out / "outputs"), options.base)
    figures = []
    for name in options.people:
        figures.append(asdict(learn(bench, name, options.out, training, options.guidance, options.seed).figures))
        print(json.dumps(figures[-1]), flush=True)
        (options.out / "figures.json").write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
