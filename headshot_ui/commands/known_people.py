"""Is a name that was typed one of the people there are? Asked before a folder is made for it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from headshot_ui.errors import SpecError

MOST_NAMES = 8  # listed when a name is unknown


def check_known(person: str, people: Sequence[str], must_be: bool) -> None:
    """Raise SpecError for a name that seems mistyped, with those that are like it.

    With ``must_be`` any unknown name is refused. Where nobody is known yet, every name is a new one.
    """
    if person in people or not people:
        return
    alike = difflib.get_close_matches(person, people, n=3)
    if alike:
        either = " or ".join(f"“{name}”" for name in alike)
        raise SpecError("person", f"There is nobody called “{person}”: did you mean {either}?")
    if must_be:
        some = ", ".join([*people[:MOST_NAMES], *(["…"] if len(people) > MOST_NAMES else [])])
        raise SpecError("person", f"There is nobody called “{person}”: prepare photos first, or choose from {some}.")
