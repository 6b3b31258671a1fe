"""Which settings of the page mean anything to the base model that is chosen."""

from __future__ import annotations

from headshot_ui import families
from headshot_ui.errors import ModelError
from headshot_ui.families.protocol import Abilities, BaseInfo


def abilities_of(info: BaseInfo | None) -> Abilities:
    """All of them where no base is chosen, or its files do not say: that is told when it is used."""
    try:
        return Abilities() if info is None else families.abilities(info)
    except ModelError:
        return Abilities()
