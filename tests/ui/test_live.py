"""What the page shows, without gradio and without a browser."""

from __future__ import annotations

import io
import zipfile
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from headshot_ui.jobs import Job, Snapshot
from headshot_ui.settings import Settings
from headshot_ui.ui.live import CURVE_POINTS, Live, _note, _Watched
from headshot_ui.ui.request import headshots_request
from headshot_ui.ui.thumbnails import data_uri
from tests.ui.fake_engine import FakeEngine, load_fake_dataset, portrait


class Desk:
    """A ``Live`` before a fake engine, with two photos to give."""

    def __init__(self, folder: Path, **fake: object) -> None:
        self.settings = Settings.from_environment(outputs_dir=folder / "outputs")
        self.engine = FakeEngine(self.settings, **fake)  # type: ignore[arg-type]
        self.live = Live(self.engine, self.settings, folder / "shown", load_fake_dataset)
        photos = [folder / "a.jpg", folder / "group.jpg"]
        for number, path in enumerate(photos):
            portrait(number, "given").save(path)
        self.spec = headshots_request("Anna", [str(photos[0])], "demo-sdxl")

    def run(self) -> Job:
        job = self.live.start(self.spec)
        assert job.wait(20).finished
        return job


class _Shown:
    """As much of a running job as a preview asks for."""

    def __init__(self, preview: Path) -> None:
        self.snapshot = Snapshot("1", "headshots", "x", "running", preview=preview)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.engine.close()


def test_two_starts_make_one_job(desk):
    desk.engine.hold.clear()
    first, second = desk.live.start(desk.spec), desk.live.start(desk.spec)
    assert first is second is desk.live.job()
    assert len(desk.engine.submitted) == 1
    desk.engine.hold.set()
    assert first.wait(20).state == "done"
    assert desk.live.start(desk.spec) is not first


def test_a_finished_job_shows_all_its_stages_and_results(desk):
    job = desk.run()
    shown = desk.live.progress(job)
    assert (shown["state"], shown["stage"], shown["percent"], shown["running"]) == ("done", "Done", 100, False)
    assert shown["past"] == ["Looking at the photos", "Training", "Drawing"]
    results = desk.live.results(job)
    assert results is not None
    assert results.pictures[0][1] == "96 % likeness · Navy suit, grey studio"
    assert results.pictures[7][1].endswith("(not ranked: no face)")
    assert results.summary == "18 of 20 pictures look like anna; before training it was 9 of 10."
    assert all(
        Path(path).is_file() and desk.settings.outputs_dir not in Path(path).parents for path, _ in results.pictures
    )
    with zipfile.ZipFile(results.archive) as packed:
        assert packed.testzip() is None
        assert {"contact-sheet.png", "000.png"} <= set(packed.namelist()) and len(packed.namelist()) == 21
    assert desk.live.results(job) is results  # packed once, however many pages ask


def test_a_failed_job_says_why(tmp_path):
    desk = Desk(tmp_path, fail="No face was found in any photo; take new ones.")
    job = desk.run()
    shown = desk.live.progress(job)
    assert (shown["state"], shown["error"]) == ("failed", "No face was found in any photo; take new ones.")
    assert shown["running"] is False and desk.live.results(job) is None
    desk.engine.close()


def test_cancel_is_told_at_once(desk):
    desk.engine.hold.clear()
    job = desk.live.start(desk.spec)
    desk.live.cancel()
    assert desk.live.progress(job)["stage"] in ("Cancelling …", "Cancelled")
    assert job.wait(20).state == "cancelled"
    shown = desk.live.progress(job)
    assert shown["stage"] == "Cancelled" and "finished is kept" in shown["left"]


def test_unfinished_pictures_are_said_to_be_so(desk, tmp_path):
    job = desk.run()
    shown = {}
    for name in ("preview.png", "samples/step-000005.png", "001-navy-suit-1.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        portrait(1, "x").save(path)
        preview = desk.live.preview(_Shown(path))
        assert preview["picture"].startswith("data:image/jpeg")
        shown[name] = (preview["text"].partition(";")[0], preview["shaping"])
    assert list(shown.values()) == [("Taking shape …", True), ("Newest sample", False), ("Newest picture", False)]
    assert desk.live.preview(job)["picture"] == ""  # a finished job shows its pictures instead


def test_results_that_cannot_be_copied_say_where_they_lie(desk, tmp_path):
    (tmp_path / "shown").write_text("a file where the folder should be")
    results = desk.live.results(desk.run())
    assert results is not None and results.pictures == ()
    assert "could not be written" in results.summary and Path(results.folder).is_dir()


def test_photos_show_verdict_and_reason(desk):
    job = desk.run()
    used, left_out = desk.live.photos(job)
    assert (used["label"], left_out["label"]) == ("Used", "Left out")
    assert left_out["reason"].startswith("Several faces")
    assert used["picture"].startswith("data:image/jpeg;base64,")


def test_photos_of_an_earlier_job_are_not_shown_as_those_of_this_one(desk):
    first = desk.run()
    assert desk.live.dataset_changed(first) > 0
    desk.live._watched[first.id].started_s += 3600
    assert desk.live.dataset_changed(first) == 0


def test_the_curve_falls_from_left_to_right(desk):
    curve = desk.live.curve(desk.run())
    points = [tuple(map(float, point.split(","))) for point in curve["line"].split()]
    assert [x for x, _ in points] == sorted(x for x, _ in points) and points[-1][0] == 600
    heights = [y for _, y in points]
    assert heights == sorted(heights) and 10 <= heights[0] < heights[-1] <= 170  # y grows downwards in SVG
    assert curve["steps"] == "20"


def test_losses_come_from_training_only_and_stay_few(desk):
    watched = _Watched(desk.spec, 0.0)
    for step in range(1, 5001):
        _note(watched, Snapshot("1", "train", "x", "running", "Training", step, 5000, metrics={"loss": 1 / step}))
    _note(watched, Snapshot("1", "train", "x", "running", "Drawing", 6000, 9000, metrics={"loss": 0.5}))
    assert CURVE_POINTS / 2 <= len(watched.losses) <= CURVE_POINTS
    assert watched.losses[-1][0] <= 5000


def test_thumbnails_are_upright_and_small(tmp_path):
    path = tmp_path / "phone.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned a quarter
    Image.new("RGB", (400, 200)).save(path, exif=exif)
    with Image.open(io.BytesIO(b64decode(data_uri(path, 100).split(",")[1]))) as small:
        assert small.size == (50, 100)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert data_uri(tmp_path / "broken.jpg", 100) == "" and data_uri(tmp_path / "missing.jpg", 100) == ""
