from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headshot_ui.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Everything under a temporary folder, computing on the CPU."""
    return Settings.from_environment(root=tmp_path, device="cpu", environment={})


@pytest.fixture
def dead_pid() -> Callable[[], int]:
    """The number of a process that has ended."""

    def make() -> int:
        process = subprocess.Popen([sys.executable, "-c", ""])
        process.wait()
        return process.pid

    return make
