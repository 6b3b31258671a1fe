import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from headshot_ui.dataset import decode as module
from headshot_ui.dataset.decode import WORKING_PIXELS, decode
from headshot_ui.errors import PhotoError


def corners() -> Image.Image:
    """A picture whose four quarters differ, so that every turn and mirror image shows."""
    picture = Image.new("RGB", (64, 48))
    for box, colour in zip(((0, 0), (32, 0), (0, 24), (32, 24)), ("red", "lime", "blue", "white"), strict=True):
        picture.paste(colour, (*box, box[0] + 32, box[1] + 24))
    return picture


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def close(a: Image.Image, b: Image.Image, tolerance: float = 12) -> bool:
    if a.size != b.size or a.mode != "RGB":
        return False
    return float(np.abs(np.asarray(a, float) - np.asarray(b.convert("RGB"), float)).mean()) < tolerance


# What a camera stores for each orientation, so that turning it back gives the picture.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_photos_are_turned_upright(kind, orientation):
    turn = STORED[orientation]
    lying = corners() if turn is None else corners().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert close(decode(encoded(lying, kind, exif=exif)), corners())


def test_heic_is_read_upright_once():
    pillow_heif = pytest.importorskip("pillow_heif")
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    lying = corners().transpose(Image.Transpose.ROTATE_90)
    pillow_heif.from_pillow(lying).save(stream, quality=95, exif=exif.tobytes())
    assert module.is_heif(stream.getvalue())
    assert close(decode(stream.getvalue()), corners())


def test_transparent_parts_become_white():
    picture = Image.new("RGBA", (20, 20), (255, 0, 0, 0))
    picture.paste((0, 0, 255, 255), (0, 0, 10, 20))
    out = decode(encoded(picture, "PNG"))
    assert out.getpixel((15, 10)) == (255, 255, 255) and out.getpixel((5, 10)) == (0, 0, 255)


def test_palette_with_a_transparent_colour():
    picture = Image.new("P", (8, 8), 1)
    picture.putpalette([255, 0, 0, 0, 255, 0] + [0] * 762)
    picture.putpixel((0, 0), 0)
    out = decode(encoded(picture, "PNG", transparency=0))
    assert out.getpixel((0, 0)) == (255, 255, 255) and out.getpixel((4, 4)) == (0, 255, 0)


def test_sixteen_bit_grey_keeps_its_range():
    values = np.linspace(0, 65535, 256 * 4).reshape(4, 256).astype(np.uint16)
    out = np.asarray(decode(encoded(Image.fromarray(values), "PNG")), float)
    assert np.abs(out[..., 0] - values / 257).max() <= 1


def test_cmyk_jpeg():
    out = decode(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG"))
    red, green, blue = out.getpixel((8, 8))
    assert red > 200 and green < 60 and blue < 60


def test_colours_go_through_the_profile():
    # A profile in which red and green are exchanged: reading it right turns red into green.
    out = decode(encoded(Image.new("RGB", (16, 16), (255, 0, 0)), "PNG", icc_profile=swapped_profile()))
    red, green, _ = out.getpixel((8, 8))
    assert green > 240 and red < 20


def test_damaged_profile_is_ignored():
    out = decode(encoded(Image.new("RGB", (16, 16), (200, 30, 20)), "PNG", icc_profile=b"no profile at all"))
    assert out.getpixel((8, 8)) == (200, 30, 20)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_moving_pictures_give_their_first_frame(kind):
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert decode(data).getpixel((3, 3)) == (255, 0, 0)


def test_nothing_hidden_is_handed_on():
    exif = Image.Exif()
    exif[0x010F] = "camera maker"
    assert decode(encoded(corners(), "JPEG", exif=exif, comment=b"secret")).info == {}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"just a text file\n" * 50, "not a picture"),
        (b"\xff\xd8\xff" + b"rubbish" * 40, "damaged"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "not a picture"),
        (b"\0\0\0\x20ftypheic" + b"\0" * 40, "damaged"),
    ],
)
def test_what_is_no_picture_is_refused_in_one_sentence(data, said):
    with pytest.raises(PhotoError) as caught:
        decode(data)
    assert said in str(caught.value) and ":" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_truncated_files_are_refused(kind):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    with pytest.raises(PhotoError, match="damaged"):
        decode(data[: len(data) // 2])


def test_a_200_megapixel_jpeg_is_decoded_reduced(monkeypatch):
    data = encoded(Image.new("L", (16320, 12240), 90), "JPEG", quality=20)
    loaded = []
    real = Image.Image.convert
    monkeypatch.setattr(
        Image.Image, "convert", lambda self, *a, **k: (loaded.append(self.size), real(self, *a, **k))[1]
    )
    out = decode(data)
    assert out.width * out.height <= WORKING_PIXELS and out.size == (4080, 3060)
    assert loaded and max(w * h for w, h in loaded) <= WORKING_PIXELS  # never there in full


def test_a_200_megapixel_png_is_refused_before_decoding():
    small = encoded(Image.new("L", (16, 16)), "PNG")
    head = b"IHDR" + struct.pack(">II", 16320, 12240) + small[24:29]
    data = small[:12] + head + struct.pack(">I", zlib.crc32(head)) + small[33:]
    with pytest.raises(PhotoError, match="too many"):
        decode(data)


def test_a_progressive_jpeg_gets_no_discount(monkeypatch):
    monkeypatch.setattr(module, "MAX_PIXELS", 3000)
    with pytest.raises(PhotoError, match="too many"):
        decode(encoded(corners(), "JPEG", progressive=True))
    decode(encoded(corners(), "JPEG"))


def test_other_formats_are_shrunk_to_the_working_size(monkeypatch):
    monkeypatch.setattr(module, "WORKING_PIXELS", 1000)
    out = decode(encoded(corners(), "PNG"))
    assert out.width * out.height <= 1000 and abs(out.width / out.height - 4 / 3) < 0.05


def test_damaged_exif_costs_nothing():
    data = encoded(corners(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff\x10\x00")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert close(decode(data), corners())


def swapped_profile() -> bytes:
    """An ICC matrix profile like sRGB (gamma 2.2) with its red and green primaries exchanged."""

    def xyz(x: float, y: float, z: float) -> bytes:
        return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(v * 65536) for v in (x, y, z)))

    text = b"swapped"
    red, green = xyz(0.4360, 0.2225, 0.0139), xyz(0.3851, 0.7169, 0.0971)
    curve = b"curv\0\0\0\0" + struct.pack(">IH", 1, round(2.2 * 256)) + b"\0\0"
    described = b"desc\0\0\0\0" + struct.pack(">I", len(text) + 1) + text + b"\0" * 80
    tags = {
        b"desc": described + b"\0" * (-len(described) % 4),
        b"wtpt": xyz(0.9642, 1.0, 0.8249),
        b"rXYZ": green,
        b"gXYZ": red,
        b"bXYZ": xyz(0.1431, 0.0606, 0.7141),
        b"rTRC": curve,
        b"gTRC": curve,
        b"bTRC": curve,
    }
    at = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, data in tags.items():
        table += name + struct.pack(">II", at + len(body), len(data))
        body += data
    head = struct.pack(">I4sI4s4s4s", at + len(body), b"none", 0x02100000, b"mntr", b"RGB ", b"XYZ ")
    head += b"\0" * 12 + b"acsp" + b"\0" * 28 + struct.pack(">3i", 63190, 65536, 54061)
    return head.ljust(128, b"\0") + table + body
