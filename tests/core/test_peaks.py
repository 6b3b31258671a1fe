"""What stages took is kept per model, stage, picture size and number format."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from headshot_ui.peaks import FILE_NAME, Measured, Peaks

TRAIN = Measured("train", 10.0, 500, 70, "1024x1024 batch 1", "cuda", "bfloat16", 100)


@pytest.fixture
def peaks(tmp_path: Path) -> Peaks:
    return Peaks(tmp_path)


def test_the_largest_peaks_and_the_latest_seconds_are_kept_across_starts(peaks: Peaks, tmp_path: Path) -> None:
    peaks.record("demo", TRAIN)
    peaks.record("demo", replace(TRAIN, seconds=20.0, peak_ram_bytes=400, peak_vram_bytes=90, units=150))
    found = Peaks(tmp_path).find("demo", "train", "1024x1024 batch 1", "cuda", "bfloat16")
    assert found == replace(TRAIN, seconds=20.0, peak_vram_bytes=90, units=150)


def test_another_size_device_format_stage_or_model_is_another_measurement(peaks: Peaks) -> None:
    peaks.record("demo", TRAIN)
    assert peaks.find("demo", "train", "1024x1024 batch 1", "cuda", "bfloat16") == TRAIN
    for other in (
        ("other", "train", "1024x1024 batch 1", "cuda", "bfloat16"),
        ("demo", "generate", "1024x1024 batch 1", "cuda", "bfloat16"),
        ("demo", "train", "512x512 batch 1", "cuda", "bfloat16"),
        ("demo", "train", "1024x1024 batch 1", "cpu", "bfloat16"),
        ("demo", "train", "1024x1024 batch 1", "cuda", "float32"),
    ):
        assert peaks.find(*other) is None, other


def test_work_of_unknown_amount_does_not_spoil_the_seconds(peaks: Peaks) -> None:
    peaks.record("demo", TRAIN)
    peaks.record("demo", replace(TRAIN, seconds=3.0, peak_vram_bytes=99, units=0))
    (found,) = peaks.of("demo").values()
    assert (found.seconds, found.units, found.peak_vram_bytes) == (10.0, 100, 99)


def test_files_of_before_are_read_for_the_same_kind_of_device(peaks: Peaks, tmp_path: Path) -> None:
    old = {"name": "train", "seconds": 200.0, "peak_ram_bytes": 1_390_000_000, "peak_vram_bytes": 0}
    (tmp_path / FILE_NAME).write_text(json.dumps({"demo-sdxl": {"train": old}}))
    found = peaks.find("demo-sdxl", "train", "256x256 batch 4", "cpu", "float32")
    assert found is not None and found.peak_ram_bytes == 1_390_000_000 and found.units == 0
    assert peaks.find("demo-sdxl", "train", "256x256 batch 4", "cuda", "bfloat16") is None
    peaks.record("demo-sdxl", TRAIN)
    assert set(peaks.of("demo-sdxl")) == {"train", TRAIN.key}, "and are still there afterwards"


def test_damaged_peaks_are_forgotten_not_fatal(peaks: Peaks, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"demo": {"train": {"wrong": 1}}}'):
        (tmp_path / FILE_NAME).write_text(text)
        assert peaks.of("demo") == {}
    peaks.record("demo", TRAIN)
    assert set(peaks.of("demo")) == {TRAIN.key}
