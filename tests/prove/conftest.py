"""A tiny random base and refiner beside the demo's networks for faces, and proofs made of some of the checks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from headshot_ui.engine import Engine, Parts, Task, real_parts
from headshot_ui.logs import stop_log
from headshot_ui.prove.checks import ALL
from headshot_ui.prove.findings import Result
from headshot_ui.prove.plan import PERSON, Amounts, ProvePlan
from headshot_ui.prove.runner import run_proof
from headshot_ui.settings import Settings
from tests.core.fakes import grey_pictures
from tests.tiny_models import make_tiny_refiner, make_tiny_sdxl

DEMO = Path(__file__).parents[2] / "models" / "demo"
Proven = dict[str, Result]


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_tiny_sdxl(folder / "tiny")
    make_tiny_refiner(folder / "refiner")
    facts = folder / "tiny" / "base.json"
    data = json.loads(facts.read_text("utf-8"))
    data["defaults"]["learning_rate"] = 0.02  # so that a dozen steps can be seen
    facts.write_text(json.dumps(data), "utf-8")
    for name in ("detector", "recogniser", "restorer", "people/robin", "held_out/kim"):
        shutil.copytree(DEMO / name, folder / "demo" / name)
    return folder


@pytest.fixture
def settings(models: Path, tmp_path: Path) -> Settings:
    return Settings.from_environment(root=tmp_path, models_dir=models, device="cpu", environment={})


@pytest.fixture
def prove(settings: Settings) -> Callable[..., Proven]:
    """Run the checks of these ids on a tiny base, with some parts of the program replaced: id → result."""

    def run(
        *ids: str, settings: Settings = settings, steps: int = 12, base: str = "tiny-sdxl", **parts: Any
    ) -> Proven:
        def broken() -> Parts:
            return replace(real_parts(), **{"prepare": grey_pictures, "load_recogniser": lambda *_: None, **parts})

        checks = [check for check in ALL if check.id in ids]
        assert len(checks) == len(ids)
        plan = ProvePlan(base, ("photos",), False, Amounts(steps, 1, 4, 4, 2, 2))
        with Engine(settings, broken) as engine:
            last = engine.submit_task(Task("prove", "Trying", partial(run_proof, checks=checks)), plan, PERSON).wait(
                300
            )
        stop_log()
        assert last.state == "done", last.error
        return {result.id: result for result in last.result.results}

    return run
