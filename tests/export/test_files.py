"""What is in the files: kind, size, colours, dots per inch, the mark, and nothing that was not meant to be."""

from __future__ import annotations

import pytest
from PIL import Image

from headshot_ui.export.files import EDITED, GENERATED, SUFFIXES, save_picture, source_type, srgb_profile
from headshot_ui.store import save_png
from tests.export.conftest import SECRET, map_picture, xmp_of

RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
KINDS = [("jpeg", "JPEG"), ("png", "PNG"), ("webp", "WEBP")]


@pytest.fixture(params=KINDS, ids=lambda kind: kind[0])
def kind(request):
    return request.param


def written(tmp_path, kind, mark, dpi=0, quality=92):
    path = tmp_path / f"a{SUFFIXES[kind[0]]}"
    save_picture(path, map_picture(80, 60), kind[0], quality, dpi, mark)
    return path


def digital_source_type(image: Image.Image) -> str:
    """As a standard reader finds it: by the names of the XMP packet."""
    packet = xmp_of(image)
    assert packet is not None
    (found,) = packet.iterfind(f".//{{{RDF}}}Description/{{{IPTC}}}DigitalSourceType")
    return found.text


def test_it_reopens_as_what_it_should_be(tmp_path, kind) -> None:
    with Image.open(written(tmp_path, kind, GENERATED)) as image:
        assert (image.format, image.mode, image.size) == (kind[1], "RGB", (80, 60))
        assert image.info["icc_profile"] == srgb_profile()
        image.load()


def test_the_mark_is_where_other_programs_look(tmp_path, kind) -> None:
    with Image.open(written(tmp_path, kind, GENERATED)) as image:
        assert digital_source_type(image) == "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
        exif = image.getexif()
        assert "AI-generated" in exif[0x010E] and exif[0x0131].startswith("headshot_ui")
        assert set(exif) == {0x010E, 0x0131}


def test_without_the_mark_there_is_nothing(tmp_path, kind) -> None:
    path = written(tmp_path, kind, None)
    with Image.open(path) as image:
        assert xmp_of(image) is None and not image.getexif()
        extra = set(image.info) - {"icc_profile", "jfif", "jfif_version", "jfif_unit", "jfif_density", "background",
                                   "loop", "duration", "timestamp", "progressive", "progression"}  # fmt: skip
        assert not extra
    assert b"headshot" not in path.read_bytes() and b"algorithmic" not in path.read_bytes().lower()


def test_notes_that_hang_on_the_picture_in_memory_are_not_written(tmp_path, kind) -> None:
    picture = map_picture(80, 60)
    notes = {"comment": b"secretnote", "exif": b"Exif\0\0secretnote", "xmp": b"<secretnote/>", "dpi": (72, 72)}
    picture.info = notes
    path = tmp_path / "a.picture"
    save_picture(path, picture, kind[0], 92, 0, None)
    assert b"secretnote" not in path.read_bytes() and picture.info == notes
    with Image.open(path) as image:
        assert "dpi" not in image.info


def test_dots_per_inch_only_where_they_mean_something(tmp_path, kind) -> None:
    with Image.open(written(tmp_path, kind, None, dpi=300)) as image:
        if kind[0] == "webp":
            assert image.getexif()[0x011A] == 300 and image.getexif()[0x0128] == 2
        else:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.01)
    with Image.open(written(tmp_path, kind, None)) as image:
        assert "dpi" not in image.info and 0x011A not in image.getexif()


@pytest.mark.parametrize("lossy", KINDS[::2], ids=lambda kind: kind[0])
def test_quality_changes_the_size(tmp_path, lossy) -> None:
    sizes = [written(tmp_path, lossy, None, quality=quality).stat().st_size for quality in (30, 98)]
    assert sizes[0] < sizes[1]


def test_the_same_picture_gives_the_same_bytes(tmp_path, kind) -> None:
    first = written(tmp_path, kind, GENERATED).read_bytes()
    assert written(tmp_path, kind, GENERATED).read_bytes() == first


def test_what_a_picture_says_about_itself_decides_the_mark(tmp_path) -> None:
    restored = {"ai_generated": "AI-edited: faces redrawn.", "request": {"fidelity_weight": 0.5}, "source": {}}
    contents = {
        "drawn": (SECRET, GENERATED),
        "photo": (restored, EDITED),
        "photo-twice": ({**restored, "source": restored}, EDITED),
        "drawn-restored": ({**restored, "source": SECRET}, GENERATED),
        "drawn-restored-twice": ({**restored, "source": {**restored, "source": SECRET}}, GENERATED),
        "only-enlarged": ({**restored, "ai_generated": ""}, None),
        "odd": ({"request": 3, "source": 4}, GENERATED),
    }
    for name, (metadata, expected) in contents.items():
        save_png(tmp_path / f"{name}.png", map_picture(8, 8), metadata)
        assert source_type(tmp_path / f"{name}.png") == expected, name
    map_picture(8, 8).save(tmp_path / "other.png")
    (tmp_path / "damaged.png").write_bytes(b"no picture")
    for name in ("other.png", "damaged.png", "gone.png", "photo.jpg"):
        assert source_type(tmp_path / name) == GENERATED
