from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from headshot_ui.cli import main
from tests.ui.fake_engine import FakeEngine


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str
    engines: list[FakeEngine]

    @property
    def json(self) -> Any:
        return json.loads(self.out.splitlines()[-1])


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ended]:
    """Run one command line against a fake engine, with outputs in a temporary folder."""

    def run(*argv: str, **fake: Any) -> Ended:
        engines: list[FakeEngine] = []

        def make(settings: Any) -> FakeEngine:
            engines.append(FakeEngine(settings, **fake))
            return engines[-1]

        code = main([*argv, "--device", "cpu", "--outputs", str(tmp_path / "outputs")], make)  # type: ignore[arg-type]
        captured = capsys.readouterr()
        return Ended(code, captured.out, captured.err, engines)

    return run
