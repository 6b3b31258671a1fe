import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from headshot_ui.dataset.prepare import LEAST_PHOTOS, load_dataset, prepare
from headshot_ui.errors import Cancelled, DatasetError, SpecError, StoreError
from headshot_ui.families.protocol import BaseDefaults, BaseInfo
from headshot_ui.settings import Settings
from headshot_ui.specs import PrepareSpec
from headshot_ui.store import Store
from tests.dataset.drawn_faces import ColourDetector, jpeg, make_photo

BASE = BaseInfo("tiny", "sdxl", "Tiny", Path("tiny"), "", "", 128, defaults=BaseDefaults(trigger="zoe"))


@dataclass
class Progress:
    """A reporter that remembers, and cancels at a step if asked to."""

    cancel_at: int | None = None

    def __post_init__(self):
        self.steps = []

    def __call__(self, stage, step, total, preview=None, metrics=None):
        assert stage
        self.steps.append((step, total))
        if step == self.cancel_at:
            raise Cancelled


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(Settings.from_environment(root=tmp_path / "program", device="cpu", environment={}))


@pytest.fixture
def album(tmp_path) -> Path:
    """A folder to put photos in."""
    folder = tmp_path / "album"
    folder.mkdir()
    return folder


def add(album: Path, *seeds: int, **options) -> None:
    for seed in seeds:
        photo = make_photo(seed, **({"size": (240, 320), "height": 110} | options))
        (album / f"{seed}.jpg").write_bytes(jpeg(photo))


def run(store, *photos, report=None, recogniser=None, **options):
    spec = PrepareSpec("robin", tuple(map(str, photos)), "tiny", **options)
    return prepare(spec, store, BASE, ColourDetector(), report or Progress(), recogniser)


def verdicts(dataset) -> dict[str, str]:
    return {photo.source: photo.verdict for photo in dataset.photos}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_photos_become_crops_with_captions(store, album):
    add(album, 1, 2, 3)
    report = Progress()
    dataset = run(store, album, report=report, class_word="woman")
    assert dataset == load_dataset(store.dataset_dir("robin"))
    assert [photo.source for photo in dataset.photos] == ["1.jpg", "2.jpg", "3.jpg"]
    assert (dataset.size_px, dataset.trigger, dataset.class_word) == (128, "zoe", "woman")
    for photo in dataset.photos:
        with Image.open(dataset.folder / photo.crop) as crop:
            assert (crop.size, crop.mode) == ((128, 128), "RGB")
            (found,) = ColourDetector().detect(crop)
        assert np.allclose(found.box, photo.face.box, atol=3)
        assert photo.caption.startswith("portrait of zoe woman")
        assert (dataset.folder / photo.crop).with_suffix(".txt").read_text("utf-8").strip() == photo.caption
        assert photo.original_size[0] == photo.original_size[1] > 128
    assert report.steps == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_every_bad_photo_is_listed_and_stops_nothing(store, album):
    add(album, 1, 2, 3, 4)
    add(album, 5, height=0)
    add(album, 6, second=100)
    add(album, 7, height=13)
    add(album, 8, blur=4)
    (album / "9.jpg").write_bytes(b"a letter")
    (album / "10.jpg").write_bytes((album / "1.jpg").read_bytes()[:4000])
    (album / "11.jpg").write_bytes((album / "1.jpg").read_bytes())
    (album / "12.jpg").write_bytes(jpeg(make_photo(2, size=(240, 320), height=110).resize((180, 240)), quality=60))
    (album / "13.nef").touch()
    with zipfile.ZipFile(album / "z.zip", "w") as archive:
        archive.writestr("../14.jpg", b"")
    dataset = run(store, album, trigger="tok")
    reasons = {photo.source: photo.reason for photo in dataset.photos if photo.verdict == "rejected"}
    expected = {"5.jpg": "No face", "6.jpg": "2 faces", "7.jpg": "too small", "8.jpg": "blurred",
                "9.jpg": "not a picture", "10.jpg": "damaged", "11.jpg": "same photo as “1.jpg”",
                "12.jpg": "same photo as “2.jpg”", "13.nef": "Raw", "../14.jpg": "outside"}  # fmt: skip
    assert reasons.keys() == expected.keys()
    for source, words in expected.items():
        assert words in reasons[source] and ": " in reasons[source] and "\n" not in reasons[source]
    assert [source for source, verdict in verdicts(dataset).items() if verdict != "rejected"] == [
        f"{i}.jpg" for i in (1, 2, 3, 4)
    ]


def test_of_two_copies_the_better_one_is_kept(store, album):
    add(album, 1, 2, 3)
    (album / "0.jpg").write_bytes(jpeg(make_photo(1, size=(240, 320), height=110).resize((90, 120)), quality=70))
    dataset = run(store, album)
    assert verdicts(dataset) == {"0.jpg": "rejected", "1.jpg": "train", "2.jpg": "train", "3.jpg": "train"}
    assert "same photo as “1.jpg”" in dataset.photos[0].reason


@pytest.mark.parametrize(
    ("count", "wanted", "held_out"), [(4, None, 0), (5, None, 1), (10, None, 2), (6, 3, 3), (5, 0, 0)]
)
def test_some_photos_are_held_out(store, album, count, wanted, held_out):
    add(album, *range(1, count + 1))
    first = run(store, album, held_out=wanted)
    assert list(verdicts(first).values()).count("held_out") == held_out
    assert verdicts(run(store, album, held_out=wanted)) == verdicts(first)


def test_too_many_held_out_is_a_wrong_request(store, album):
    add(album, 1, 2, 3, 4)
    with pytest.raises(SpecError, match="choose at most 1") as caught:
        run(store, album, held_out=2)
    assert caught.value.field == "held_out"


