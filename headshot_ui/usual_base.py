"""Which base model is meant where none is named, on the page and on the command line.

One that draws photographs, where one is installed and there is a graphics card: first those of the catalogue of
downloads, in its order, then the others by title. Without a card a training of such a model takes many hours, so the
demo's is meant there, which takes minutes; whoever wants the other names it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from headshot_ui import families
from headshot_ui.downloads import catalogue
from headshot_ui.errors import ModelError
from headshot_ui.runs import list_runs
from headshot_ui.settings import gpu_in_sight

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.runs import Run
    from headshot_ui.settings import Settings
    from headshot_ui.store import Store

SLOW = "There is no graphics card here: a training on it takes many hours."
INSTEAD = "“{title}” is here too, but without a graphics card it takes many hours; choose it to use it all the same."


def usual_base(bases: Sequence[BaseInfo], settings: Settings) -> BaseInfo | None:
    """The base model meant where none is named; None where there is none. Imports no torch by itself."""
    drawn, real = [info for info in bases if info.demo], photographs(bases)
    return next(iter([*real, *drawn] if has_card(settings) else [*drawn, *real]), None)


def photographs(bases: Sequence[BaseInfo]) -> list[BaseInfo]:
    """Those that draw photographs, the one to take first at the beginning; those that cannot be trained on, last."""
    known = [entry.id for entry in catalogue.load_catalogue().values() if entry.kind == "base"]

    def rank(info: BaseInfo) -> tuple[bool, int, str, str]:
        place = known.index(info.id) if info.id in known else len(known)
        return not _can_be_trained(info), place, info.title.casefold(), info.id

    return sorted((info for info in bases if not info.demo), key=rank)


def _can_be_trained(info: BaseInfo) -> bool:
    try:
        return not families.abilities(info).untrainable
    except ModelError:  # told when it is used
        return True


def has_card(settings: Settings) -> bool:
    """Whether jobs compute on a GPU: surely, where torch is loaded already; else by what can be seen without it."""
    if settings.wanted_device != "auto":
        return settings.wanted_device != "cpu"
    if "device" in vars(settings) or "torch" in sys.modules:
        return settings.device != "cpu"
    return gpu_in_sight()


def trained_base(store: Store, person: str) -> str:
    """The base model of the person's newest finished training, one that is installed first; "" without any."""
    done = [run.spec.base for run in list_runs(store, person) if run.state == "done" and _has_lora(run)]
    here = {info.id for info in families.all_bases(store.settings)}
    return next((base for base in done if base in here), next(iter(done), ""))


def _has_lora(run: Run) -> bool:
    return run.lora_path is not None and run.lora_path.is_file()


def about_base(info: BaseInfo | None, bases: Sequence[BaseInfo], settings: Settings) -> str:
    """What a person is told of a base model they chose, or that was chosen for them."""
    if info is None:
        return "No base model was found."
    if has_card(settings):
        return info.note
    if not info.demo:
        return f"{info.note} {SLOW}"
    return " ".join([info.note, *(INSTEAD.format(title=other.title) for other in photographs(bases)[:1])])
