"""Small and large copies in the private folder, and pages."""

from __future__ import annotations

import os

import pytest
from PIL import Image

from headshot_ui.errors import StoreError
from headshot_ui.ui import gallery
from headshot_ui.ui.gallery import address, copied, large_address, page_of, page_with, small_addresses, small_webp
from tests.ui.fake_engine import portrait


def test_pages_end_where_the_list_does():
    items = list(range(100))
    assert page_of(items, 0).items == tuple(range(48)) and page_of(items, 0).count == 3
    assert page_of(items, 2).items == tuple(range(96, 100))
    assert page_of(items, 99).number == 2 and page_of(items, -5).number == 0
    assert page_of([], 3) == gallery.Page((), 0, 1, 0)
    assert [page_with(items, wanted) for wanted in (0, 47, 48, 99, 1000)] == [0, 0, 1, 2, 0]


def test_a_small_copy_is_upright_small_and_made_once(tmp_path):
    path, shown = tmp_path / "photo.jpg", tmp_path / "shown"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    portrait(1, "x").resize((900, 600)).save(path, exif=exif)
    copy = small_webp(path, shown, 300)
    assert copy is not None and shown in copy.parents
    with Image.open(copy) as image:
        assert image.format == "WEBP" and image.size == (200, 300)
    made = copy.stat().st_mtime_ns
    assert small_webp(path, shown, 300) == copy and copy.stat().st_mtime_ns == made
    portrait(2, "y").save(path)
    os.utime(path, (1, 1))
    assert small_webp(path, shown, 300) != copy, "a changed picture gets a new copy"


def test_every_kind_of_picture_can_be_seen(tmp_path):
    for name, mode in (("grey16.png", "I;16"), ("cmyk.jpg", "CMYK"), ("glass.png", "RGBA")):
        image = Image.new("L", (64, 64), 128) if mode == "I;16" else portrait(1, "").convert(mode)
        (image.convert("I;16") if mode == "I;16" else image).save(tmp_path / name)
        assert small_webp(tmp_path / name, tmp_path / "shown") is not None, name
        assert large_address(tmp_path / name, tmp_path / "shown"), name


def test_what_cannot_be_read_has_no_address(tmp_path):
    (tmp_path / "a.png").write_bytes(b"no picture")
    portrait(0, "").save(tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png", tmp_path / "gone.png"]
    first, second, third = small_addresses(paths, tmp_path / "shown")
    assert first == third == "" and second.endswith(".webp")
    assert large_address(tmp_path / "gone.png", tmp_path / "shown") == ""
    with pytest.raises(StoreError, match="gone.png could not be read: it is not there"):
        copied(tmp_path / "gone.png", tmp_path / "shown")


def test_addresses_are_quoted(tmp_path):
    assert address(tmp_path / "a b#ü?.png").endswith("/a%20b%23%C3%BC%3F.png")


def test_only_so_many_originals_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(gallery, "LARGE_KEPT", 3)
    for number in range(8):
        path = tmp_path / f"{number}.png"
        portrait(number, "").save(path)
        assert copied(path, tmp_path / "shown").read_bytes() == path.read_bytes()
    assert len(list((tmp_path / "shown" / "large").iterdir())) <= 4
    assert copied(path, tmp_path / "shown", "named.png").name == "named.png"
