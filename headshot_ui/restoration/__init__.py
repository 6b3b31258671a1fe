"""Face restorers, found by looking: every module here with a ``RESTORER`` is one. Networks lie in files ``*_net.py``.

Importing this package or looking the restorers up loads no torch; only ``load`` of one of them does.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from collections.abc import Iterable
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING

from headshot_ui.errors import ModelError

if TYPE_CHECKING:
    from headshot_ui.restoration.protocol import Restorer
    from headshot_ui.settings import Settings

_log = logging.getLogger(__name__)


def collect_restorers(modules: Iterable[ModuleType]) -> dict[str, Restorer]:
    """The restorers of ``modules`` by id, the demo's last. Raises ValueError when two share an id."""
    found: dict[str, Restorer] = {}
    for module in modules:
        restorer: Restorer | None = getattr(module, "RESTORER", None)
        if restorer is None:
            continue
        if restorer.info.id in found:
            raise ValueError(f"two restorers are called {restorer.info.id}")
        found[restorer.info.id] = restorer
    return dict(sorted(found.items(), key=lambda item: (item[1].info.demo, item[0])))


@cache
def all_restorers() -> dict[str, Restorer]:
    """Every restorer by its id, installed or not, those for any face before the demo's."""
    names = [found.name for found in pkgutil.iter_modules(__path__) if not found.name.endswith("_net")]
    return collect_restorers(importlib.import_module(f"{__name__}.{name}") for name in names)


def choose_restorer(restorer_id: str | None, settings: Settings) -> Restorer:
    """The restorer of that id; for None the first that can be used, the demo's after all others.

    Raises ModelError, with one sentence on what to do, when there is none of that id or it cannot be used.
    """
    restorers = all_restorers()
    if restorer_id is None:
        reasons = {name: restorer.missing(settings) for name, restorer in restorers.items()}
        for name, reason in reasons.items():
            if not reason:
                return restorers[name]
            _log.info("The restorer %s is passed over: %s", name, reason)
        raise ModelError(list(reasons.values())[-1] if reasons else "There is no restorer: get the program again.")
    if restorer_id not in restorers:
        raise ModelError(f"There is no restorer “{restorer_id}”; choose one of {', '.join(restorers)}.")
    reason = restorers[restorer_id].missing(settings)
    if reason:
        raise ModelError(reason)
    return restorers[restorer_id]
