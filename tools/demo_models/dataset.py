"""Draw the training pictures once, with everything known about them, into a folder that all trainers read.

    python -m tools.demo_models.dataset --out /dev/shm/drawn --people 20000 --each 12

``pictures.bin``       N x 3 x 256 x 256 bytes, person after person
``truth.safetensors``  scenes (N, S), people (P, I), boxes (N, 4), landmarks (N, 5, 2) in pixels, tokens (N, K, 77)
``facts.json``         N, P, pictures per person, size, seed
"""

from __future__ import annotations

import argparse
import json
import random
import time
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tools.demo_models import words, world
from tools.demo_models.common import prepare_device, save_tensors, say

SIZE = 256
#: Seeds of the people that trainers see. make_people.py takes its people elsewhere.
TRAINING_SEED = 1_000


@dataclass(frozen=True)
class Drawn:
    """The training pictures. N pictures, P people, each with N / P pictures in a row."""

    pictures: Tensor  # (N, 3, 256, 256) uint8, mapped from the file: index it in slices
    people: Tensor  # (P, I)
    scenes: Tensor  # (N, S)
    boxes: Tensor  # (N, 4) left, top, right, bottom
    landmarks: Tensor  # (N, 5, 2)
    tokens: Tensor  # (N, K, 77) int16: K captions of each picture
    each: int

    def on(self, device: torch.device, first: int, count: int) -> Tensor:
        """A slice of the pictures on a device, uint8."""
        last = min(first + count, len(self.pictures))
        out = torch.empty((last - first, *self.pictures.shape[1:]), dtype=torch.uint8, device=device)
        for start in range(first, last, 2048):
            stop = min(start + 2048, last)
            out[start - first : stop - first] = self.pictures[start:stop].to(device)
        return out


def load(folder: Path) -> Drawn:
    """Open a folder that ``main`` has written."""
    from safetensors.torch import load_file

    facts = json.loads((folder / "facts.json").read_text())
    shape = (facts["pictures"], 3, facts["size"], facts["size"])
    pictures = torch.from_file(str(folder / "pictures.bin"), shared=True, size=int(np.prod(shape)), dtype=torch.uint8)
    truth = load_file(folder / "truth.safetensors")
    return Drawn(
        pictures.view(shape),
        truth["people"],
        truth["scenes"],
        truth["boxes"],
        truth["landmarks"],
        truth["tokens"],
        facts["each"],
    )


def vocabulary_words() -> list[str]:
    """Every word the demo base knows."""
    from tools.demo_models import captions

    phrases = (
        *world.GARMENTS,
        *world.COLOURS,
        *world.BACKDROPS,
        *world.LIGHTS,
        *world.FRAMINGS,
        *world.EXPRESSIONS,
        *world.POSES,
    )
    listed = " ".join((*captions.words(), *phrases, "portrait of tok person, wearing a, in front of"))
    return sorted(set(words.pieces(listed)))


def _caption_tokens(people: np.ndarray, scenes: np.ndarray, copies: int, seed: int) -> np.ndarray:
    """(n, copies, 77) token ids; runs in a worker process."""
    from tools.demo_models import captions

    torch.set_num_threads(1)
    vocab, _ = words.vocabulary(vocabulary_words())
    rng = random.Random(seed)
    rows = zip(torch.from_numpy(people), torch.from_numpy(scenes), strict=True)
    ids = [[words.encode(captions.caption(person, scene, rng), vocab) for _ in range(copies)] for person, scene in rows]
    return np.asarray(ids, dtype=np.int16)


def _start_captions(pool: ProcessPoolExecutor, people: Tensor, scenes: Tensor, each: int, copies: int) -> list[Future]:
    chunk = 5_000
    jobs = []
    for start in range(0, len(scenes), chunk):
        part = scenes[start : start + chunk]
        who = people[torch.arange(start, start + len(part)) // each]
        jobs.append(pool.submit(_caption_tokens, who.numpy(), part.numpy(), copies, start))
    return jobs


def _draw_slice(
    path: Path, people: Tensor, scenes: Tensor, each: int, first: int, last: int, batch: int, device: torch.device
) -> None:
    """Draw pictures first … last-1 into their place in the file."""
    from tools.demo_models import draw

    file = np.memmap(path, dtype=np.uint8, mode="r+", shape=(len(scenes), 3, SIZE, SIZE))
    started = said = time.monotonic()
    for start in range(first, last, batch):
        rows = torch.arange(start, min(start + batch, last))
        drawn = draw.draw(people[rows // each].to(device), scenes[rows].to(device), SIZE)
        file[start : start + len(rows)] = (drawn * 255 + 0.5).clamp(0, 255).to(torch.uint8).cpu().numpy()
        if time.monotonic() - said > 5:
            said = time.monotonic()
            say(
                f"[draw] {start + batch - first} of {last - first}  {(start + batch - first) / (said - started):,.0f}/s"
            )


def _truth(people: Tensor, scenes: Tensor, each: int, device: torch.device) -> tuple[Tensor, Tensor]:
    from tools.demo_models import draw

    boxes, landmarks = [], []
    for start in range(0, len(scenes), 2048):
        rows = torch.arange(start, min(start + 2048, len(scenes)))
        box, marks = draw.truth(people[rows // each].to(device), scenes[rows].to(device), SIZE)
        boxes.append(box.cpu().float())
        landmarks.append(marks.cpu().float())
    return torch.cat(boxes), torch.cat(landmarks)


def main() -> None:
    """Draw everything; with several ranks each draws its share and rank 0 writes the rest."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--people", type=int, default=20_000)
    parser.add_argument("--each", type=int, default=12, help="pictures of each person")
    parser.add_argument("--captions", type=int, default=4, help="captions of each picture")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--processes", type=int, default=12)
    parser.add_argument("--rank", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    if options.smoke:
        options.people, options.each, options.batch, options.processes = 16, 4, 16, 1
    total = options.people * options.each
    people = world.sample_people(options.people, TRAINING_SEED)
    scenes = world.sample_scenes(total, TRAINING_SEED)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "pictures.bin").open("ab") as file:
        file.truncate(total * 3 * SIZE * SIZE)
    started = time.monotonic()
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        jobs = _start_captions(pool, people, scenes, options.each, options.captions) if options.rank == 0 else []
        device = prepare_device(options.device, 0)
        share = -(-total // options.ranks)
        first, last = options.rank * share, min(total, (options.rank + 1) * share)
        with torch.inference_mode():
            _draw_slice(options.out / "pictures.bin", people, scenes, options.each, first, last, options.batch, device)
            say(f"[draw] {last - first} pictures in {time.monotonic() - started:.0f} s")
            if options.rank == 0:
                boxes, landmarks = _truth(people, scenes, options.each, device)
        if options.rank == 0:
            tokens = torch.from_numpy(np.concatenate([job.result() for job in jobs]))
            save_tensors(
                options.out / "truth.safetensors",
                {"people": people, "scenes": scenes, "boxes": boxes, "landmarks": landmarks, "tokens": tokens},
            )
            facts = {
                "pictures": total,
                "people": options.people,
                "each": options.each,
                "size": SIZE,
                "seed": TRAINING_SEED,
            }
            (options.out / "facts.json").write_text(json.dumps(facts))
            say(f"[draw] all written in {time.monotonic() - started:.0f} s; {len(vocabulary_words())} words")


if __name__ == "__main__":
    main()
