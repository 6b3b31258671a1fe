"""Python's collector rests while models are loaded, and only then."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from headshot_ui import families
from headshot_ui.collecting import nothing_collected
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.settings import Settings


def test_the_collector_works_again_afterwards_whatever_happens() -> None:
    with nothing_collected(), nothing_collected():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(KeyError), nothing_collected():
        raise KeyError
    assert gc.isenabled()


def test_one_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with nothing_collected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_it_rests_while_a_base_is_loaded(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    class Watching:
        def load(self, info: BaseInfo, settings: Settings) -> str:
            seen.append(gc.isenabled())
            return "loaded"

    monkeypatch.setattr(families, "_family_of", lambda info: Watching())
    info = BaseInfo("x", "any", "X", Path(), "", "", 64)
    assert families.load_base(info, settings) == "loaded"  # type: ignore[comparison-overlap]
    assert seen == [False] and gc.isenabled()
