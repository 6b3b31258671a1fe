"""Compiling blocks in a test: nothing is known of before, and something stands in for Inductor and the card."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch._dynamo
from torch._dynamo.backends.registry import lookup_backend

from headshot_ui import compiling


@contextmanager
def nothing_known() -> Iterator[None]:
    """What other tests compiled is forgotten before a block, and what it compiled after it."""
    torch._dynamo.reset()
    compiling._compiled_once.cache_clear()
    yield
    torch._dynamo.reset()
    compiling._compiled_once.cache_clear()


@contextmanager
def as_on_a_card(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Iterator[None]:
    """Blocks can be compiled here, by all of torch's compiler but for the code it would generate."""
    with nothing_known():
        monkeypatch.setattr(compiling, "why_not", lambda device: "")
        monkeypatch.setattr(compiling, "inductor", lookup_backend("aot_eager"))
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(folder))
        yield
