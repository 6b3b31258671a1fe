"""Tries one check after the other; what one of them meets keeps none of the others from being tried."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from headshot_ui.card_state import has_lost_card
from headshot_ui.card_words import DRIVERS
from headshot_ui.errors import Cancelled, HeadshotError
from headshot_ui.logs import is_out_of_memory
from headshot_ui.prove.bench import Bench, Clock
from headshot_ui.prove.checks import ALL
from headshot_ui.prove.findings import Check, Finding, Proof, Result, fails, not_possible
from headshot_ui.prove.pace import seconds_left
from headshot_ui.wording import format_seconds

if TYPE_CHECKING:
    from headshot_ui.prove.plan import ProvePlan
    from headshot_ui.workshop import JobContext, Workshop

LOST_IN_PROOF = (
    f"Let the card cool, bring its driver up to date ({DRIVERS}) and try again; should it happen again, test the "
    "card's memory and power supply, and set it back to its usual clock."
)
#: Where ``missing`` tells that the card is gone, which nothing can be built on.
CARD = "the graphics card"

_log = logging.getLogger(__name__)


def run_proof(shop: Workshop, plan: ProvePlan, job: JobContext, checks: Sequence[Check] = ALL) -> Proof:
    """Try every check. Raises Cancelled only: what goes wrong is a finding."""
    began = time.monotonic()
    clock = Clock(job.report)
    bench = Bench(shop, plan, shop.base(plan.base), replace(job, report=clock), clock)
    results: list[Result] = []
    missing: dict[str, str] = {}  # id → title of what later checks cannot build on
    for number, check in enumerate(checks, start=1):
        left = seconds_left(checks, number - 1, time.monotonic() - began, plan.amounts, bench.info.defaults.batch_size)
        to_go = "" if left is None else f" ({format_seconds(left)} to go)"
        clock.prefix = f"{number}/{len(checks)}{to_go} "
        results.append(_tried(check, bench, missing))
    return Proof(results, tuple(clock.notes), time.monotonic() - began)


def _tried(check: Check, bench: Bench, missing: dict[str, str]) -> Result:
    """One check, metered. A check whose ground is missing is not possible. Adds to ``missing``."""
    meter = bench.job.meter
    lacking = next((missing[needed] for needed in check.needs if needed in missing), None)
    with meter.stage(check.id):
        if CARD in missing:
            finding = not_possible(missing[CARD])
        elif lacking is not None:
            finding = not_possible(f"it would say nothing, because this did not hold: {lacking}")
        else:
            finding = _found(check, bench, missing)
    if finding.verdict != "holds" and not finding.leads_on:
        missing[check.id] = check.title
    use = meter.stages[-1]
    _log.info("%s: %s: %s %s", check.id, finding.verdict, finding.figure, finding.advice)
    return Result(
        check.id, check.title, finding.verdict, finding.figure, finding.advice, finding.measured,
        use.seconds, use.peak_ram_bytes, use.peak_vram_bytes,
    )  # fmt: skip


def _found(check: Check, bench: Bench, missing: dict[str, str]) -> Finding:
    bench.job.report(check.title[0].upper() + check.title[1:], 0, 1)
    try:
        return check.run(bench)
    except Cancelled:
        raise
    except Exception as error:
        if has_lost_card(error):
            _log.exception("The check %s lost the card", check.id)
            missing[CARD] = f"it would say nothing, because the graphics card stopped working while: {check.title}"
            return fails(f"the graphics card stopped working ({_first_line(error)})", LOST_IN_PROOF)
        if isinstance(error, HeadshotError):
            return fails("it broke off", str(error))
        _log.exception("The check %s broke off", check.id)
        if is_out_of_memory(error):
            bench.shop.residency.evict()
            return fails("memory ran out", "Close other programs, or choose a smaller base model.")
        told = f"it broke off: {type(error).__name__}: {error}"
        return fails(told[:300], "Attach this report and the log to an issue.")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)[:120]
