"""What all tests share: few threads, no network, real photographs where they are, GPU tests only on a GPU."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Before numpy and torch load. One fixed number: how many threads add up decides the last bits of a sum.
os.environ.setdefault("OMP_NUM_THREADS", "2")
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "50000")  # see headshot_ui/cli.py
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

# Started in the background or under nohup, tests inherit ignored signals, and so would the programs they start.
for name in ("SIGINT", "SIGHUP"):  # Windows has no SIGHUP
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` on a machine without one; torch is imported only if there are such tests."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@pytest.fixture(scope="session")
def testdata() -> Path:
    """Folder of real photographs (``faces/``) and real detector weights (``models/``)."""
    folder = os.environ.get("HEADSHOT_UI_TESTDATA", "")
    if not folder or not Path(folder, "models").is_dir():
        pytest.skip("needs real photographs: set HEADSHOT_UI_TESTDATA to the folder that holds them")
    return Path(folder)
