"""Bytes of a picture file → upright 8-bit RGB, whatever the phone made of it.

Sizes are checked before pixels are decoded. JPEGs are decoded at a half, a quarter or an eighth of their size
when they are larger than any face crop needs, so that a 200-megapixel photo takes no more memory than others;
formats that cannot be decoded reduced are refused above ``MAX_PIXELS``.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from headshot_ui.errors import PhotoError

if TYPE_CHECKING:
    from PIL import Image

MAX_FILE_BYTES = 300 * 2**20
MAX_PIXELS = 100_000_000  # decoded whole: 300 to 400 MB for a moment
MAX_REDUCIBLE_PIXELS = 600_000_000  # JPEGs that are decoded line by line at a fraction of their size
WORKING_PIXELS = 40_000_000  # what is handed on at most

#: Formats tried besides JPEG and HEIC. A list of our own, because Pillow's includes some that start other programs.
FORMATS = ("PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF", "JPEG2000", "PPM", "MPO")
_HEIF_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"})

_log = logging.getLogger(__name__)


def is_heif(data: bytes) -> bool:
    """Whether these bytes begin like an iPhone's HEIC file."""
    return data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS


def check_file_size(size: int) -> None:
    """Raise PhotoError for more than MAX_FILE_BYTES."""
    if size > MAX_FILE_BYTES:
        limit = MAX_FILE_BYTES // 2**20
        raise PhotoError(f"The file is larger than {limit} MB: save the photo as a JPEG and add that.")


def decode(data: bytes) -> Image.Image:
    """An upright RGB picture in sRGB without any metadata, of at most ``WORKING_PIXELS``.

    The first frame of a moving picture; transparency is laid on white. Raises PhotoError with one sentence.
    """
    with without_warnings():
        return decode_quietly(data)


def decode_quietly(data: bytes) -> Image.Image:
    """``decode`` in a thread: whoever waits for it keeps the libraries quiet (``without_warnings``)."""
    check_file_size(len(data))
    return _decoded(_opened(data))


@contextmanager
def without_warnings() -> Iterator[None]:
    """No warnings of the libraries: sizes and damage are judged here, in words for people.

    That is a setting of the whole process. Two threads that change and restore it in turn would leave it changed.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _decoded(image: Image.Image) -> Image.Image:
    try:
        _reduce_while_decoding(image)
        image.load()
        upright = _upright(image)
        rgb = _shrunk(to_srgb(upright))
    except MemoryError as error:
        raise PhotoError("The picture is too large for this machine's memory: save it smaller and add that.") from error
    except PhotoError:
        raise
    except Exception as error:  # decoders of damaged files raise nearly anything
        _log.info("a picture could not be decoded", exc_info=True)
        raise PhotoError("The picture is cut off or damaged: copy it again from the phone or camera.") from error
    rgb.info = {}
    return rgb


def _opened(data: bytes) -> Image.Image:
    """The picture with its header read and nothing decoded."""
    from PIL import Image, UnidentifiedImageError
    from PIL.JpegImagePlugin import JpegImageFile

    if not data:
        raise PhotoError("The file is empty: copy it again from the phone or camera.")
    stream = io.BytesIO(data)
    try:
        if data.startswith(b"\xff\xd8\xff"):
            # Not by Image.open: that refuses every file above 179 megapixels, and this one can be decoded reduced.
            return JpegImageFile(stream)
        if is_heif(data):
            return _opened_heif(stream)
        Image.init()
        known = [name for name in FORMATS if name in Image.OPEN]
        return Image.open(stream, formats=known)
    except Image.DecompressionBombError as error:
        raise _too_large() from error
    except UnidentifiedImageError as error:
        raise PhotoError("This is not a picture, whatever its name says: add the photo as JPEG or PNG.") from error
    except PhotoError:
        raise
    except Exception as error:
        _log.info("a picture could not be opened", exc_info=True)
        raise PhotoError("The picture is damaged: copy it again from the phone or camera.") from error


def _opened_heif(stream: io.BytesIO) -> Image.Image:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise PhotoError("HEIC photos need the package pillow-heif: run the set-up again, or add a JPEG.") from error
    picture: Image.Image = HeifImageFile(stream)
    return picture


def _too_large(megapixels: int | None = None) -> PhotoError:
    size = f"{megapixels} megapixels" if megapixels else "far more pixels than any photo"
    return PhotoError(f"The picture has {size}, too many to open here: add a smaller copy or a plain JPEG.")


def _reduce_while_decoding(image: Image.Image) -> None:
    """Refuse a picture that is too large, or have a JPEG decoded at a fraction of its size."""
    pixels = image.width * image.height
    # A progressive JPEG is held in memory whole before its first line comes out, so it gets no discount.
    reducible = image.format in ("JPEG", "MPO") and not image.info.get("progressive")
    if pixels > (MAX_REDUCIBLE_PIXELS if reducible else MAX_PIXELS):
        raise _too_large(round(pixels / 1e6))
    divisor = next((n for n in (1, 2, 4, 8) if pixels <= WORKING_PIXELS * n * n), 8)
    if divisor > 1:
        image.draft(None, (image.width // divisor, image.height // divisor))


def _upright(image: Image.Image) -> Image.Image:
    """Turned as the camera was held; left as it lies where the camera's note is unreadable."""
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image) or image
    except Exception:  # a damaged EXIF block must not cost the photo
        _log.info("the EXIF orientation could not be read", exc_info=True)
        return image


def to_srgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode and colour profile to 8-bit sRGB; transparency on white."""
    from PIL import Image

    profile = image.info.get("icc_profile")
    if image.mode in ("I;16", "I;16L", "I;16B", "I", "F"):
        return _eight_bits(image).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        image = Image.new("RGB", rgba.size, "white")
        image.paste(rgba, mask=rgba.getchannel("A"))
    return _through_profile(image, profile) if profile else image.convert("RGB")


def _through_profile(image: Image.Image, profile: bytes) -> Image.Image:
    """Colours of a phone's wide-gamut or a printer's CMYK profile as sRGB; a damaged profile is ignored."""
    from PIL import Image, ImageCms

    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        wanted = {"RGB": "RGB", "CMYK": "CMYK", "GRAY": "L"}.get(space)
        if wanted is None or "sRGB" in ImageCms.getProfileDescription(source):
            return image.convert("RGB")
        if image.mode != wanted:
            if "CMYK" in (image.mode, wanted):
                return image.convert("RGB")
            image = image.convert(wanted)
        target = ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        _log.info("a colour profile could not be used", exc_info=True)
        return image.convert("RGB")
    return converted if isinstance(converted, Image.Image) else image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit, 32-bit and floating grey as 8-bit grey, by the range that its format really uses."""
    import numpy as np
    from PIL import Image

    values = np.asarray(image).astype(np.float32)
    top = float(values.max(initial=0.0))
    from_one = image.mode == "F" and top <= 1.0
    scale = 255.0 if from_one else 1.0 if top <= 255 else 255.0 / 65535.0
    return Image.fromarray(np.clip(np.nan_to_num(values * scale), 0, 255).round().astype(np.uint8))


def _shrunk(image: Image.Image) -> Image.Image:
    from PIL import Image

    pixels = image.width * image.height
    if pixels <= WORKING_PIXELS:
        return image
    factor = (WORKING_PIXELS / pixels) ** 0.5
    size = (max(1, int(image.width * factor)), max(1, int(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