def test_three_ways_to_have_nothing_have_three_sentences(store, album):
    said = []
    for prepare_album in (lambda: None, lambda: add(album, 1, 2, height=0), lambda: add(album, 1)):
        prepare_album()
        with pytest.raises(DatasetError) as caught:
            run(store, album)
        said.append(str(caught.value))
    assert "No photos were found" in said[0] and "No face was found in any of the 2" in said[1]
    assert f"Only 1 of 2 photos can be used and at least {LEAST_PHOTOS} are needed" in said[2] and "no face" in said[2]
    assert not store.person_dir("robin").exists()


def test_the_error_lists_every_photo(store, album):
    (album / "a.jpg").write_bytes(b"a letter")
    (album / "b.nef").touch()
    with pytest.raises(DatasetError, match="None of the 2 photos") as caught:
        run(store, album)
    assert [note.split(":")[0] for note in caught.value.__notes__] == ["a.jpg", "b.nef"]


def test_a_single_thing_that_is_no_photo_is_one_sentence(store, album):
    (album / "a.jpg").write_bytes(b"a letter")
    with pytest.raises(DatasetError) as caught:
        run(store, album / "a.jpg")
    assert str(caught.value).startswith("“a.jpg” cannot be used. This is not a picture")
    assert not getattr(caught.value, "__notes__", [])
    with pytest.raises(DatasetError, match=r"1 usable photo and at least 3 are needed: add about twelve\.$"):
        add(album, 1)
        run(store, album / "1.jpg")


def test_a_person_of_whom_nothing_could_be_kept_leaves_no_folder(store, album):
    add(album, 1, 2, height=0)
    with pytest.raises(DatasetError):
        run(store, album)
    assert store.people() == ()


@pytest.mark.parametrize("fault", ["cancel", "full disk", "no faces"])
def test_nothing_already_made_is_lost(store, album, tmp_path, monkeypatch, fault):
    add(album, 1, 2, 3)
    run(store, album)
    before = contents(store.person_dir("robin"))
    add(album, 4, 5)
    report, expected = Progress(), DatasetError
    if fault == "cancel":
        report, expected = Progress(cancel_at=4), Cancelled
    elif fault == "full disk":
        expected, written = StoreError, []

        def fsync(_):
            written.append(1)
            if len(written) > 5:
                raise OSError(28, "No space left on device")

        monkeypatch.setattr("os.fsync", fsync)
    else:
        album = tmp_path / "other"
        album.mkdir()
        add(album, 1, 2, 3, height=0)
    with pytest.raises(expected):
        run(store, album, report=report)
    assert contents(store.person_dir("robin")) == before


def test_originals_are_untouched_and_copies_tell_no_place(store, album):
    add(album, 1, 2, 3)
    exif = Image.Exif()
    exif[0x010E] = "at home, 52.52 N"
    (album / "b").mkdir()
    (album / "b" / "1.jpg").write_bytes(jpeg(make_photo(4), exif=exif))
    before = contents(album)
    dataset = run(store, album)
    assert contents(album) == before
    assert sorted(path.name for path in store.photos_dir("robin").iterdir()) == ["1 (2).jpg", "1.jpg", "2.jpg", "3.jpg"]
    everything = contents(store.person_dir("robin"))
    assert not [name for name, data in everything.items() if b"52.52 N" in data]
    assert not (dataset.folder / "originals").exists()
    run(store, album)  # again: no second copies
    assert len(list(store.photos_dir("robin").iterdir())) == 4
    again = run(store, store.photos_dir("robin"))
    assert list(verdicts(again).values()) == ["train"] * 4


class KnowsSeeds:
    """A recogniser that tells people apart by the mean colour of the crop's edge, i.e. by nothing but the test."""

    id, note = "fake", ""

    def embed(self, image, face):
        stranger = np.asarray(image)[:4].mean() > 200
        return np.array([0.0, 1.0] if stranger else [1.0, 0.0], np.float32)


def test_with_a_recogniser_somebody_else_is_left_out(store, album):
    add(album, 1, 2, 3, 4, 5)
    bright = make_photo(6, size=(240, 320), height=110)
    pixels = np.asarray(bright).copy()
    pixels[:90] = 250
    (album / "6.jpg").write_bytes(jpeg(Image.fromarray(pixels)))
    assert verdicts(run(store, album))["6.jpg"] != "rejected"
    dataset = run(store, album, recogniser=KnowsSeeds())
    assert [s for s, v in verdicts(dataset).items() if v == "rejected"] == ["6.jpg"]
    assert "somebody else" in dataset.photos[5].reason


def test_texts_beside_photos_become_captions(store, album):
    add(album, 1, 2, 3)
    (album / "2.txt").write_text("wearing a navy suit", encoding="utf-8")
    assert run(store, album).photos[1].caption == "portrait of zoe person, wearing a navy suit"


def test_names_of_any_script_survive(store, album):
    names = ["Фото №1.jpg", "写真 二.jpg", "صورة.jpg"]
    for seed, name in enumerate(names, start=1):
        (album / name).write_bytes(jpeg(make_photo(seed)))
    assert sorted(verdicts(run(store, album))) == sorted(names)
    assert sorted(path.name for path in store.photos_dir("robin").iterdir()) == sorted(names)


def test_many_photos_work_one_at_a_time(store, album, monkeypatch):
    monkeypatch.setattr("os.fsync", lambda _: None)
    for seed in range(30):
        (album / f"{seed}.jpg").write_bytes(jpeg(make_photo(seed, size=(150, 200), height=70)))
    report = Progress()
    dataset = run(store, album, report=report)
    assert list(verdicts(dataset).values()).count("train") == 28 and report.steps[-1] == (30, 30)
