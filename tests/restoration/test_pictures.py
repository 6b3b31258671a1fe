"""Any picture: upright, 8 bits, sRGB, with its transparency and what this program wrote into it."""

from __future__ import annotations

import hashlib
import zipfile

import numpy as np
import pytest
from PIL import Image

from headshot_ui.errors import PhotoError
from headshot_ui.restoration.pictures import Item, collect_pictures, on_white, open_picture
from headshot_ui.store import save_png
from tests.restoration.fakes import noise, save


def opened(path):
    return open_picture(Item(path, path.name, path.read_bytes))


def test_a_plain_picture_is_itself_and_has_a_digest(tmp_path):
    pixels = noise(40, 30)
    path = save(tmp_path / "a.png", pixels)
    picture = opened(path)
    assert np.array_equal(picture.pixels, pixels) and picture.alpha is None
    assert picture.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert picture.notes == () and picture.own == {}
    picture.pixels[:] = 0  # it may be painted on
    assert np.asarray(picture.shown).max() > 0


def test_a_picture_taken_sideways_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.png"
    Image.fromarray(noise(40, 30)).save(path, exif=exif)
    assert np.array_equal(opened(path).pixels, np.rot90(noise(40, 30), -1))


def test_sixteen_bits_become_eight(tmp_path):
    grey = (noise(40, 30)[:, :, 0].astype(np.uint16)) * 257
    Image.fromarray(grey).save(tmp_path / "a.png")
    picture = opened(tmp_path / "a.png")
    assert np.abs(picture.pixels[:, :, 0].astype(int) - grey // 257).max() <= 1
    assert picture.pixels.shape == (30, 40, 3)


def test_sixteen_bit_grey_with_a_transparent_level_is_opened(tmp_path):
    grey = np.full((20, 20), 40000, np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.png", transparency=255)
    picture = opened(tmp_path / "a.png")
    assert picture.alpha is None and abs(int(picture.pixels[0, 0, 0]) - 40000 // 257) <= 1


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "1"])
def test_other_modes_become_rgb(tmp_path, mode):
    image = Image.fromarray(noise(40, 30)).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    picture = opened(path)
    assert picture.pixels.shape == (30, 40, 3) and picture.alpha is None
    assert np.array_equal(picture.pixels, np.asarray(image.convert("RGB")))


def test_transparency_is_kept_beside_the_untouched_colours(tmp_path):
    pixels, alpha = noise(40, 30), np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))
    Image.fromarray(np.dstack([pixels, alpha])).save(tmp_path / "a.png")
    picture = opened(tmp_path / "a.png")
    assert np.array_equal(picture.pixels, pixels)
    assert np.array_equal(np.asarray(picture.alpha), alpha)
    assert np.asarray(picture.shown)[:, 0].min() == 255  # white where nothing is
    assert np.array_equal(np.asarray(on_white(picture.pixels, picture.alpha)), np.asarray(picture.shown))


def test_a_transparent_picture_taken_sideways_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    rgba = np.dstack([noise(40, 30), noise(40, 30, seed=1)[:, :, 0]])
    Image.fromarray(rgba).save(tmp_path / "a.png", exif=exif)
    picture = opened(tmp_path / "a.png")
    assert np.array_equal(np.dstack([picture.pixels, np.asarray(picture.alpha)]), np.rot90(rgba, -1))


def test_a_palette_with_a_transparent_colour(tmp_path):
    image = Image.new("P", (20, 20), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.paste(1, (5, 5, 15, 15))
    image.save(tmp_path / "a.png", transparency=0)
    picture = opened(tmp_path / "a.png")
    assert np.asarray(picture.alpha)[0, 0] == 0 and np.asarray(picture.alpha)[10, 10] == 255
    assert picture.pixels[10, 10].tolist() == [0, 0, 255]


def test_transparency_that_hides_nothing_is_none(tmp_path):
    Image.fromarray(noise(40, 30)).convert("RGBA").save(tmp_path / "a.png")
    assert opened(tmp_path / "a.png").alpha is None


def test_the_first_of_a_moving_picture(tmp_path):
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    picture = opened(tmp_path / "a.gif")
    assert picture.pixels[5, 5].tolist() == [255, 0, 0] and "moving" in picture.notes[0]


def test_a_heic_photo(tmp_path):
    import pillow_heif

    pillow_heif.from_pillow(Image.fromarray(noise(64, 48))).save(tmp_path / "a.heic", quality=90)
    assert opened(tmp_path / "a.heic").pixels.shape == (48, 64, 3)


def test_a_larger_picture_than_can_be_worked_on_is_said(tmp_path, monkeypatch):
    from headshot_ui.dataset import decode

    monkeypatch.setattr(decode, "WORKING_PIXELS", 600)
    save(tmp_path / "a.png", noise(40, 30))
    picture = opened(tmp_path / "a.png")
    assert picture.shown.width * picture.shown.height <= 600 and "larger" in picture.notes[0]
    rgba = np.dstack([noise(40, 30), np.full((30, 40), 100, np.uint8)])
    save(tmp_path / "b.png", rgba)
    picture = opened(tmp_path / "b.png")
    assert picture.alpha.size == picture.shown.size and picture.pixels.shape[:2] == picture.shown.size[::-1]


def test_what_this_program_wrote_is_read_back(tmp_path):
    save_png(tmp_path / "a.png", Image.fromarray(noise(20, 20)), {"request": {"seed": 3}})
    assert opened(tmp_path / "a.png").own == {"request": {"seed": 3}}


@pytest.mark.parametrize("data", [b"", b"text", b"\x89PNG\r\n\x1a\n cut off"])
def test_a_broken_file_is_told_in_a_sentence(data):
    with pytest.raises(PhotoError):
        open_picture(Item(None, "a.png", lambda: data))  # type: ignore[arg-type]


def test_files_folders_and_archives_are_looked_through(tmp_path):
    one = save(tmp_path / "one.png", noise(8, 8))
    two = save(tmp_path / "folder" / "inner" / "two.png", noise(8, 8))
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(one, "in/three.png")
    items, refused = collect_pictures([str(one), str(tmp_path / "folder"), str(tmp_path / "all.zip"), "not-there.png"])
    assert [item.source for item in items] == [one, two, tmp_path / "all.zip" / "in/three.png"]
    assert [item.name for item in items] == ["one.png", "inner/two.png", "in/three.png"]
    assert [refusal.name for refusal in refused] == ["not-there.png"]
    assert items[2].read() == one.read_bytes()


def test_too_many_at_once(tmp_path, monkeypatch):
    from headshot_ui.dataset import intake

    monkeypatch.setattr(intake, "MAX_PHOTOS", 1)
    for number in range(2):
        save(tmp_path / f"{number}.png", noise(8, 8))
    with pytest.raises(PhotoError, match="too many pictures"):
        collect_pictures([str(tmp_path)])
