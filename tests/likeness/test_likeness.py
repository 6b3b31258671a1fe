"""The likeness scale, with made-up identity vectors whose answers are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headshot_ui.dataset.types import Dataset, Face, PreparedPhoto
from headshot_ui.errors import DatasetError, ModelError
from headshot_ui.likeness import (
    Calibration,
    Likeness,
    calibrate,
    first_match,
    impostor_threshold,
    leave_one_out,
    make_judge,
    rank,
)

D = 64


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


def strangers(count: int = 50, seed: int = 1) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, D)))


def photos_of(person: np.ndarray, count: int, spread: float = 0.5, seed: int = 2) -> np.ndarray:
    """Unit vectors around ``person``; ``spread`` is how far they stray."""
    noise = unit(np.random.default_rng(seed).standard_normal((count, D)))
    return unit(person + spread * noise)


def at_similarity(reference: np.ndarray, similarity: float) -> np.ndarray:
    """A unit vector with exactly this cosine to ``reference``."""
    other = np.roll(reference, 1)
    other = unit(other - (other @ reference) * reference)
    return (similarity * reference + np.sqrt(1 - similarity**2) * other).astype(np.float32)


PERSON = strangers(1, seed=9)[0]


def test_leave_one_out_compares_each_photo_with_the_others_only():
    a, b = unit(np.eye(3)[0]), unit(np.array([0.6, 0.8, 0]))
    assert leave_one_out(np.stack([a, b])) == pytest.approx([0.6, 0.6])
    three = np.stack([a, b, unit(np.eye(3)[1])])
    expected = [row @ unit(three[[j for j in range(3) if j != i]].sum(0)) for i, row in enumerate(three)]
    assert leave_one_out(three) == pytest.approx(expected)


def test_hundred_percent_is_the_median_own_similarity_and_zero_that_of_strangers():
    reference, others, gallery = photos_of(PERSON, 2), photos_of(PERSON, 9, seed=3), strangers()
    scale = calibrate(reference, others, gallery)
    assert scale.own == pytest.approx(np.median(others @ scale.reference), abs=1e-6)
    assert scale.stranger == pytest.approx(np.median(gallery @ scale.reference), abs=1e-6)
    assert scale.score(at_similarity(scale.reference, scale.own)).percent == pytest.approx(100, abs=0.01)
    assert scale.score(at_similarity(scale.reference, scale.stranger)).percent == pytest.approx(0, abs=0.01)
    half = (scale.own + scale.stranger) / 2
    assert scale.score(at_similarity(scale.reference, half)).percent == pytest.approx(50, abs=0.01)
    assert scale.note == ""


def test_percent_never_decreases_with_similarity_and_stays_within_its_bounds():
    scale = calibrate(photos_of(PERSON, 8), None, strangers())
    scores = [scale.score(at_similarity(scale.reference, s)) for s in np.linspace(-1, 1, 101)]
    percents = np.array([score.percent for score in scores])
    assert (np.diff(percents) >= 0).all()
    inside = (percents > 0) & (percents < 100)
    assert (np.diff(percents[inside]) > 0).all()
    assert inside.sum() > 20
    assert percents[0] == 0
    assert percents[-1] == 100


def test_matched_means_above_95_percent_of_pairs_of_strangers():
    gallery = strangers()
    scale = calibrate(photos_of(PERSON, 8), None, gallery)
    pairs = [gallery[i] @ gallery[j] for i in range(50) for j in range(i)]
    assert np.mean(np.array(pairs) < scale.threshold) == pytest.approx(0.95, abs=0.002)
    assert scale.threshold == impostor_threshold(gallery)
    assert scale.score(at_similarity(scale.reference, scale.threshold + 0.01)).matched
    assert not scale.score(at_similarity(scale.reference, scale.threshold - 0.01)).matched


def test_without_a_gallery_half_way_counts():
    scale = calibrate(photos_of(PERSON, 8))
    assert scale.stranger == 0
    assert scale.threshold == pytest.approx(scale.own / 2)


def test_the_scale_does_not_depend_on_how_tight_a_recogniser_packs_people():
    """A tight and a loose recogniser agree that a typical own photo is 100 % and a stranger is not matched."""
    for spread in (0.1, 1.0):
        scale = calibrate(photos_of(PERSON, 8, spread), None, strangers())
        new = photos_of(PERSON, 40, spread, seed=5)
        assert np.median([scale.score(photo).percent for photo in new]) > 90
        assert np.mean([scale.score(photo).matched for photo in strangers(200, seed=6)]) < 0.15


def test_photos_no_more_alike_than_strangers_are_said_to_be_so():
    scale = calibrate(strangers(8, seed=7), None, strangers())
    assert "same person" in scale.note
    assert np.isfinite(scale.score(PERSON).percent)


def test_one_photo_is_too_few():
    with pytest.raises(DatasetError, match="at least two"):
        calibrate(photos_of(PERSON, 1))
    assert isinstance(calibrate(photos_of(PERSON, 1), photos_of(PERSON, 1, seed=3)), Calibration)


def test_a_gallery_of_another_recogniser_is_refused():
    with pytest.raises(ModelError, match="gallery"):
        calibrate(photos_of(PERSON, 8), None, np.eye(10, dtype=np.float32))


def test_first_match_is_the_nearest_identity():
    gallery = strangers(20)
    assert [first_match(at_similarity(gallery[i], 0.8), gallery) for i in (0, 7, 19)] == [0, 7, 19]


def test_ranking_puts_rejected_and_unmeasured_pictures_last():
    low, high = Likeness(0.2, 20, False), Likeness(0.9, 100, True)
    twin = Likeness(0.95, 100, True)  # both are at 100 %: the similarity still decides
    several, none = Likeness(0.99, 100, False, "several faces were found"), Likeness(0, 0, False, "no face was found")
    assert rank([None, none, low, several, high, twin]) == [5, 4, 2, 3, 1, 0]
    assert rank([]) == []


# --- judging pictures: a picture's top left pixel says which vector its face has ----------------------
VECTORS = np.vstack([photos_of(PERSON, 10), strangers(5, seed=11)])
BOX = (10.0, 10.0, 50.0, 60.0)


def face(scale: float = 1.0) -> Face:
    left, top, right, bottom = BOX
    return Face((left, top, left + (right - left) * scale, top + (bottom - top) * scale), ((0.0, 0.0),) * 5, 0.99)


@dataclass
class FakeDetector:
    """Finds as many faces as the green value says, or a small second one when blue is set."""

    calls: int = 0

    def detect(self, image: Image.Image) -> list[Face]:
        self.calls += 1
        _, count, small = image.getpixel((0, 0))
        return [face()] * count + ([face(0.2)] if small else [])


class FakeRecogniser:
    id, note = "fake", ""

    def embed(self, image: Image.Image, face: Face) -> np.ndarray:
        return VECTORS[image.getpixel((0, 0))[0]]


def picture(vector: int, faces: int = 1, small: int = 0) -> Image.Image:
    return Image.new("RGB", (64, 64), (vector, faces, small))


def prepared(folder: Path, training: range, held_out: range, known_face: bool = True) -> Dataset:
    photos = []
    for verdict, indices in (("train", training), ("held_out", held_out)):
        for index in indices:
            picture(index).save(folder / f"{index}.png")
            photos.append(
                PreparedPhoto(f"{index}.jpg", verdict, "", crop=f"{index}.png", face=face() if known_face else None)
            )
    photos.append(PreparedPhoto("party.jpg", "rejected", "several faces"))
    return Dataset("robin", folder, 64, "tok", "person", tuple(photos))


def test_held_out_photos_are_the_reference(tmp_path: Path):
    judge = make_judge(FakeRecogniser(), FakeDetector(), prepared(tmp_path, range(8), range(8, 10)))
    assert judge.calibration.reference == pytest.approx(unit(VECTORS[8:10].mean(0)))
    assert judge.calibration.own == pytest.approx(np.median(VECTORS[:8] @ judge.calibration.reference), abs=1e-6)


def test_without_held_out_photos_the_training_photos_are(tmp_path: Path):
    judge = make_judge(FakeRecogniser(), FakeDetector(), prepared(tmp_path, range(8), range(0)))
    assert judge.calibration.reference == pytest.approx(unit(VECTORS[:8].mean(0)))
    assert judge.report([picture(3)]).held_out is None
    assert judge.report([picture(3)]).difference is None


def test_the_person_is_matched_and_strangers_are_not(tmp_path: Path):
    judge = make_judge(FakeRecogniser(), FakeDetector(), prepared(tmp_path, range(8), range(8, 10)), strangers())
    own, stranger = judge.score(picture(0)), judge.score(picture(12))
    assert own.matched
    assert own.percent > 80
    assert not stranger.matched
    assert stranger.percent < own.percent - 40
    assert judge.first_matches([picture(0), picture(12), picture(1), picture(2, faces=0)]) == 2


def test_pictures_without_exactly_one_face_are_rejected_with_the_reason(tmp_path: Path):
    judge = make_judge(FakeRecogniser(), FakeDetector(), prepared(tmp_path, range(8), range(8, 10)))
    nobody, crowd, passer_by = judge.score(picture(0, 0)), judge.score(picture(0, 2)), judge.score(picture(0, 1, 1))
    assert (nobody.reason, nobody.matched, nobody.percent) == ("no face was found", False, 0)
    assert (crowd.reason, crowd.matched) == ("several faces were found", False)
    assert passer_by == judge.score(picture(0)), "a much smaller face in the background does no harm"


def test_the_report_shows_learning_by_heart(tmp_path: Path):
    judge = make_judge(FakeRecogniser(), FakeDetector(), prepared(tmp_path, range(5), range(5, 10)))
    by_heart = judge.report([picture(i) for i in range(5)])
    honest = judge.report([picture(i) for i in (0, 5)])
    assert by_heart.training == pytest.approx(float((VECTORS[:5] @ VECTORS[:5].T).mean()), abs=1e-6)
    assert by_heart.held_out == pytest.approx(float((VECTORS[:5] @ VECTORS[5:10].T).mean()), abs=1e-6)
    assert by_heart.difference == pytest.approx(by_heart.training - by_heart.held_out)
    assert by_heart.difference > 3 * abs(honest.difference)
    assert by_heart.nearest_training == pytest.approx(1)
    assert by_heart.nearest_own < 0.999
    assert (by_heart.pictures, judge.report([picture(0), picture(0, 0)]).pictures) == (5, 1)
    with pytest.raises(DatasetError, match="exactly one face"):
        judge.report([picture(0, 0)])


def test_photos_whose_face_is_not_known_are_looked_at(tmp_path: Path):
    detector = FakeDetector()
    known = make_judge(FakeRecogniser(), detector, prepared(tmp_path, range(8), range(0)))
    assert detector.calls == 0
    looked = make_judge(FakeRecogniser(), detector, prepared(tmp_path, range(8), range(0), known_face=False))
    assert detector.calls == 8
    assert looked.calibration.own == known.calibration.own


def test_a_missing_prepared_photo_and_a_dataset_without_faces_are_told(tmp_path: Path):
    dataset = prepared(tmp_path, range(8), range(0))
    (tmp_path / "3.png").unlink()
    with pytest.raises(DatasetError, match="3.png"):
        make_judge(FakeRecogniser(), FakeDetector(), dataset)
    with pytest.raises(DatasetError, match="No training photo"):
        make_judge(FakeRecogniser(), FakeDetector(), prepared(tmp_path, range(0), range(0)))


def test_first_matches_needs_strangers(tmp_path: Path):
    judge = make_judge(FakeRecogniser(), FakeDetector(), prepared(tmp_path, range(8), range(0)))
    with pytest.raises(ModelError, match="gallery"):
        judge.first_matches([picture(0)])
