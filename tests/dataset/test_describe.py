"""Automatic captions in a whole preparation, with a captioner that says what it is told to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from headshot_ui.dataset.again import CAPTION_KEPT
from headshot_ui.dataset.edit import set_caption
from headshot_ui.dataset.prepare import prepare
from headshot_ui.dataset.types import Dataset
from headshot_ui.errors import Cancelled, ModelError
from headshot_ui.specs import PrepareSpec
from headshot_ui.store import Store
from tests.dataset.drawn_faces import ColourDetector
from tests.dataset.test_prepare import BASE, Progress, add, album, run, store  # noqa: F401

WORDS = "A young woman with brown hair. She is wearing a green coat. The background is a park."


class Told:
    """A captioner that remembers what it was shown, and how often it was opened and closed."""

    id = "told"

    def __init__(self, words: str = WORDS) -> None:
        self.words, self.shown, self.opened, self.closed = words, [], 0, 0

    def describe(self, image: Image.Image) -> str:
        self.shown.append(image.size)
        return self.words

    @contextmanager
    def __call__(self) -> Iterator[Told]:
        self.opened += 1
        yield self
        self.closed += 1


def described(store: Store, album: Path, captioner: Told, report: Progress | None = None, **options: object) -> Dataset:  # noqa: F811
    spec = PrepareSpec("robin", (str(album),), "tiny", captions="automatic", **options)  # type: ignore[arg-type]
    return prepare(spec, store, BASE, ColourDetector(), report or Progress(), None, captioner)


def captions(dataset: Dataset) -> dict[str, str]:
    return {photo.source: photo.caption for photo in dataset.photos}


def test_trigger_and_class_word_come_first_and_the_face_never(store: Store, album: Path) -> None:  # noqa: F811
    add(album, 1, 2, 3)
    captioner, report = Told(), Progress()
    dataset = described(store, album, captioner, report, trigger="TOK", class_word="woman")
    whole = "portrait of TOK woman, wearing a green coat, the background is a park, head and shoulders"
    assert set(captions(dataset).values()) == {whole}
    assert (captioner.opened, captioner.closed, captioner.shown) == (1, 1, [(128, 128)] * 3)
    assert report.steps[-4:] == [(0, 3), (1, 3), (2, 3), (3, 3)]
    assert (dataset.folder / "001.txt").read_text("utf-8").strip() == captions(dataset)["1.jpg"]
    assert json.loads((dataset.folder / "dataset.json").read_text())["spec"]["captions"] == "automatic"


def test_where_nothing_may_be_said_it_is_the_fixed_phrase(store: Store, album: Path) -> None:  # noqa: F811
    add(album, 1, 2, 3)
    phrases = captions(run(store, album))
    assert captions(described(store, album, Told("A beautiful woman with blue eyes."))) == phrases
    assert captions(run(store, album)) == phrases, "and again without a captioner"


def test_only_photos_that_are_used_and_have_no_text_are_described(store: Store, album: Path) -> None:  # noqa: F811
    add(album, 1, 2, 3)
    (album / "2.txt").write_text("in a red hat")
    (album / "copy.jpg").write_bytes((album / "1.jpg").read_bytes())
    captioner = Told()
    said = captions(described(store, album, captioner))
    assert len(captioner.shown) == 2 and said["2.jpg"] == "portrait of zoe person, in a red hat"


def test_captions_changed_by_hand_stay(store: Store, album: Path) -> None:  # noqa: F811
    add(album, 1, 2, 3)
    dataset = described(store, album, Told())
    set_caption(dataset.folder, "002.png", "portrait of zoe person, laughing")
    for words in (WORDS, "She is wearing a blue scarf."):  # the captioner may say something else now
        again = described(store, album, Told(words))
        (edited,) = (photo for photo in again.photos if photo.source == "2.jpg")
        assert edited.caption == "portrait of zoe person, laughing" and CAPTION_KEPT in edited.warnings
    assert captions(again)["1.jpg"].startswith("portrait of zoe person, wearing a blue scarf")
    assert captions(run(store, album))["2.jpg"] == "portrait of zoe person, laughing", "with the fixed phrase too"


def test_a_captioner_that_cannot_be_loaded_leaves_the_former_set(store: Store, album: Path) -> None:  # noqa: F811
    add(album, 1, 2, 3)
    before = captions(run(store, album))

    def broken() -> None:
        raise ModelError("model.safetensors is missing.")

    with pytest.raises(ModelError, match="is missing"):
        prepare(PrepareSpec("robin", (str(album),), "tiny"), store, BASE, ColourDetector(), Progress(), None, broken)
    captioner = Told()
    with pytest.raises(Cancelled):
        described(store, album, captioner, Cancelling())
    from headshot_ui.dataset.saved import load_dataset

    assert captions(load_dataset(store.dataset_dir("robin"))) == before and len(captioner.shown) == 1


class Cancelling(Progress):
    """Cancels after the first photo that was described."""

    def __call__(self, stage: str, step: int, total: int, preview: object = None, metrics: object = None) -> None:
        if stage == "Describing the photos" and step == 1:
            raise Cancelled


def test_what_is_measured_is_said_where_the_description_is_silent(store: Store, album: Path) -> None:  # noqa: F811
    add(album, 1, 2, 3)
    measured = captions(run(store, album))["1.jpg"]
    said = captions(described(store, album, Told("She is wearing a green coat.")))["1.jpg"]
    head, *rest = said.removeprefix("portrait of zoe person, ").split(", ")
    assert head == "wearing a green coat" and "head and shoulders" in rest and set(rest) <= set(measured.split(", "))
    silent = captions(described(store, album, Told("An upper body shot. Soft light. A wall behind her.")))["1.jpg"]
    assert silent == "portrait of zoe person, an upper body shot, soft light, a wall behind"
