"""Batches in which graphics memory runs out are drawn on in a smaller way, and nothing that was drawn is lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from headshot_ui.errors import MemoryBudgetError
from headshot_ui.families.fits import DenoiserWork, Fitting
from headshot_ui.families.protocol import LoadedBase
from headshot_ui.generation.plan import PlannedPicture
from headshot_ui.less_memory import LEAST_LESS, make_room, out_of_memory

_SAID = "The graphics memory ran out, so"


def draw_all(
    groups: Iterable[Sequence[PlannedPicture]],
    draw: Callable[[Sequence[PlannedPicture], bool], None],
    tell: Callable[[str], None],
    device: str,
    smaller: Callable[[], str] = lambda: "",
    let_go: Callable[[], None] = lambda: None,
) -> None:
    """``draw`` group after group; with each comes whether it is the last one.

    A group in which graphics memory runs out is halved, and so are those that wait, to as many pixels at once. For a
    single picture ``smaller`` is to find another way and to say which, "" if there is none: then the error is raised.
    ``let_go`` gives back what only the next steps would need. ``tell`` hears a sentence of each change.
    """
    waiting = [list(group) for group in groups]
    while waiting:
        group = waiting[0]
        last = len(waiting) == 1
        failed = out_of_memory(lambda group=group, last=last: draw(group, last), "Drawing")  # type: ignore[misc]
        if failed is None:
            waiting.pop(0)
            continue
        let_go()
        make_room(device)
        if len(group) > 1:
            most = len(group) // 2
            pixels = most * group[0].width * group[0].height
            waiting = [part for each in waiting for part in _divided(each, pixels)]
            tell(f"{_SAID} {'one picture is' if most == 1 else f'{most} pictures are'} drawn at a time from here on.")
            continue
        how = smaller()
        if not how:
            raise failed
        tell(f"{_SAID} drawing goes on in a smaller way. {how}")


def _divided(group: list[PlannedPicture], pixels: int) -> list[list[PlannedPicture]]:
    most = max(1, pixels // (group[0].width * group[0].height))
    return [group[start : start + most] for start in range(0, len(group), most)]


def fit_smaller(loaded: LoadedBase, work: DenoiserWork, before: Fitting | None, any_numbers: bool) -> Fitting | None:
    """The next smaller way after ``before`` for this work, which the base then computes in; None if there is none.

    Unless it may be with ``any_numbers``, the way keeps to its precision: pictures of one request are alike.
    """
    if before is None:
        return None
    precision = None if any_numbers else before.precision
    found: Fitting | None = before
    try:
        while found is not None and found.title == before.title:  # that of a larger batch, perhaps
            found = loaded.fit(work, precision, found.vram_bytes - LEAST_LESS)
    except MemoryBudgetError:
        return None
    return found
