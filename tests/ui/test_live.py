"""The jobs as the page shows them, without gradio and without a browser."""

from __future__ import annotations

import io
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from headshot_ui.jobs import Job, Snapshot
from headshot_ui.settings import Settings
from headshot_ui.sheet import FILE_NAME as SHEET_NAME
from headshot_ui.specs import GenerateSpec, PrepareSpec, TrainSpec
from headshot_ui.ui.live import CURVE_POINTS, Live, _note, _ordinal, _Watched, plain_time
from headshot_ui.ui.outcomes import outcome_of
from headshot_ui.ui.request import headshots_request
from headshot_ui.ui.thumbnails import data_uri
from tests.ui.fake_engine import FakeEngine, portrait


class Desk:
    """A ``Live`` before a fake engine, with one photo to give."""

    def __init__(self, folder: Path, **fake: Any) -> None:
        self.settings = Settings.from_environment(outputs_dir=folder / "outputs")
        self.engine = FakeEngine(self.settings, **fake)
        self.live = Live(self.engine, self.settings, folder / "shown")
        self.photo = folder / "a.jpg"
        portrait(1, "given").save(self.photo)
        self.spec = headshots_request("Anna", [str(self.photo)], "demo-sdxl")

    def run(self) -> Job:
        job = self.live.submit(self.spec)
        assert job.wait(20).finished
        return job


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.engine.close()


def stuck(desk: Desk, person: str = "anna", **more: Any) -> Job:
    """A training that stays at its last step until ``hold`` is set."""
    desk.engine.hold.clear()
    job = desk.live.submit(TrainSpec(person, "demo-sdxl", **more))
    while job.snapshot.step < desk.engine._steps:
        job.wait(0.01)
    return job


def test_equal_requests_make_one_job_and_others_line_up(desk):
    first = stuck(desk)
    assert desk.live.submit(TrainSpec("anna", "demo-sdxl")) is first
    other = desk.live.submit(TrainSpec("anna", "demo-sdxl", rank=8))
    assert other is not first and len(desk.engine.submitted) == 2
    desk.engine.hold.set()
    assert first.wait(20).state == other.wait(20).state == "done"
    assert desk.live.submit(TrainSpec("anna", "demo-sdxl")) is not first  # that one is finished


def test_after_a_cancel_the_same_request_starts_anew(desk):
    first = stuck(desk)
    first._cancel.set()  # asked for, and not yet heard
    again = desk.live.submit(TrainSpec("anna", "demo-sdxl"))
    assert again is not first


def test_newest_is_found_by_person_and_kind(desk):
    anna = desk.live.submit(TrainSpec("anna", "demo-sdxl"))
    ben = desk.live.submit(TrainSpec("ben", "demo-sdxl"))
    later = desk.live.submit(TrainSpec("anna", "demo-sdxl", rank=8))
    drawn = desk.live.submit(GenerateSpec("anna", "demo-sdxl", count=1))
    drawn.wait(20)
    assert desk.live.newest("anna", "train") is later and desk.live.newest("ben", "train") is ben
    assert desk.live.newest("anna", "generate") is drawn and desk.live.newest("ben", "generate") is None
    assert desk.live.spec_of(anna) == TrainSpec("anna", "demo-sdxl") and desk.live.person_of(anna) == "anna"


def test_the_bar_says_what_runs_and_who_waits_behind_whom(desk):
    first = stuck(desk)
    second = desk.live.submit(TrainSpec("ben", "demo-sdxl"))
    third = desk.live.submit(GenerateSpec("anna", "demo-sdxl", count=1))
    bar = desk.live.bar()
    assert [(job["id"], job["title"], job["percent"]) for job in bar["running"]] == [(first.id, "Learning anna", 100)]
    assert [job["place"] for job in bar["waiting"]] == [
        "Waiting, next in line; behind: Learning anna",
        "Waiting, 2nd in line; behind: Learning anna, Learning ben",
    ]
    assert desk.live.unfinished("anna") == (first, third) and desk.live.unfinished() == (first, second, third)
    assert desk.live.cancel(second.id) and second.snapshot.state == "cancelled"
    assert [job["id"] for job in desk.live.bar()["waiting"]] == [third.id]


def test_what_is_wrong_with_the_card_stands_on_the_bar(desk, monkeypatch):
    monkeypatch.setattr("headshot_ui.ui.live.unused_card", lambda settings: "")
    assert desk.live.bar()["card"] == "" and not desk.live.bar()["shown"]
    desk.live._card_told, asked = None, []
    monkeypatch.setattr("headshot_ui.ui.live.unused_card", lambda settings: asked.append(1) or "Too old a driver.")
    assert desk.live.bar()["shown"], "though there are no jobs"
    assert desk.live.bar()["card"] == desk.live.bar()["card"] == "Too old a driver."
    assert len(asked) == 1, "the driver is not asked at every look"
    vars(desk.settings)["device"] = "cpu"  # a job has asked torch meanwhile, which knows more
    assert desk.live.bar()["card"] and len(asked) == 2
    desk.engine.card_lost = "End the program."
    assert desk.live.bar()["card"] == "End the program."


def test_a_finished_job_stays_on_the_bar_until_it_is_dismissed(desk):
    job = desk.run()
    (line,) = desk.live.bar()["finished"]
    assert (line["id"], line["state"], line["tab"]) == (job.id, "done", "generate")
    assert line["text"] == "18 of 20 pictures look like anna; before training it was 9 of 10."
    assert Path(line["folder"]).is_dir() and (Path(line["folder"]) / SHEET_NAME).is_file()
    desk.live.dismiss(job.id)
    assert desk.live.bar()["finished"] == []


