"""Files that are read before they are needed, and when that ends."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from headshot_ui import families, reading_ahead
from headshot_ui.settings import Settings
from tests.tiny_models import make_tiny_sdxl


def test_all_files_are_read_to_their_end_and_missing_ones_passed_over(tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a", "missing", "b")]
    files[0].write_bytes(bytes(reading_ahead.AT_A_TIME + 5))
    files[2].write_bytes(bytes(7))
    assert reading_ahead.read_through(files, threading.Event()) == reading_ahead.AT_A_TIME + 12


def test_it_ends_when_it_is_told_to(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(100))
    ended = threading.Event()
    ended.set()
    assert reading_ahead.read_through([path], ended) == 0
    reading_ahead.begin([path])()  # at any time
    for thread in threading.enumerate():
        if thread.name == "reading-ahead":
            thread.join(5)
            assert not thread.is_alive()


def test_a_base_for_a_card_is_read_in_the_order_in_which_it_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_tiny_sdxl(tmp_path / "tiny-sdxl")
    heard: list[str] = []

    def begin(files: list[Path]):
        heard.extend(path.parent.name for path in files)
        return lambda: heard.append("ended")

    monkeypatch.setattr(reading_ahead, "begin", begin)
    monkeypatch.setattr("headshot_ui.settings._usable", lambda device: True)
    for device, expected in (("cpu", []), ("cuda", ["text_encoder", "text_encoder_2", "vae", "unet", "ended"])):
        settings = Settings.from_environment(models_dir=tmp_path, device=device, dtype="float32", environment={})
        families.load_base(families.find_base("tiny-sdxl", settings), settings).release()
        assert heard == expected
