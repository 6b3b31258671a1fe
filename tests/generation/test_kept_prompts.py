"""Prompts that were read before are found again to the last bit, or not at all."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from headshot_ui.families.protocol import TextKey
from headshot_ui.generation import kept_prompts
from headshot_ui.generation.kept_prompts import KeptPrompts
from headshot_ui.generation.runner import generate
from headshot_ui.specs import GenerateSpec
from tests.generation.fakes import FakeBase, Reports, make_store

TEXT = "portrait of tok person"


def embeds(seed: int = 0, tokens: int = 5) -> dict[str, torch.Tensor]:
    numbers = torch.Generator().manual_seed(seed)
    hidden = torch.randn(1, tokens, 8, generator=numbers).bfloat16()
    hidden[0, 0, 0], hidden[0, 0, 1] = -0.0, torch.nan
    return {"prompt_embeds": hidden, "pooled_prompt_embeds": torch.randn(1, 4, generator=numbers)}


def bits(found: object) -> dict[str, tuple[torch.dtype, bytes]]:
    assert isinstance(found, dict)
    return {name: (one.dtype, one.view(torch.uint8).numpy().tobytes()) for name, one in found.items()}


@pytest.fixture
def kept(tmp_path: Path) -> KeptPrompts:
    return KeptPrompts(tmp_path / "prompts", "somebody")


def test_what_is_kept_comes_back_to_the_last_bit(kept: KeptPrompts) -> None:
    assert kept.find(TEXT) is None
    kept.keep(TEXT, embeds())
    assert bits(kept.find(TEXT)) == bits(embeds())
    assert kept.find(TEXT + " ") is None and replace(kept, read_by="another").find(TEXT) is None
    (file,) = kept.folder.iterdir()
    assert b"portrait" not in file.read_bytes() and "portrait" not in file.name, "the words themselves are not there"


def test_a_damaged_entry_is_passed_over_and_made_again(kept: KeptPrompts, caplog: pytest.LogCaptureFixture) -> None:
    kept.keep(TEXT, embeds())
    (file,) = kept.folder.iterdir()
    whole = file.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    flipped = [bytearray(whole) for _ in range(2)]
    flipped[0][-1] ^= 1
    flipped[1][header + 3] ^= 128
    shorter = whole.replace(b"[1,5,8]", b"[1,8,5]")
    assert shorter != whole
    cut = [whole[:length] for length in (0, 5, header, -1)]
    for damaged in (*cut, whole + b" ", *map(bytes, flipped), shorter, b"\xff" * 99):
        file.write_bytes(damaged)
        assert kept.find(TEXT) is None, damaged[:20]
        assert "damaged" in caplog.text
        caplog.clear()
        kept.keep(TEXT, embeds())
        assert file.read_bytes() == whole and kept.find(TEXT) is not None


def test_the_longest_unused_go_first(kept: KeptPrompts) -> None:
    kept.keep("a", embeds())
    size = next(kept.folder.iterdir()).stat().st_size
    kept = replace(kept, most_bytes=3 * size)
    for hours, text in ((9, "a"), (8, "b"), (7, "c")):
        kept.keep(text, embeds())
        at = 1e9 - 3600 * hours
        os.utime(kept._path(text), (at, at))
    assert kept.find("a") is not None, "used now"
    kept.keep("d", embeds())
    assert {text for text in "abcd" if kept.find(text)} == {"a", "c", "d"}
    assert sum(file.stat().st_size for file in kept.folder.iterdir()) <= kept.most_bytes


def test_a_full_disk_costs_nothing_but_the_entry(kept: KeptPrompts, caplog: pytest.LogCaptureFixture) -> None:
    kept.folder.write_bytes(b"a file where the folder should be")
    kept.keep(TEXT, embeds())
    assert "is not kept" in caplog.text and kept.find(TEXT) is None


def test_two_programs_keep_prompts_at_once(kept: KeptPrompts) -> None:
    """Both write the same entries, and each lets go what the other has just written."""
    kept.keep("0", embeds())
    size = next(kept.folder.iterdir()).stat().st_size
    problems: list[BaseException] = []

    def program(mine: KeptPrompts) -> None:
        try:
            for turn in range(12):
                text = str(turn % 4)
                mine.keep(text, embeds(turn % 4))
                found = mine.find(text)
                assert found is None or bits(found) == bits(embeds(turn % 4))
        except BaseException as problem:
            problems.append(problem)

    programs = [threading.Thread(target=program, args=(replace(kept, most_bytes=2 * size),)) for _ in range(2)]
    for each in programs:
        each.start()
    for each in programs:
        each.join()
    assert not problems
    names = [file.name for file in kept.folder.iterdir()]
    assert names and not any(name.endswith(".tmp") for name in names)


# --- what decides it ----------------------------------------------------------------------------------
def reader(*files: Path, rest: tuple[str, ...] = ("cpu",)) -> str:
    found = KeptPrompts.of(Path("prompts"), TextKey(files, rest))
    assert found is not None
    return found.read_by


def test_another_file_or_setting_is_another_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert KeptPrompts.of(tmp_path, None) is None
    file, copy = tmp_path / "model.safetensors", tmp_path / "copy" / "model.safetensors"
    copy.parent.mkdir()
    file.write_bytes(bytes(1000))
    copy.write_bytes(bytes(1000))
    before = reader(file)
    assert reader(copy) == before, "where it lies does not count"
    assert reader(file, rest=("cuda",)) != before and reader(file, copy) != before
    file.write_bytes(bytes(999) + b"1")
    assert reader(file) != before
    monkeypatch.setattr(kept_prompts, "version", lambda name: "0")
    assert reader(copy) != before, "another release may read otherwise"


def test_large_files_are_told_apart_without_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_prompts, "_WHOLE_BYTES", 2**16)
    monkeypatch.setattr(kept_prompts, "_BEGINNING_BYTES", 2**10)
    file, size = tmp_path / "model.safetensors", 2**21
    seen = set()
    for change in (None, 5, size - 1, size // 2):  # a name at the beginning, the end, a sample in the middle
        data = bytearray(size)
        for place in () if change is None else range(change, min(change + 2**15, size)):
            data[place] = 1
        file.write_bytes(data)
        os.utime(file, (1e9, 1e9))
        kept_prompts._mark.cache_clear()
        seen.add(reader(file))
    assert len(seen) == 4
    os.utime(file, (1e9 + 1, 1e9 + 1))
    assert reader(file) not in seen, "changed since"


# --- drawing ------------------------------------------------------------------------------------------
def test_the_device_is_asked_for_text_encoders_only_where_something_is_unread(tmp_path: Path) -> None:
    spec = GenerateSpec("anna", "fake", prompt="red", count=1)
    said = []
    for key in (TextKey((), ("a",)), TextKey((), ("a",)), TextKey((), ("b",)), None):
        base = FakeBase(text_key=key)
        generate(spec, make_store(tmp_path), base, Reports())
        said.append([event for event in base.events if event[0] == "encode" or event == ("keep", "text")])
    read = [("keep", "text"), ("encode", ("red",)), ("encode", ("",))]
    assert said == [read, [], read, read]
