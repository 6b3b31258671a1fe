"""A group of a hundred drawn people: all are found, repaired and pasted, and a portrait costs one look."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from headshot_ui.dataset.detector import RetinaFaceDetector, load_detector
from headshot_ui.errors import Cancelled
from headshot_ui.restoration.crowd import find_faces, parts_of
from headshot_ui.restoration.demo import INFO, repaired
from headshot_ui.restoration.demo_net import DemoRestorerNet
from headshot_ui.restoration.device import NetRestorer
from headshot_ui.restoration.runner import REPAIRING, restore
from headshot_ui.settings import Settings
from headshot_ui.specs import RestoreSpec
from tests.restoration.fakes import Bench, FakeDetector, Reports, face_at, make_store

ROOT = Path(__file__).parents[2]
SIDE = 64


def group_photo(count: int = 100) -> Image.Image:
    people = sorted((ROOT / "models" / "demo" / "people").rglob("*.jpg"))
    across = round(count**0.5)
    picture = Image.new("RGB", (across * SIDE, across * SIDE))
    for number in range(count):
        with Image.open(people[number % len(people)]) as one:
            small = one.convert("RGB").resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        picture.paste(small, (number % across * SIDE, number // across * SIDE))
    return picture


@pytest.fixture(scope="module")
def detector():
    return load_detector(Settings.from_environment(root=ROOT, device="cpu", environment={}))


def test_a_hundred_people_are_found_and_repaired(detector, tmp_path):
    torch.manual_seed(0)
    net = DemoRestorerNet((8, 8, 8, 8))  # its own widths take half a second a face
    bench, reports = Bench(detector, NetRestorer(INFO, net, "cpu", repaired)), Reports()
    group_photo().save(tmp_path / "group.png")
    spec = RestoreSpec("anna", (str(tmp_path / "group.png"),))
    (picture,) = restore(spec, make_store(tmp_path), bench.tools, reports).pictures
    assert 95 <= len(picture.faces) <= 100 and picture.repaired == len(picture.faces)
    cells = {(int((f.box[0] + f.box[2]) / 2) // SIDE, int((f.box[1] + f.box[3]) / 2) // SIDE) for f in picture.faces}
    assert len(cells) == len(picture.faces)  # nobody twice
    steps = [step for stage, step, _ in reports.seen if stage == REPAIRING]
    assert steps[1:-1] == list(range(1, len(picture.faces) + 1))  # told after each
    areas = [(f.box[2] - f.box[0]) * (f.box[3] - f.box[1]) for f in picture.faces]
    assert areas == sorted(areas, reverse=True)
    changed = (np.asarray(Image.open(picture.path)) != np.asarray(group_photo())).any(axis=2)
    assert 0.3 < changed.mean() < 1


def test_a_portrait_is_looked_at_once():
    for faces in ([face_at(100, 100, 300)], [face_at(100, 100, 300), face_at(500, 100, 200)]):
        detector = FakeDetector(faces)
        assert find_faces(detector, Image.new("RGB", (1600, 1200))) == faces and len(detector.seen) == 1


def test_a_face_seen_in_two_parts_is_one_and_a_cut_one_is_left():
    truth = [face_at(500, 500, 60), face_at(900, 300, 40), face_at(200, 900, 50), face_at(1095, 700, 45)]
    found = find_faces(PartsDetector(truth, 3), Image.new("RGB", (1280, 1280)))
    assert [face.box for face in found] == [face.box for face in truth[:1] + truth[2:3] + truth[3:] + truth[1:2]]


class PartsDetector:
    """The first look misses all but ``first``; in a part it sees whatever is there, cut off at its edges."""

    def __init__(self, truth, first: int) -> None:
        self.truth, self.first = truth, first
        self.parts = [*parts_of(1280, 1280)]
        self.looks = 0

    def detect(self, image):
        self.looks += 1
        if self.looks == 1:
            return self.truth[: self.first]
        if self.looks - 2 >= len(self.parts):  # the second, larger round adds nothing
            return []
        left, top, right, bottom = self.parts[self.looks - 2]
        found = []
        for face in self.truth:
            box = np.array(face.box) - [left, top, left, top]
            seen = np.clip(box, 0, [right - left, bottom - top] * 2)
            if (seen[2:] - seen[:2] > 10).all():
                marks = tuple((x - left, y - top) for x, y in face.landmarks)
                found.append(type(face)(tuple(seen.tolist()), marks, 0.9))
        return found


def test_a_cancel_between_two_looks():
    looks = []

    def tick() -> None:
        looks.append(1)
        if len(looks) == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        find_faces(FakeDetector([face_at(i * 100, 10, 40) for i in range(4)]), Image.new("RGB", (2000, 900)), tick)


def test_real_photographs_without_a_face_stay_without_one(testdata):
    skimage_data = pytest.importorskip("skimage.data")
    detector = RetinaFaceDetector.from_file(testdata / "models" / "mobilenet0.25_Final.pth", "cpu")
    for name in ("coffee", "rocket"):
        picture = Image.fromarray(np.asarray(getattr(skimage_data, name)())).convert("RGB")
        assert find_faces(detector, picture) == [], name


def test_a_real_group_is_found_whole(testdata):
    """Twelve people too small for the first look."""
    skimage_data = pytest.importorskip("skimage.data")
    detector = RetinaFaceDetector.from_file(testdata / "models" / "mobilenet0.25_Final.pth", "cpu")
    one = Image.fromarray(skimage_data.astronaut()).crop((110, 0, 350, 240)).resize((80, 80), Image.Resampling.LANCZOS)
    group = Image.new("RGB", (1280, 400), (120, 130, 140))
    for number in range(12):
        group.paste(one, (20 + number % 6 * 210, 40 + number // 6 * 190))
    assert len(find_faces(detector, group)) == 12
