"""Stars: kept with the person, safe against clicks at once, files that are gone, and paths that lead elsewhere."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from headshot_ui.errors import SpecError
from headshot_ui.settings import Settings
from headshot_ui.stars import is_starred, set_star, starred
from headshot_ui.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(Settings.from_environment(root=tmp_path, outputs_dir=tmp_path / "outputs", device="cpu"))


def picture(store: Store, name: str, kind: str = "headshots") -> Path:
    path = store.person_dir("anna") / kind / "2026-01-02_10-11-12" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"picture")
    return path


def test_headshots_and_restored_pictures_in_the_order_they_got_their_star(store: Store) -> None:
    assert starred(store, "anna") == ()
    second, first = picture(store, "2 – ünï.png"), picture(store, "1.png", "restored")
    set_star(store, "anna", second, True)
    assert set_star(store, "anna", first, True) == (second, first) == starred(store, "anna")
    assert set_star(store, "anna", second, True) == (second, first)
    assert is_starred(store, "anna", first)
    assert set_star(store, "anna", second, False) == (first,)
    assert not is_starred(store, "anna", second)


def test_the_file_holds_relative_names_so_that_the_folder_can_be_moved(store: Store) -> None:
    set_star(store, "anna", picture(store, "1.png"), True)
    file = store.person_dir("anna") / "stars.json"
    assert json.loads(file.read_text("utf-8"))["stars"] == ["headshots/2026-01-02_10-11-12/1.png"]
    moved = store.people_dir / "berta"
    store.person_dir("anna").rename(moved)
    assert starred(store, "berta") == (moved / "headshots/2026-01-02_10-11-12/1.png",)


def test_a_picture_that_is_gone_is_left_out_and_its_star_can_be_taken(store: Store) -> None:
    gone, there = picture(store, "1.png"), picture(store, "2.png")
    set_star(store, "anna", gone, True)
    set_star(store, "anna", there, True)
    gone.unlink()
    assert starred(store, "anna") == (there,)
    set_star(store, "anna", gone, False)
    gone.write_bytes(b"again")
    assert starred(store, "anna") == (there,)
    gone.unlink()
    with pytest.raises(SpecError, match="no picture that is there"):
        set_star(store, "anna", gone, True)


def test_nothing_outside_the_persons_folder(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(b"picture")
    inside = picture(store, "1.png")
    dots = inside.parent / ".." / ".." / ".." / ".." / ".." / "outside.png"
    link = inside.parent / "link.png"
    link.symlink_to(outside)
    assert dots.resolve() == outside
    for path in (outside, dots, link, store.people_dir / "berta" / "1.png"):
        with pytest.raises(SpecError, match="not in the folder") as wrong:
            set_star(store, "anna", path, True)
        assert wrong.value.field == "pictures" and not is_starred(store, "anna", path)
    for path in (store.person_dir("anna"), inside.parent):
        with pytest.raises(SpecError):
            set_star(store, "anna", path, True)
    with pytest.raises(SpecError):
        set_star(store, "../anna", inside, True)


def test_names_in_the_file_that_lead_elsewhere_are_ignored(store: Store, tmp_path: Path) -> None:
    good = picture(store, "1.png")
    (tmp_path / "outside.png").write_bytes(b"picture")
    names = ["../../../outside.png", str(tmp_path / "outside.png"), "headshots/2026-01-02_10-11-12/1.png", "C:/x.png"]
    file = store.person_dir("anna") / "stars.json"
    file.write_text(json.dumps({"format": 1, "stars": names}))
    assert starred(store, "anna") == (good,)


@pytest.mark.parametrize("text", ["{", "[]", '{"stars": 3}', '{"stars": [1]}', "\x00"])
def test_a_damaged_file_counts_as_empty_and_is_put_aside(store: Store, text: str) -> None:
    path = picture(store, "1.png")
    file = store.person_dir("anna") / "stars.json"
    file.write_text(text)
    assert starred(store, "anna") == ()
    assert set_star(store, "anna", path, True) == (path,)
    assert file.with_name("stars-damaged.json").read_text() == text


def test_clicks_at_once_lose_nothing(store: Store) -> None:
    pictures = [picture(store, f"{number}.png") for number in range(24)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: set_star(store, "anna", path, True), pictures))
    assert sorted(starred(store, "anna")) == sorted(pictures)
