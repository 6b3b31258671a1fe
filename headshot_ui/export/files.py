"""Pictures as files for others: what is written into them, and nothing else.

Nothing that came with the source is taken over: no prompt, no name, no place, no camera. A disclosed picture says
that it is AI-generated where other programs look: as IPTC ``DigitalSourceType`` in an XMP packet (IPTC Photo Metadata
Standard; the terms are those of https://cv.iptc.org/newscodes/digitalsourcetype) and in two EXIF entries.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.sax.saxutils import escape

from headshot_ui import __version__
from headshot_ui.errors import StoreError
from headshot_ui.store import atomic_file, read_png_metadata

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = {"jpeg": ".jpg", "png": ".png", "webp": ".webp"}
PROGRAM = f"headshot_ui {__version__}"

_SOURCE_TYPES = "http://cv.iptc.org/newscodes/digitalsourcetype/"
GENERATED = _SOURCE_TYPES + "trainedAlgorithmicMedia"  # made by a trained model
EDITED = _SOURCE_TYPES + "compositeWithTrainedAlgorithmicMedia"  # a photograph of which a model redrew parts
DESCRIPTIONS = {
    GENERATED: "AI-generated picture, made with headshot_ui.",
    EDITED: "Photograph of which parts were redrawn by AI, made with headshot_ui.",
}

_IMAGE_DESCRIPTION, _SOFTWARE, _X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 0x010E, 0x0131, 0x011A, 0x011B, 0x0128
_INCH = 2
_XMP_KEY = "XML:com.adobe.xmp"
#: How many restorations in a row are followed back to the first picture.
_DEEPEST = 20

_XMP = """<?xpacket begin="\N{ZERO WIDTH NO-BREAK SPACE}" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about=""
    xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
    xmlns:dc="http://purl.org/dc/elements/1.1/"
    xmlns:xmp="http://ns.adobe.com/xap/1.0/">
   <Iptc4xmpExt:DigitalSourceType>{source_type}</Iptc4xmpExt:DigitalSourceType>
   <xmp:CreatorTool>{program}</xmp:CreatorTool>
   <dc:description><rdf:Alt><rdf:li xml:lang="x-default">{description}</rdf:li></rdf:Alt></dc:description>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def source_type(path: Path) -> str | None:
    """What a picture is, by what this program wrote into it: GENERATED, EDITED when a photograph was restored, or None
    when that photograph was only made larger by plain arithmetic.

    A picture that says nothing counts as generated: for those the mark is asked for, and no other could be known.
    """
    metadata: Any = {}
    try:
        if path.suffix.lower() == ".png":
            metadata = read_png_metadata(path)
    except StoreError:  # another program's PNG
        return GENERATED
    networks = metadata.get("ai_generated", True)
    for _ in range(_DEEPEST):
        request = metadata.get("request") if isinstance(metadata, dict) else None
        if not isinstance(request, dict) or "fidelity_weight" not in request:  # not restored, but drawn
            return GENERATED
        metadata = metadata.get("source")
        if not metadata:  # what was restored said nothing about itself: a photograph
            break
    return EDITED if networks else None


def save_picture(path: Path, image: Image.Image, file_type: str, quality: int, dpi: int, mark: str | None) -> None:
    """Write an RGB picture in sRGB whole or not at all. ``mark`` is GENERATED, EDITED or None. Raises StoreError.

    ``quality`` is 1 to 100 (JPEG and WebP); ``dpi`` 0 writes none.
    """
    bare = image.convert("RGB")
    bare.info = {}
    options: dict[str, Any] = {"icc_profile": srgb_profile()}
    xmp = xmp_packet(mark) if mark else b""
    exif = _exif(mark, dpi if file_type == "webp" else 0)
    if exif:
        options["exif"] = exif
    if dpi and file_type != "webp":
        options["dpi"] = (dpi, dpi)
    if file_type == "png":
        options["pnginfo"] = _png_text(xmp)
    elif xmp:
        options["xmp"] = xmp
    if file_type == "jpeg":
        options |= {"quality": quality, "optimize": True, "progressive": True}
        if quality >= 90:  # full colour resolution: red ties and lips keep their edges
            options["subsampling"] = 0
    elif file_type == "webp":
        options |= {"quality": quality, "method": 5}
    with atomic_file(path) as temporary:
        bare.save(temporary, format=file_type.upper(), **options)


def xmp_packet(mark: str) -> bytes:
    """The XMP that says what the picture is; UTF-8."""
    text = _XMP.format(source_type=escape(mark), program=escape(PROGRAM), description=escape(DESCRIPTIONS[mark]))
    return text.encode()


def _exif(mark: str | None, dpi: int) -> bytes:
    from PIL import Image

    exif = Image.Exif()
    if mark:
        exif[_IMAGE_DESCRIPTION] = DESCRIPTIONS[mark]
        exif[_SOFTWARE] = PROGRAM
    if dpi:  # WebP has no other place for it
        exif[_X_RESOLUTION] = exif[_Y_RESOLUTION] = float(dpi)
        exif[_RESOLUTION_UNIT] = _INCH
    return exif.tobytes() if len(exif) else b""


def _png_text(xmp: bytes) -> Any:
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    if xmp:
        text.add_itxt(_XMP_KEY, xmp.decode())
    return text


@cache
def srgb_profile() -> bytes:
    """An sRGB colour profile, the same bytes every time: the moment it was made is replaced by a fixed one."""
    from PIL import ImageCms

    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    made = b"".join(number.to_bytes(2, "big") for number in (2000, 1, 1, 0, 0, 0))
    profile[24:36] = made  # dateTimeNumber in the ICC header
    return bytes(profile)
