"""Works to measure, found by looking: every module here with a ``WORK`` is one. Looking them up loads no torch."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable
from functools import cache
from types import ModuleType

from headshot_ui.bench.work import USUAL_MODEL, Work


def collect_works(modules: Iterable[ModuleType]) -> dict[str, dict[str, Work]]:
    """The works of ``modules``: model → name → work. Raises ValueError when two of a model share a name."""
    found: dict[str, dict[str, Work]] = {}
    for module in modules:
        work: Work | None = getattr(module, "WORK", None)
        if work is None:
            continue
        others = found.setdefault(work.model, {})
        if work.name in others:
            raise ValueError(f"two works are called {work.name}")
        others[work.name] = work
    return {model: dict(sorted(works.items())) for model, works in sorted(found.items())}


@cache
def works_by_model() -> dict[str, dict[str, Work]]:
    """Every work: model → name → work."""
    names = [found.name for found in pkgutil.iter_modules(__path__)]
    return collect_works(importlib.import_module(f"{__name__}.{name}") for name in names)


def all_works(model: str = USUAL_MODEL) -> dict[str, Work]:
    """Every work of a model by its name; none of a model that is not known."""
    return works_by_model().get(model, {})
