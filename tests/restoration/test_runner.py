"""A request from pictures to restored pictures: what is changed, kept, written down, and when things go wrong."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headshot_ui.errors import Cancelled, ModelError, PhotoError, StoreError
from headshot_ui.restoration import runner
from headshot_ui.restoration.parser import weights as parser_weights
from headshot_ui.restoration.records import read_record
from headshot_ui.restoration.runner import ENLARGING, FINDING, REPAIRING, restore
from headshot_ui.restoration.upscale import Lanczos
from headshot_ui.specs import RestoreSpec
from headshot_ui.store import read_png_metadata, save_png
from tests.restoration.fakes import (
    Bench,
    BrightJudge,
    FakeDetector,
    FakeRestorer,
    Reports,
    face_at,
    make_store,
    noise,
    save,
)

FACE, SECOND = face_at(60, 40, 60), face_at(150, 90, 36)
SIZE = (240, 180)


@pytest.fixture
def store(tmp_path):
    return make_store(tmp_path)


@pytest.fixture
def photo(tmp_path) -> Path:
    return save(tmp_path / "in" / "family.png", noise(*SIZE) // 2)


@pytest.fixture
def bench() -> Bench:
    return Bench(FakeDetector([FACE, SECOND]))


def spec_of(*paths, **more) -> RestoreSpec:
    return RestoreSpec("anna", tuple(str(path) for path in paths), **{"fidelity_weight": 0.0, **more})


def run(spec, store, bench, reports=None, judge=None):
    return restore(spec, store, bench.tools, reports or Reports(), judge)


def pixels_of(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image).copy()


def middle(pixels, face, times=1):
    x, y = (int(value * times) for value in face.landmarks[2])
    return pixels[y, x, :3].astype(int)


# --- what changes ---------------------------------------------------------------------------------
def test_faces_change_and_the_rest_is_bit_equal(store, photo, bench):
    result = run(spec_of(photo), store, bench)
    before, (picture,) = pixels_of(photo), result.pictures
    after = pixels_of(picture.path)
    assert after.shape == before.shape
    for face in (FACE, SECOND):  # 0.5 of the range from -1 to 1 is 64 levels
        assert np.abs(middle(after, face) - middle(before, face) - 64).max() <= 2
    assert np.array_equal(after[:10], before[:10]) and np.array_equal(after[:, 225:], before[:, 225:])
    assert picture.repaired == 2 and [face.number for face in picture.faces] == [1, 2]
    assert result.state == "done" and result.restorer == "fake" and picture.size == SIZE


def test_the_fidelity_weight_reaches_the_restorer(store, photo, bench):
    run(spec_of(photo, fidelity_weight=0.75), store, bench)
    assert [weight for _, weight in bench.restorer.calls] == [0.75, 0.75]
    assert all(x.shape == (1, 3, 64, 64) and x.min() >= -1 and x.max() <= 1 for x, _ in bench.restorer.calls)


def test_only_the_faces_that_were_chosen(store, photo, bench):
    (picture,) = run(spec_of(photo, faces=(2, 5)), store, bench).pictures
    before, after = pixels_of(photo), pixels_of(picture.path)
    assert np.array_equal(middle(after, FACE), middle(before, FACE))
    assert not np.array_equal(middle(after, SECOND), middle(before, SECOND))
    assert [face.skipped != "" for face in picture.faces] == [True, False]
    assert picture.notes == ("There is no face 5 here, where 2 faces were found.",)


def test_faces_too_small_are_left_alone_and_said(store, photo, bench):
    bench.detector.faces = [FACE, face_at(10, 10, 9)]
    (picture,) = run(spec_of(photo), store, bench).pictures
    assert "too small" in picture.faces[1].skipped and picture.repaired == 1 and picture.skipped == ""


@pytest.mark.parametrize(("faces", "words"), [([], "No face was found"), ([face_at(10, 10, 9)], "too small")])
def test_without_a_face_the_picture_is_there_all_the_same(store, photo, bench, faces, words):
    bench.detector.faces = faces
    (picture,) = run(spec_of(photo), store, bench).pictures
    assert words in picture.skipped and np.array_equal(pixels_of(picture.path), pixels_of(photo))
    assert bench.events == [] and read_png_metadata(picture.path)["ai_generated"] == ""


def test_without_a_face_the_picture_is_still_enlarged(store, photo, bench):
    bench.detector.faces = []
    (picture,) = run(spec_of(photo, upscale=2), store, bench).pictures
    assert picture.skipped and picture.size == (480, 360) and picture.enlarged_by == "Lanczos"
    assert bench.events == ["open upscaler x2", "close upscaler x2"]


def test_the_chosen_faces_are_in_none_of_the_pictures(store, photo, bench):
    (picture,) = run(spec_of(photo, faces=(7,)), store, bench).pictures
    assert "none of those chosen" in picture.skipped and picture.notes


@pytest.mark.parametrize("times", [2, 4])
def test_enlarged_with_the_faces_repaired_in_their_places(store, photo, bench, times):
    bench.upscaler = lambda factor: Lanczos(factor, "Enlarged plainly.")
    result = run(spec_of(photo, upscale=times), store, bench)
    (picture,) = result.pictures
    before = np.asarray(Image.open(photo).resize((SIZE[0] * times, SIZE[1] * times), Image.Resampling.LANCZOS))
    after = pixels_of(picture.path)
    assert after.shape == before.shape and picture.size == (SIZE[0] * times, SIZE[1] * times)
    assert np.abs(middle(after, FACE, times) - middle(before, FACE, times) - 64).max() <= 3
    assert np.array_equal(after[: 10 * times], before[: 10 * times])
    assert picture.enlarged_by == "Lanczos" and picture.notes == ("Enlarged plainly.",)


def test_the_outline_takes_the_place_of_the_square(store, photo, bench):
    put = parser_weights(store.settings)
    put.parent.mkdir(parents=True)
    put.write_bytes(b"the fake needs none")
    square = pixels_of(run(spec_of(photo), store, bench).pictures[0].path)
    bench.events.clear()
    outline = pixels_of(run(spec_of(photo, parse_face=True), store, bench).pictures[0].path)
    before = pixels_of(photo)
    assert bench.events == ["open restorer", "open parser", "close parser", "close restorer"]
    changed = [(picture != before).any(axis=2).sum() for picture in (outline, square)]
    assert 0 < changed[0] < 0.6 * changed[1]


def test_a_missing_parser_is_told_before_any_work(store, photo, bench):
    reports = Reports()
    with pytest.raises(ModelError, match=r"parsing_parsenet\.pth"):
        run(spec_of(photo, parse_face=True), store, bench, reports)
    assert reports.seen == [] and not store.restored_dir("anna").exists()


def test_the_parser_is_not_opened_without_need(store, photo, bench):
    run(spec_of(photo), store, bench)
    assert bench.events == ["open restorer", "close restorer"]


# --- any picture ----------------------------------------------------------------------------------
def test_transparency_stays(store, tmp_path, bench):
    alpha = np.full(SIZE[::-1], 255, np.uint8)
    alpha[:, :30] = 0
    alpha[:, 30:50] = 90
    photo = save(tmp_path / "cut-out.png", np.dstack([noise(*SIZE) // 2, alpha]))
    (picture,) = run(spec_of(photo), store, bench).pictures
    after = pixels_of(picture.path)
    assert np.array_equal(after[:, :, 3], alpha)
    assert np.array_equal(after[:10, :, :3], noise(*SIZE)[:10] // 2)  # colours under transparency as well
    assert np.abs(middle(after, FACE) - middle(noise(*SIZE) // 2, FACE) - 64).max() <= 2
    (large,) = run(spec_of(photo, upscale=2), store, bench).pictures
    assert pixels_of(large.path).shape == (360, 480, 4) and pixels_of(large.path)[10, 10, 3] == 0


def test_the_detector_sees_transparent_pictures_on_white(store, tmp_path, bench):
    photo = save(tmp_path / "clear.png", np.zeros((*SIZE[::-1], 4), np.uint8))
    run(spec_of(photo), store, bench)
    assert np.asarray(bench.detector.seen[0]).min() == 255
    assert bench.restorer.calls[0][0].min() == 1  # and so does the restorer


@pytest.mark.parametrize("kind", ["cmyk.tif", "16bit.png", "sideways.jpg", "palette.png", "grey.png"])
def test_unusual_pictures_come_out_upright_in_rgb(store, tmp_path, bench, kind):
    image, options = Image.fromarray(noise(*SIZE)), {}
    if kind == "16bit.png":
        image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)
    elif kind == "sideways.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6
        image, options = image.transpose(Image.Transpose.ROTATE_90), {"exif": exif, "quality": 98}
    else:
        image = image.convert({"cmyk.tif": "CMYK", "palette.png": "P", "grey.png": "L"}[kind])
    image.save(tmp_path / kind, **options)
    (picture,) = run(spec_of(tmp_path / kind), store, bench).pictures
    with Image.open(picture.path) as after:
        assert after.size == SIZE and after.mode == "RGB"
    assert picture.path.stem == kind.split(".")[0]
    assert np.abs(bench.restorer.calls[0][0].numpy()).max() <= 1


def test_pictures_of_an_archive_and_a_folder_keep_their_names(store, tmp_path, bench):
    one = save(tmp_path / "a" / "me.png", noise(*SIZE))
    save(tmp_path / "b" / "Me.jpg", noise(*SIZE))
    with zipfile.ZipFile(tmp_path / "album.zip", "w") as archive:
        archive.write(one, "summer/me.png")
    result = run(spec_of(one, tmp_path / "b", tmp_path / "album.zip"), store, bench)
    assert [picture.path.name for picture in result.pictures] == ["me.png", "Me-2.png", "me-3.png"]
    assert [picture.source for picture in result.pictures] == [
        one, tmp_path / "b" / "Me.jpg", tmp_path / "album.zip" / "summer/me.png",
    ]  # fmt: skip
    assert all(picture.before.is_file() for picture in result.pictures)


def test_a_broken_picture_among_others_is_left_out_with_its_reason(store, tmp_path, photo, bench):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG cut off")
    result = run(spec_of(broken, photo, tmp_path / "gone.png"), store, bench)
    assert [picture.source for picture in result.pictures] == [photo]
    assert sorted(refusal.name for refusal in result.refused) == ["broken.png", "gone.png"]
    assert all(refusal.reason.endswith(".") for refusal in result.refused)


def test_when_no_picture_can_be_opened_it_is_one_sentence(store, tmp_path, bench):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"text")
    with pytest.raises(PhotoError, match=r"None of the 2 pictures.*a\.png: "):
        run(spec_of(tmp_path / "a.png", tmp_path / "b.png"), store, bench)
    with pytest.raises(PhotoError, match=r"^a\.png: "):
        run(spec_of(tmp_path / "a.png"), store, bench)
    (tmp_path / "empty").mkdir()
    with pytest.raises(PhotoError, match="No picture was found"):
        run(spec_of(tmp_path / "empty"), store, bench)
    assert not store.restored_dir("anna").exists()


def test_a_picture_that_would_become_gigantic_is_refused(store, photo, bench, monkeypatch):
    monkeypatch.setattr(runner, "MAX_PIXELS", 400_000)
    with pytest.raises(PhotoError, match="Enlarged 4 times it would have 1 megapixels"):
        run(spec_of(photo, upscale=4), store, bench)
    assert run(spec_of(photo, upscale=2), store, bench).pictures


def test_a_full_disk_is_told_before_any_work(store, photo, bench, monkeypatch):
    from headshot_ui import store as store_module

    monkeypatch.setattr(store_module, "free_bytes", lambda path: 1000)
    with pytest.raises(StoreError, match="free"):
        run(spec_of(photo), store, bench)
    assert bench.events == []


def test_a_picture_that_vanishes_meanwhile_is_left_out(store, tmp_path, photo, bench):
    other = save(tmp_path / "other.png", noise(*SIZE))

    class Removing(FakeDetector):
        def detect(self, image):
            other.unlink(missing_ok=True)
            return super().detect(image)

    bench.detector = Removing([FACE])
    for times in (1, 2):
        save(other, noise(*SIZE))
        result = run(spec_of(other, photo, upscale=times), store, bench)
        assert [picture.source for picture in result.pictures] == [photo]
        assert [refusal.name for refusal in result.refused] == ["other.png"]


def test_another_picture_of_the_same_name_is_not_taken_for_a_refused_one(store, tmp_path, bench):
    good, bad = save(tmp_path / "a" / "me.png", noise(*SIZE)), tmp_path / "b" / "me.png"
    bad.parent.mkdir()
    bad.write_bytes(b"")
    result = run(spec_of(bad, good, upscale=2), store, bench)
    assert [picture.source for picture in result.pictures] == [good] and len(result.refused) == 1


# --- what is written down ---------------------------------------------------------------------------
def test_the_record_and_the_png_say_what_was_done(store, tmp_path, bench):
    own = {"ai_generated": "AI-generated: drawn.", "request": {"seed": 3}}
    photo = tmp_path / "secret-folder" / "drawn.png"
    save_png(photo, Image.fromarray(noise(*SIZE)), own)
    result = run(spec_of(photo, faces=(1,), fidelity_weight=0.25), store, bench, judge=BrightJudge())
    assert read_record(result.folder) == replace(result, seconds=read_record(result.folder).seconds)
    data = json.loads((result.folder / "restored.json").read_text())
    assert data["state"] == "done" and data["request"]["fidelity_weight"] == 0.25
    metadata = read_png_metadata(result.pictures[0].path)
    assert metadata["ai_generated"].startswith("AI-generated: drawn. AI-edited: faces redrawn")
    assert metadata["source"] == own and len(metadata["restored"]["source_sha256"]) == 64
    assert metadata["request"]["restorer"] == "fake" and metadata["request"]["pictures"] == ["drawn.png"]
    assert "secret-folder" not in json.dumps(metadata)


def test_a_damaged_record_is_told(store, photo, bench):
    folder = run(spec_of(photo), store, bench).folder
    (folder / "restored.json").write_text('{"pictures": [{}]}')
    with pytest.raises(StoreError, match="damaged"):
        read_record(folder)


def test_the_picture_as_it_was_lies_beside_it(store, photo, bench):
    (picture,) = run(spec_of(photo, upscale=2), store, bench).pictures
    before = pixels_of(picture.before)
    assert before.shape == (180, 240, 3) and np.abs(before.astype(int) - pixels_of(photo)).mean() < 3


# --- likeness -----------------------------------------------------------------------------------------
def test_likeness_before_and_after_and_a_warning_when_it_falls(store, photo, bench):
    judge, bench.restorer.shift = BrightJudge(), 0.2
    (picture,) = run(spec_of(photo, upscale=2), store, bench, judge=judge).pictures
    assert judge.sizes == [SIZE, SIZE]  # compared at one size
    assert picture.likeness_before.percent > picture.likeness_after.percent
    assert picture.warning == ""  # a few points may be lost
    bench.restorer.shift = 0.8
    (picture,) = run(spec_of(photo), store, bench, judge=judge).pictures
    assert "Less like anna than before" in picture.warning and "fidelity weight" in picture.warning
    assert picture.path.is_file()


def test_nobody_is_judged_where_nothing_was_repaired(store, photo, bench):
    bench.detector.faces, judge = [], BrightJudge()
    (picture,) = run(spec_of(photo), store, bench, judge=judge).pictures
    assert judge.sizes == [] and picture.likeness_before is None and picture.warning == ""


def test_a_judge_that_fails_costs_no_picture(store, photo, bench):
    class Failing:
        def score(self, image):
            raise RuntimeError("broken")

    (picture,) = run(spec_of(photo), store, bench, judge=Failing()).pictures
    assert picture.likeness_after is None and picture.path.is_file()


# --- progress, cancel, errors ---------------------------------------------------------------------------
def test_stages_progress_and_previews(store, tmp_path, bench):
    for number in range(3):
        save(tmp_path / "in" / f"{number}.png", noise(*SIZE, number))
    reports = Reports()
    run(spec_of(tmp_path / "in", upscale=2), store, bench, reports)
    assert reports.stages == [FINDING, REPAIRING, ENLARGING]
    assert [step for stage, step, _ in reports.seen if stage == FINDING] == [0, 1, 2, 3]
    assert [step for stage, step, _ in reports.seen if stage == REPAIRING] == [0, 1, 2, 3, 4, 5, 6]
    assert reports.seen[-1] == (ENLARGING, 3, 3)
    assert reports.previews and max(max(size) for size in reports.previews) <= 512
    assert bench.events == ["open restorer", "close restorer", "open upscaler x2", "close upscaler x2"]
    assert bench.restorer.kept[0] and bench.restorer.kept[-1] == frozenset()


def test_restorer_and_upscaler_take_turns_when_there_are_very_many_faces(store, tmp_path, bench, monkeypatch):
    monkeypatch.setattr(runner, "MOST_HELD", 4)
    for number in range(3):
        save(tmp_path / "in" / f"{number}.png", noise(*SIZE, number))
    reports = Reports()
    result = run(spec_of(tmp_path / "in", upscale=2), store, bench, reports)
    assert len(result.pictures) == 3 and bench.events.count("open restorer") == 2
    steps = [step for stage, step, total in reports.seen if stage == REPAIRING and total == 6]
    assert steps == sorted(steps) and steps[-1] == 6


@pytest.mark.parametrize("stage", [REPAIRING, ENLARGING])
def test_a_cancel_keeps_the_finished_pictures(store, tmp_path, bench, stage):
    for number in range(3):
        save(tmp_path / "in" / f"{number}.png", noise(*SIZE, number))
    times, at = (1, 5) if stage == REPAIRING else (2, 2)
    with pytest.raises(Cancelled):
        run(spec_of(tmp_path / "in", upscale=times), store, bench, Reports(stage, at))
    (folder,) = [path for path in store.restored_dir("anna").iterdir() if path.is_dir()]
    result = read_record(folder)
    assert result.state == "cancelled" and 1 <= len(result.pictures) < 3
    assert sorted(path.name for path in folder.glob("*.png")) == [picture.path.name for picture in result.pictures]
    assert bench.restorer.kept[-1] == frozenset()


def test_a_cancel_before_the_first_picture_leaves_nothing(store, photo, bench):
    with pytest.raises(Cancelled):
        run(spec_of(photo), store, bench, Reports(REPAIRING, 2))
    assert [path for path in store.restored_dir("anna").iterdir() if path.is_dir()] == []


def test_an_error_keeps_the_finished_pictures(store, tmp_path, bench):
    for number in range(3):
        save(tmp_path / "in" / f"{number}.png", noise(*SIZE, number))
    bench.restorer = FakeRestorer(fail_at=4)
    with pytest.raises(RuntimeError, match="out of memory"):
        run(spec_of(tmp_path / "in"), store, bench)
    (folder,) = [path for path in store.restored_dir("anna").iterdir() if path.is_dir()]
    assert read_record(folder).state == "failed" and len(read_record(folder).pictures) == 1


def test_the_originals_are_never_touched(store, photo, bench):
    data = photo.read_bytes()
    run(spec_of(photo, upscale=2), store, bench)
    assert photo.read_bytes() == data and [path.name for path in photo.parent.iterdir()] == ["family.png"]
