"""Measures one work after the other; what one of them meets keeps none of the others from being measured."""

from __future__ import annotations

import gc
import logging
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from headshot_ui.bench.rows import Row
from headshot_ui.bench.setting import BenchSetting
from headshot_ui.bench.work import Work
from headshot_ui.logs import explain
from headshot_ui.memory import give_back

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """All that came of it."""

    rows: tuple[Row, ...]
    failures: tuple[str, ...]  # one sentence for each work that could not be measured to its end


def measure_works(
    works: Iterable[Work], setting_of: Callable[[Work], BenchSetting], told: Callable[[Row], None]
) -> Measured:
    """The rows of all ``works``, each also given to ``told`` when it is there. Raises nothing of what a work raises.

    Every work has a folder of its own in the setting's and begins with memory given back. Rows of tiny models are
    not compared with their goals, whatever the work says.
    """
    rows: list[Row] = []
    failures = []
    for work in works:
        setting = setting_of(work)
        setting.say(f"{work.title} …")
        try:
            for row in _measured(work, setting):
                rows.append(row)
                told(row)
        except Exception as error:
            _log.exception("bench: %s", work.name)
            failures.append(f"{work.title}: {explain(error)}")
        gc.collect()
        give_back()
    return Measured(tuple(rows), tuple(failures))


def _measured(work: Work, setting: BenchSetting) -> Iterator[Row]:
    folder = setting.folder / work.name
    folder.mkdir(parents=True)
    try:
        for row in work.measure(replace(setting, folder=folder)):
            yield row if setting.full else replace(row, met=None)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
