"""The shipped demo models, before anybody is learned."""

from __future__ import annotations

import numpy as np
import torch

from headshot_ui.dataset.types import Face
from headshot_ui.families import find_base, load_base
from headshot_ui.generation.presets import load_presets
from headshot_ui.generation.prompts import render
from headshot_ui.likeness import first_match, impostor_threshold
from tools.demo_models import captions, draw
from tools.demo_models.measure_people import Bench

UNSEEN_SEED = 31_337  # neither the people of training nor those of the gallery
STRANGERS = 50
MEGABYTES_AT_MOST = 60


def drawn(count: int, seed: int) -> tuple[list, list[Face]]:
    """One picture each of ``count`` unseen people, with the true face."""
    from PIL import Image

    people, scenes = draw.sample_people(count, UNSEEN_SEED), draw.sample_scenes(count, seed)
    images, faces = [], []
    for rows in torch.arange(count).split(25):
        pixels = (draw.draw(people[rows], scenes[rows]) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        images += [Image.fromarray(one) for one in pixels]
    boxes, landmarks = draw.truth(people, scenes)
    for box, marks in zip(boxes.tolist(), landmarks.tolist(), strict=True):
        faces.append(Face(tuple(box), tuple(map(tuple, marks)), 1.0))
    return images, faces


def test_all_models_fit_in_60_mb(bench: Bench) -> None:
    files = [path for path in (bench.settings.models_dir / "demo").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MEGABYTES_AT_MOST * 10**6


def test_pictures_through_the_vae_are_still_recognised(bench: Bench) -> None:
    known, known_faces = drawn(STRANGERS, 1)
    probes, probe_faces = drawn(STRANGERS, 2)
    gallery = np.stack([bench.recogniser.embed(image, face) for image, face in zip(known, known_faces, strict=True)])
    loaded = load_base(find_base("demo-sdxl", bench.settings), bench.settings)
    loaded.keep(frozenset({"vae"}))
    right = 0
    for number, (image, face) in enumerate(zip(probes, probe_faces, strict=True)):
        pixels = torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1)[None] / 127.5 - 1
        passed = loaded.decode_latents(loaded.encode_images(pixels))[0]
        right += first_match(bench.recogniser.embed(passed, face), gallery) == number
    assert right / STRANGERS >= 0.98


def test_the_detector_finds_every_drawn_face_where_it_is(bench: Bench) -> None:
    images, faces = drawn(20, 3)
    for image, face in zip(images, faces, strict=True):
        found = bench.detector.detect(image)
        assert len(found) == 1
        error = np.abs(np.subtract(found[0].landmarks, face.landmarks)).mean()
        width = face.box[2] - face.box[0]
        assert error < 0.06 * width


def test_nobody_in_the_demo_looks_like_anybody_else(bench: Bench) -> None:
    own = np.stack([vectors.mean(0) for vectors in bench.people.values()])
    everyone = np.vstack([own / np.linalg.norm(own, axis=1, keepdims=True), bench.gallery])
    alike = everyone @ everyone.T - 2 * np.eye(len(everyone))
    assert alike.shape == (55, 55) and alike.max() < 0.6


def test_held_out_photos_are_more_alike_than_strangers(bench: Bench) -> None:
    threshold = impostor_threshold(bench.gallery)
    for vectors in bench.people.values():
        pairs = (vectors @ vectors.T)[np.triu_indices(len(vectors), k=1)]
        assert pairs.min() > threshold


def test_the_demo_base_knows_every_word_of_presets_and_captions(bench: Bench) -> None:
    loaded = load_base(find_base("demo-sdxl", bench.settings), bench.settings)
    for preset in load_presets().values():
        assert loaded.unknown_words(render(preset, "tok", "person", True)) == ()
    assert loaded.unknown_words(" ".join(captions.words())) == ()
    assert "spaceship" in loaded.unknown_words("a navy suit in a spaceship")
