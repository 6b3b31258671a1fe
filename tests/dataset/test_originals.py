import io

import numpy as np
import pytest
from PIL import Image

from headshot_ui.dataset.decode import decode
from headshot_ui.dataset.originals import bare_jpeg, clean_copy, safe_stem
from tests.dataset.drawn_faces import jpeg, make_photo

SECRET = b"52.5200N 13.4050E"


def with_notes(orientation: int = 1, **options) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010E] = SECRET.decode()
    data = jpeg(make_photo(1, size=(120, 160), height=60), exif=exif, comment=SECRET, **options)
    assert data.count(SECRET) >= 2
    return data


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
@pytest.mark.parametrize("orientation", [1, 6, 3])
def test_jpegs_lose_their_notes_and_nothing_else(orientation, options):
    data = with_notes(orientation, **options)
    bare = bare_jpeg(data)
    assert SECRET not in bare and len(bare) < len(data)
    assert np.array_equal(np.asarray(decode(bare)), np.asarray(decode(data)))
    assert (Image.open(io.BytesIO(bare)).getexif().get(0x0112, 1)) == orientation


def test_what_lies_behind_the_picture_goes_too():
    bare = bare_jpeg(with_notes() + b"a film of the moment " + SECRET)
    assert SECRET not in bare and bare.endswith(b"\xff\xd9")


def test_the_colour_profile_stays():
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    bare = bare_jpeg(jpeg(make_photo(1, size=(64, 64), height=0), icc_profile=profile))
    assert Image.open(io.BytesIO(bare)).info["icc_profile"] == profile


def test_other_formats_are_saved_anew_without_notes():
    photo = make_photo(1, size=(120, 160), height=60)
    exif = Image.Exif()
    exif[0x010E] = SECRET.decode()
    stream = io.BytesIO()
    photo.save(stream, "PNG", exif=exif)
    suffix, data = clean_copy(stream.getvalue(), decode(stream.getvalue()))
    assert suffix == ".png" and SECRET not in data
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), np.asarray(photo))


def test_a_jpeg_that_cannot_be_followed_is_saved_anew():
    photo = make_photo(1, size=(64, 64), height=0)
    suffix, data = clean_copy(b"\xff\xd8\xff\xe0\0\x04??xx" + SECRET, photo)
    assert suffix == ".jpg" and SECRET not in data and Image.open(io.BytesIO(data)).size == (64, 64)


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("a/b/IMG 1.jpg", "IMG 1"),
        ("写真.heic", "写真"),
        ("CON.jpg", "_CON"),
        ('a<b>:".png', "a_b___"),
        ("...jpg", "photo"),
    ],
)
def test_names_suit_every_system(name, stem):
    assert safe_stem(name) == stem
    assert len(safe_stem("写" * 300 + ".jpg").encode()) <= 80
