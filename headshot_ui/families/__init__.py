"""Families of base models, found by looking: every module here with a ``FAMILY`` is one.

Importing this package or a family loads no torch; only ``load_base`` does.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import base_not_found

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo, Family, LoadedBase
    from headshot_ui.settings import Settings


def collect_families(modules: Iterable[ModuleType]) -> dict[str, Family]:
    """The families of ``modules`` by id. Raises ValueError when two share an id."""
    found: dict[str, tuple[Family, str]] = {}
    for module in modules:
        family = getattr(module, "FAMILY", None)
        if family is None:
            continue
        if family.id in found:
            raise ValueError(f"{module.__name__} and {found[family.id][1]} both offer the family “{family.id}”")
        found[family.id] = (family, module.__name__)
    return {family_id: family for family_id, (family, _) in sorted(found.items())}


@cache
def all_families() -> dict[str, Family]:
    """Every family by its id."""
    names = [found.name for found in pkgutil.iter_modules(__path__) if not found.ispkg]
    return collect_families(importlib.import_module(f"{__name__}.{name}") for name in names)


def all_bases(settings: Settings) -> tuple[BaseInfo, ...]:
    """Every base model under ``settings.models_dir``, demo models first, then by title."""
    bases = [info for family in all_families().values() for info in family.bases(settings)]
    return tuple(sorted(bases, key=lambda info: (not info.demo, info.title, info.id)))


def find_base(base_id: str, settings: Settings) -> BaseInfo:
    """The base model of that id. Raises ModelError, listing what there is."""
    bases = all_bases(settings)
    for info in bases:
        if info.id == base_id:
            return info
    raise base_not_found(base_id, [info.id for info in bases], settings)


def load_base(info: BaseInfo, settings: Settings) -> LoadedBase:
    """Read a base model into memory. Raises ModelError naming the file that is missing or damaged."""
    family = all_families().get(info.family)
    if family is None:
        known = ", ".join(all_families())
        raise ModelError(f"“{info.title}” is of the family “{info.family}”, which is unknown; known are: {known}.")
    return family.load(info, settings)
