"""What all tests share: few threads, no network, real photographs where they are, GPU tests only on a GPU."""

from __future__ import annotations

import gc
import os
import signal
from pathlib import Path

import pytest

# Before numpy and torch load. One fixed number: how many threads add up decides the last bits of a sum. One, because
# models are tiny here, several processes share the tests, and threads that wait for each other on busy cores take long.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "50000")  # see headshot_ui/cli.py
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

# Started in the background or under nohup, tests inherit ignored signals, and so would the programs they start.
for name in ("SIGINT", "SIGHUP"):  # Windows has no SIGHUP
    number = getattr(signal, name, None)
    if number is not None and signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if name == "SIGINT" else signal.SIG_DFL)


#: Folders whose tests share what is made once and takes long (a trained LoRA, tiny models): one process runs each.
TOGETHER = ("training", "families", "demo", "demo_flux", "prove", "dataset")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` on a machine without one; torch is imported only if there are such tests.

    Where several processes share the tests, those of a file, or of a folder of ``TOGETHER``, stay together. These
    folders come first, because otherwise one process would work through the last of them alone.
    """
    if config.pluginmanager.hasplugin("xdist"):
        items.sort(key=lambda item: TOGETHER.index(item.path.parent.name) if item.path.parent.name in TOGETHER else 99)
        for item in items:
            folder = item.path.parent.name
            item.add_marker(pytest.mark.xdist_group(folder if folder in TOGETHER else f"{folder}/{item.path.stem}"))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if marked and not _has_gpu():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))


@pytest.fixture(scope="module", autouse=True)
def libraries_are_no_rubbish() -> None:
    """What is there before the tests of a file stays: torch and the other libraries, a million objects.

    The program clears rubbish after every model that leaves, and each time all of them would be gone through.
    """
    gc.collect()  # only through what has come since the last freeze
    gc.freeze()


def pytest_unconfigure() -> None:
    """So that Python clears up as always at its end; extension modules would complain."""
    gc.unfreeze()


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
