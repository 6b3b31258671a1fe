"""From what a person typed and dropped to a request."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from headshot_ui.errors import SpecError
from headshot_ui.specs import GenerateSpec, HeadshotsSpec, PrepareSpec, TrainSpec

#: Pictures of each look: enough to choose from.
PICTURES_PER_LOOK = 2


def folder_name(name: str) -> str:
    """“Anna Müller” → “anna-muller”: what may be a folder on every system. "" when no letter a-z or digit is left."""
    plain = unicodedata.normalize("NFKD", name.replace("ß", "ss")).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9_]+", "-", plain).strip("-_")[:40].strip("-_")


def headshots_request(name: str, photos: Sequence[str], base: str) -> HeadshotsSpec:
    """Everything at its default. Raises SpecError whose ``field`` is "person", "photos" or "base"."""
    person = folder_name(name)
    if not person:
        raise SpecError("person", "Give the person a name with at least one letter from a to z or a digit.")
    if not base:
        raise SpecError("base", "No base model was found: get a complete copy of the program, then start it again.")
    return HeadshotsSpec(
        PrepareSpec(person, tuple(photos), base),
        TrainSpec(person, base),
        GenerateSpec(person, base, count=PICTURES_PER_LOOK, lora="latest"),
    )
