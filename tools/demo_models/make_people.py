"""Draw the bundled demo people, their held-back photos, and the gallery of strangers that likeness is measured against.

    python -m tools.demo_models.make_people --models models/demo

Nobody here was seen in training. People and strangers are taken from a fixed list of candidates, first come first
served, so that no two are more alike than 0.6 by the recogniser. Photos show casual clothes in casual places: no
suit, no blazer, no studio and no office, so that what presets ask for never occurs in a training photo.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from headshot_ui.recognisers.demo import DemoRecogniserNet, read_net
from tools.demo_models import world
from tools.demo_models.common import prepare_device, save_tensors, say
from tools.demo_models.train_recogniser import embed_drawn

PEOPLE_SEED, GALLERY_SEED, PHOTO_SEED = 77_001, 88_001, 99_001
NAMES = ("alex", "robin", "kim", "noor", "sam")
PHOTOS, HELD_OUT, STRANGERS, LIMIT = 10, 4, 50, 0.6
CASUAL_GARMENTS = ("shirt", "sweater", "hoodie")
CASUAL_PLACES = ("a city window", "a bookshelf", "a green park", "a brick wall")


def casual_scenes(count: int, seed: int) -> Tensor:
    """(count, SCENE_DIMS) scenes with casual clothes in casual places.

    Every garment, place, framing, expression and pose occurs about equally often and independently of the others:
    a person can only be learned from what the photos show.
    """
    scenes = world.sample_scenes(count, seed)
    rng = random.Random(seed)
    varied = {
        "garment": [world.GARMENTS.index(name) for name in CASUAL_GARMENTS],
        "backdrop": [world.BACKDROPS.index(name) for name in CASUAL_PLACES],
        "framing": range(len(world.FRAMINGS)),
        "expression": range(len(world.EXPRESSIONS)),
        "yaw": range(len(world.POSES)),
    }
    for name, classes in varied.items():
        bounds = (0.0, *world.cuts(name))
        turn = [which for _ in range(-(-count // len(classes))) for which in rng.sample(list(classes), len(classes))]
        for scene, which in zip(scenes, turn, strict=False):
            scene[world.SCENE.index(name)] = bounds[which] + (bounds[which + 1] - bounds[which]) * rng.uniform(0.1, 0.9)
    return scenes


def identity_vectors(net: DemoRecogniserNet, people: Tensor, each: int, seed: int, device: torch.device) -> Tensor:
    """(P, 128) unit-norm means over ``each`` drawings of every person in all sorts of scenes."""
    scenes = world.sample_scenes(len(people) * each, seed)
    found = embed_drawn(net, people.repeat_interleave(each, 0), scenes, device)
    return F.normalize(found.view(len(people), each, -1).mean(1), dim=1)


def far_apart(vectors: Tensor, count: int, taken: Tensor, limit: float) -> list[int]:
    """The first ``count`` rows that are nowhere nearer than ``limit`` to each other or to ``taken`` (T, 128)."""
    chosen: list[int] = []
    for i, vector in enumerate(vectors):
        others = torch.cat([taken, vectors[chosen]])
        if not len(others) or float((others @ vector).max()) < limit:
            chosen.append(i)
        if len(chosen) == count:
            return chosen
    raise SystemExit(f"Only {len(chosen)} of {count} candidates are less alike than {limit}; raise --candidates.")


def save_photos(folder: Path, person: Tensor, scenes: Tensor, seed: int, stem: str) -> None:
    """Draw large and save as JPEG, each with its own size and a slightly different cut."""
    from PIL import Image

    from tools.demo_models import draw

    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for i, scene in enumerate(scenes):
        side = rng.randrange(416, 545, 16)
        drawn = draw.draw(person[None], scene[None], side)[0]
        pixels = (drawn * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        edge = [round(side * rng.uniform(0, 0.05)) for _ in range(3)]
        image = Image.fromarray(pixels).crop((edge[0], edge[1], side - edge[2], side))
        image.save(folder / f"{stem}{i + 1:02d}.jpg", quality=91)


def main() -> None:
    """Write people/<name>/*.jpg, held_out/<name>/*.jpg and recogniser/gallery.safetensors."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=Path("models/demo"))
    parser.add_argument("--candidates", type=int, default=24, help="candidates for the bundled people")
    parser.add_argument(
        "--pick", type=int, nargs="*", help="candidate numbers to bundle instead of the first that are far apart"
    )
    parser.add_argument("--sheet", type=Path, help="also write a picture of all candidates, to pick from")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    strangers, each = (4, 2) if options.smoke else (STRANGERS, 8)
    limit = 1.1 if options.smoke else LIMIT
    device = prepare_device(options.device, 0)
    net = read_net(options.models / "recogniser" / "recogniser.safetensors").to(device)
    candidates = world.sample_people(options.candidates, PEOPLE_SEED)
    if options.sheet:
        sheet(options.sheet, candidates)
    vectors = identity_vectors(net, candidates, each, PEOPLE_SEED, device)
    chosen = options.pick or far_apart(vectors, len(NAMES), vectors[:0], limit)
    people, known = candidates[chosen], vectors[chosen]
    crowd = world.sample_people(strangers * 2, GALLERY_SEED)
    crowd_vectors = identity_vectors(net, crowd, each, GALLERY_SEED, device)
    gallery = crowd_vectors[far_apart(crowd_vectors, strangers, known, limit)]
    for i, (name, person) in enumerate(zip(NAMES, people, strict=True)):
        scenes = casual_scenes(PHOTOS + HELD_OUT, PHOTO_SEED + i)
        save_photos(options.models / "people" / name, person, scenes[:PHOTOS], i, f"{name}-")
        save_photos(options.models / "held_out" / name, person, scenes[PHOTOS:], 100 + i, f"{name}-held-out-")
    everyone = torch.cat([known, gallery])
    nearest = float((everyone @ everyone.T - 2 * torch.eye(len(everyone))).max())
    save_tensors(
        options.models / "recogniser" / "gallery.safetensors",
        {"embeddings": gallery.float()},
        {"recogniser": "demo", "nearest": f"{nearest:.3f}"},
    )
    say(
        f"[people] candidates {chosen} became {', '.join(NAMES)}; {len(gallery)} strangers; "
        f"nearest two are {nearest:.2f} alike"
    )


def sheet(path: Path, people: Tensor) -> None:
    """A picture with one row per candidate, numbered by order: six scenes each."""
    from PIL import Image

    from tools.demo_models import draw

    scenes = casual_scenes(6, 1)
    rows = []
    for person in people:
        drawn = draw.draw(person.expand(6, -1), scenes, 160)
        rows.append((drawn * 255).round().to(torch.uint8).permute(2, 0, 3, 1).reshape(160, 960, 3))
    half = -(-len(rows) // 2)
    columns = [
        torch.cat(rows[:half]),
        torch.cat([*rows[half:], *([torch.zeros_like(rows[0])] * (2 * half - len(rows)))]),
    ]
    Image.fromarray(torch.cat(columns, 1).numpy()).save(path)


if __name__ == "__main__":
    main()
