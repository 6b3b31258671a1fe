"""From what a person typed and dropped to a request."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from headshot_ui.errors import SpecError
from headshot_ui.specs import PHRASE, GenerateSpec, HeadshotsSpec, PrepareSpec, TrainSpec

#: Pictures of each look: enough to choose from.
PICTURES_PER_LOOK = 2


def folder_name(name: str) -> str:
    """“Anna Müller” → “anna-muller”: what may be a folder on every system. "" when no letter a-z or digit is left."""
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss")).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_")[:40].strip("-_")


def person_name(name: str) -> str:
    """The folder name of what was typed. Raises SpecError for "person" when there is none."""
    person = folder_name(name)
    if not person:
        raise SpecError("person", "Give the person a name with at least one letter from a to z or a digit.")
    return person


def prepare_request(name: str, photos: Sequence[str], base: str, captions: str = PHRASE) -> PrepareSpec:
    """The photos to check; ``captions`` is one of CAPTIONS.

    Raises SpecError whose ``field`` is "person", "photos" or "base".
    """
    person = person_name(name)
    if not base:
        raise SpecError("base", "No base model was found: get a complete copy of the program, then start it again.")
    return PrepareSpec(person, tuple(photos), base, captions=None if captions == PHRASE else captions)


def headshots_request(name: str, photos: Sequence[str], base: str, captions: str = PHRASE) -> HeadshotsSpec:
    """Everything else at its default. Raises SpecError whose ``field`` is "person", "photos" or "base"."""
    prepare = prepare_request(name, photos, base, captions)
    return HeadshotsSpec(
        prepare,
        TrainSpec(prepare.person, base),
        GenerateSpec(prepare.person, base, count=PICTURES_PER_LOOK, lora="latest"),
    )
