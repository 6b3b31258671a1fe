"""What the files of a package offer, found by looking into each: adding one means adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from typing import Any


def offered(path: Iterable[str], package: str, attribute: str, called: str) -> tuple[Any, ...]:
    """The ``attribute`` of every module of a package that has one, by its id.

    ``path`` and ``package`` are its ``__path__`` and ``__name__``; ``called`` is the plural for people. Raises
    ValueError when two share an id.
    """
    found: dict[str, Any] = {}
    for module in pkgutil.iter_modules(path):
        one = getattr(importlib.import_module(f"{package}.{module.name}"), attribute, None)
        if one is None:
            continue
        if one.id in found:
            raise ValueError(f"two {called} are called {one.id}")
        found[one.id] = one
    return tuple(found[name] for name in sorted(found))
