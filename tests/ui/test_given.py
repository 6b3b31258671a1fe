"""Uploads that were restored stay, so that another weight can be tried after a restart."""

from __future__ import annotations

import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from headshot_ui.errors import StoreError
from headshot_ui.specs import RestoreSpec
from headshot_ui.store import Store
from headshot_ui.ui import restored_view
from headshot_ui.ui.given import GIVEN, as_file, forget_given, is_there, keep_given, origin_of
from headshot_ui.ui.restored_view import View, again_request, look, variants_of, why_not_again
from tests.ui.fake_engine import portrait
from tests.ui.studio_stub import PERSON, StudioEngine, studio_settings


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(studio_settings(tmp_path))


def upload(folder: Path, name: str = "me.png", number: int = 1) -> Path:
    path = folder / "uploads" / name
    path.parent.mkdir(exist_ok=True)
    portrait(number, name).save(path)
    return path


def restore(store: Store, *pictures: Path, weight: float = 0.5) -> None:
    engine = StudioEngine(store.settings)
    spec = RestoreSpec(PERSON, tuple(map(str, pictures)), "demo", fidelity_weight=weight)
    assert engine.submit(spec).wait(20).state == "done"
    engine.close()


def test_an_upload_can_be_restored_again_when_the_uploads_are_gone(store, tmp_path):
    given = upload(tmp_path)
    kept = keep_given(store, PERSON, [given])
    assert keep_given(store, PERSON, [given]) == kept, "equal files once: two clicks are one request"
    assert kept[0].name == "me.png" and kept[0].read_bytes() == given.read_bytes()
    restore(store, *kept)
    given.unlink()
    seen = look(store, PERSON, View())
    assert why_not_again(seen) == ""
    assert again_request(seen, 0.2, ()).pictures == (str(kept[0]),)


def test_a_picture_of_an_archive_is_taken_out_of_it(store, tmp_path):
    archive = tmp_path / "old photos.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        for name in ("one.png", "album/two.png"):
            packed.write(upload(tmp_path, Path(name).name, len(name)), name)
    (kept,) = keep_given(store, PERSON, [archive])
    source = kept / "album" / "two.png"
    assert is_there(source) and not is_there(tmp_path / "other.zip" / "two.png")
    copy = as_file(source)
    assert copy.read_bytes() == (tmp_path / "uploads" / "two.png").read_bytes()
    assert copy.name == "two.png" and as_file(source) == copy
    assert origin_of(copy) == origin_of(source) != origin_of(kept / "one.png")
    with pytest.raises(StoreError, match="no longer in old photos.zip"):
        as_file(kept / "three.png")


def test_another_weight_of_a_member_stands_beside_the_first(store, tmp_path, monkeypatch):
    archive = tmp_path / "a.zip"
    with zipfile.ZipFile(archive, "w") as packed:
        packed.write(upload(tmp_path), "me.png")
    (kept,) = keep_given(store, PERSON, [archive])
    restore(store, as_file(kept / "me.png"))
    restore(store, as_file(kept / "me.png"), weight=0.1)
    again, first = restored_view.find_made(store, PERSON)
    first = replace(first, picture=replace(first.picture, source=kept / "me.png"))  # as the engine calls a member
    monkeypatch.setattr(restored_view, "find_made", lambda store, person: (again, first))
    assert [made.request.fidelity_weight for made in variants_of(look(store, PERSON, View()))] == [0.1, 0.5]


def test_what_no_result_needs_any_more_is_removed(store, tmp_path):
    needed, other = keep_given(store, PERSON, [upload(tmp_path), upload(tmp_path, "other.png", 2)])
    restore(store, needed)
    sources = [made.picture.source for made in restored_view.find_made(store, PERSON)]
    forget_given(store, PERSON, sources)
    assert needed.is_file() and not other.exists()
    assert os.listdir(store.restored_dir(PERSON) / GIVEN) == [needed.parent.name]
    forget_given(store, "nobody", [])
