"""A card that is lost in one check: the others say so and are not tried."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from headshot_ui.meter import StageMeter
from headshot_ui.prove.findings import Check, holds
from headshot_ui.prove.plan import ON_GPU, ProvePlan
from headshot_ui.prove.runner import run_proof
from headshot_ui.workshop import JobContext


def test_after_a_lost_card_nothing_is_tried_any_more() -> None:
    tried = []

    def breaks(bench: Any) -> Any:
        raise RuntimeError("CUDA error: unspecified launch failure\nCompile with …")

    def counts(bench: Any) -> Any:
        tried.append(bench)
        return holds("good")

    runs = {"files are whole": counts, "it learns": breaks, "it ends": counts}
    checks = [Check(title, title, run) for title, run in runs.items()]
    shop: Any = SimpleNamespace(base=lambda base: SimpleNamespace(defaults=SimpleNamespace(batch_size=1)))
    job = JobContext(lambda *_, **__: None, StageMeter())
    proof = run_proof(shop, ProvePlan("demo", ("a.jpg",), False, ON_GPU), job, checks)
    first, lost, after = proof.results
    assert first.verdict == "holds" and len(tried) == 1
    assert lost.verdict == "fails" and "stopped working (CUDA error: unspecified launch failure)" in lost.figure
    assert "driver up to date" in lost.advice
    assert after.verdict == "not possible" and "it learns" in after.figure
