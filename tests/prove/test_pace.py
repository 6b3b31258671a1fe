from __future__ import annotations

from headshot_ui.prove.checks import ALL
from headshot_ui.prove.pace import cost, seconds_left
from headshot_ui.prove.plan import ON_GPU


def test_time_left_goes_by_what_is_done() -> None:
    assert seconds_left(ALL, 0, 0.0, ON_GPU, 1) is None
    assert seconds_left(ALL, len(ALL), 100.0, ON_GPU, 1) == 0
    halfway = seconds_left(ALL, 8, 100.0, ON_GPU, 1)
    assert halfway is not None and halfway > 0
    assert seconds_left(ALL, 8, 200.0, ON_GPU, 1) == 2 * halfway


def test_training_and_drawing_are_what_costs() -> None:
    costs = {check.id: cost(check.id, ON_GPU, 1) for check in ALL}
    assert max(costs, key=lambda name: costs[name]) == "training"
    assert costs["pictures"] > 5 * costs["device"]
