"""Which full-size models of random weights can be made, found by looking: every ``random_*`` module with a ``SET``.

Looking them up loads no torch.
"""

from __future__ import annotations

import importlib
import pkgutil
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from headshot_ui import prove
from headshot_ui.errors import ModelError
from headshot_ui.memory import free_ram_bytes, within_ram_limit
from headshot_ui.settings import Settings
from headshot_ui.store import check_free_space, readable_bytes

#: (models folder, "full" or "tiny", device or ``random_parts.OUTLINE``, what hears of each part that is made next)
Make = Callable[[Path, str, str, Callable[[str], None]], object]


@dataclass(frozen=True)
class RandomSet:
    """Models of the published shapes of one family."""

    base_id: str
    ids: frozenset[str]  # of base and refiners
    full_bytes: int  # of disk, at full size
    ram_bytes: int  # of main memory while they are made, at full size
    make: Make
    replaces: frozenset[str] = frozenset()  # folders below the models folder that it makes anew, beside its models

    def check_room(self, place: Path, settings: Settings) -> None:
        """Raise StoreError where the disk of ``place`` is too small for the full set, ModelError where memory is."""
        check_free_space(place, self.full_bytes)
        free = within_ram_limit(free_ram_bytes(), settings)
        if free < self.ram_bytes:
            raise ModelError(
                f"Making these random weights takes {readable_bytes(self.ram_bytes)} of main memory, but only "
                f"{readable_bytes(free)} are free: close other programs."
            )


@cache
def all_sets() -> dict[str, RandomSet]:
    """By the id of the base."""
    names = sorted(found.name for found in pkgutil.iter_modules(prove.__path__) if found.name.startswith("random_"))
    modules = (importlib.import_module(f"{prove.__name__}.{name}") for name in names)
    sets = (getattr(module, "SET", None) for module in modules)
    return {one.base_id: one for one in sets if isinstance(one, RandomSet)}


def random_ids() -> frozenset[str]:
    """Of all models that draw noise."""
    return frozenset().union(*(one.ids for one in all_sets().values()))


def linked_models(source: Path, target: Path, replaced: frozenset[str]) -> None:
    """What lies in the models folder ``source`` again in ``target``, without its large base models.

    Random ones take their place, as that of the folders ``replaced``, and must never be written through a link. The
    demo is copied, because it is looked for by walking, which passes links by; the rest is linked, or copied where the
    system allows no links.
    """
    target.mkdir(parents=True, exist_ok=True)
    for entry in sorted(source.iterdir()) if source.is_dir() else ():
        if entry.name in replaced:
            continue
        if entry.name == "demo":
            shutil.copytree(entry, target / entry.name)
        elif not entry.is_dir():
            shutil.copy(entry, target)
        elif not any(entry.rglob("*.json")):  # networks for faces; a base model or refiner brings its configs
            _link(entry, target / entry.name)


def _link(entry: Path, place: Path) -> None:
    try:
        place.symlink_to(entry.absolute(), target_is_directory=True)
    except OSError:
        shutil.copytree(entry, place)
