"""Captions written by a captioner: loaded once, asked about every photo, and done with before anything else loads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui.dataset.caption import backdrop, caption_for, framing, light
from headshot_ui.dataset.caption_policy import allowed_words

if TYPE_CHECKING:
    from PIL import Image

    from headshot_ui.dataset.types import Captioner, Face, PreparedPhoto
    from headshot_ui.jobs import Reporter

STAGE = "Describing the photos"

OpenCaptioner = Callable[[], AbstractContextManager["Captioner"]]


def describe(
    open_captioner: OpenCaptioner,
    folder: Path,
    photos: Sequence[PreparedPhoto],
    trigger: str,
    class_word: str,
    report: Reporter,
) -> dict[str, str]:
    """Crop → caption of photos whose crops lie in ``folder``: trigger and class word, then what may be said.

    Where the description is silent about framing, light or background, what is measured of them is added; where nothing
    of it may be said, it is the fixed phrase. Raises what loading and ``report`` raise.
    """
    from PIL import Image

    captions: dict[str, str] = {}
    if not photos:
        return captions
    report(stage=STAGE, step=0, total=len(photos))
    with open_captioner() as captioner:
        for number, photo in enumerate(photos, start=1):
            assert photo.face is not None
            with Image.open(folder / photo.crop) as file:
                image = file.convert("RGB")
            words = _completed(allowed_words(captioner.describe(image)), image, photo.face)
            captions[photo.crop] = caption_for(trigger, class_word, image, photo.face, words)
            report(stage=STAGE, step=number, total=len(photos))
    return captions


def _completed(words: str, image: Image.Image, face: Face) -> str:
    """With what is measured, where ``words`` do not speak of it; nothing stays nothing."""
    if not words:
        return ""
    measured = (
        (("close-up", "upper body", "head and shoulders"), framing(image, face)),
        (("light",), light(image, face)),
        (("background", "backdrop", "behind", "in front of"), backdrop(image)),
    )
    more = (said for names, said in measured if said and not any(name in words for name in names))
    return ", ".join([words, *more])