def test_what_went_well_makes_room_for_the_next_job_and_failures_stay(tmp_path):
    desk = Desk(tmp_path, fail="No face was found.")
    bad = desk.live.submit(PrepareSpec("anna", (str(desk.photo),), "demo-sdxl"))
    bad.wait(20)
    good = desk.live.submit(TrainSpec("anna", "demo-sdxl"))
    good.wait(20)
    assert [line["state"] for line in desk.live.bar()["finished"]] == ["done", "failed"]
    stuck(desk, rank=8)
    assert [line["text"] for line in desk.live.bar()["finished"]] == ["No face was found."]
    desk.engine.close()


def test_everybody_is_listed_also_who_was_only_named(desk):
    assert desk.live.people() == []
    assert desk.live.people("carla") == ["carla"]
    desk.run()
    assert desk.live.people() == ["anna", "carla"]
    desk.live.forget("carla")
    assert desk.live.people() == ["anna"]
    assert desk.live.people("carla") == ["anna"], "a page that still shows a deleted person does not bring them back"
    desk.live.welcome("carla")
    assert desk.live.people() == ["anna", "carla"]


def test_a_finished_job_shows_all_its_stages(desk):
    shown = desk.live.progress(desk.run())
    assert (shown["state"], shown["stage"], shown["percent"], shown["running"]) == ("done", "Done", 100, False)
    assert shown["past"] == ["Looking at the photos", "Training", "Drawing"]


def test_a_failed_job_says_why(tmp_path):
    desk = Desk(tmp_path, fail="No face was found in any photo; take new ones.")
    job = desk.run()
    shown = desk.live.progress(job)
    assert (shown["state"], shown["error"]) == ("failed", "No face was found in any photo; take new ones.")
    assert shown["running"] is False and desk.live.outcome(job).text == shown["error"]
    desk.engine.close()


def test_cancel_is_told_at_once(desk):
    job = stuck(desk)
    desk.live.cancel(job.id)
    assert desk.live.progress(job)["stage"] in ("Cancelling …", "Cancelled")
    assert job.wait(20).state == "cancelled"
    shown = desk.live.progress(job)
    assert shown["stage"] == "Cancelled" and "finished is kept" in shown["left"]
    assert "kept" in desk.live.outcome(job).text and desk.live.outcome(job).tab == "train"


@pytest.mark.parametrize(
    ("kind", "result", "said", "tab"),
    [
        ("prepare", SimpleNamespace(photos=[SimpleNamespace(verdict="train")] * 3, folder=Path("d")),
         "3 photos can be used.", "dataset"),
        ("train", SimpleNamespace(steps=1, run_dir=Path("r")), "Learned in 1 step.", "train"),
        ("restore", SimpleNamespace(pictures=[SimpleNamespace(skipped=""), SimpleNamespace(skipped="No face.")],
                                    folder=Path("s")),
         "1 picture restored; 1 without a face that could be repaired.", "restore"),
        ("restore", SimpleNamespace(pictures=[SimpleNamespace(skipped="")], folder=Path("s"),
                                    refused=[SimpleNamespace(name="a.txt", reason="It is no picture.")] * 2),
         "1 picture restored. Left out: a.txt (and 1 more): It is no picture.", "restore"),
        ("export", SimpleNamespace(files=[1, 2], folder=Path("e")), "2 files exported.", "generate"),
        ("something", SimpleNamespace(), "Done.", "dataset"),
    ],
)  # fmt: skip
def test_what_a_job_says_when_it_is_done(kind, result, said, tab):
    told = outcome_of(Snapshot("1", kind, "x", "done", result=result))
    assert (told.text, told.tab) == (said, tab)


def test_unfinished_pictures_are_said_to_be_so(desk, tmp_path):
    job = desk.run()
    shown = {}
    for name in ("preview.png", "samples/step-000005.png", "001-navy-suit-1.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        portrait(1, "x").save(path)
        running = SimpleNamespace(snapshot=Snapshot("1", "headshots", "x", "running", preview=path))
        preview = desk.live.preview(running)
        assert preview["picture"].startswith("data:image/jpeg")
        shown[name] = (preview["text"].partition(";")[0], preview["shaping"])
    assert list(shown.values()) == [("Taking shape …", True), ("Newest sample", False), ("Newest picture", False)]
    assert desk.live.preview(job)["picture"] == ""  # a finished job shows its pictures instead


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


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0, "a few seconds"), (30, "less than a minute"), (55, "about 1 minute"), (200, "about 3 minutes"),
     (3599, "about 1 hour"), (4900, "about 1 hour 20 minutes"), (7200, "about 2 hours")],
)  # fmt: skip
def test_time_is_told_in_plain_words(seconds, said):
    assert plain_time(seconds) == said


def test_places_in_line():
    assert [_ordinal(number) for number in (2, 3, 4, 11, 12, 22, 101)] == [
        "2nd", "3rd", "4th", "11th", "12th", "22nd", "101st",
    ]  # fmt: skip


def test_thumbnails_are_upright_and_small(tmp_path):
    path = tmp_path / "phone.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned a quarter
    Image.new("RGB", (400, 200)).save(path, exif=exif)
    with Image.open(io.BytesIO(b64decode(data_uri(path, 100).split(",")[1]))) as small:
        assert small.size == (50, 100)
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    assert data_uri(tmp_path / "broken.jpg", 100) == "" and data_uri(tmp_path / "missing.jpg", 100) == ""
