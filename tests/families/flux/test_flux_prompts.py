"""A prompt that was read before needs neither T5 nor CLIP, and gives the same picture."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from headshot_ui import families
from headshot_ui.families.flux_parts import text_key
from headshot_ui.families.flux_parts.loaded import LoadedFlux
from headshot_ui.families.flux_parts.lora_facts import place_in_files
from headshot_ui.families.flux_parts.source import Source
from headshot_ui.generation.kept_prompts import KeptPrompts
from headshot_ui.generation.runner import generate
from headshot_ui.memory import FilePart
from headshot_ui.settings import Settings
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import Store
from tests.families.flux.flux_loras import by_hand, random_layers
from tests.generation.fakes import Reports

SPEC = GenerateSpec("anna", "tiny-flux", prompt="portrait of {subject}", presets=("navy-suit",), count=1, seed=5)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """How often each part was read from its files."""
    parts: Counter[str] = Counter()
    real = Source.read

    def counted(source: Source, part: str, *args: Any, **kwargs: Any) -> Any:
        parts[part] += 1
        return real(source, part, *args, **kwargs)

    monkeypatch.setattr(Source, "read", counted)
    yield parts


@pytest.fixture
def here(settings: Settings, models_dir: Path, tmp_path: Path) -> Settings:
    """Models that may be changed."""
    shutil.copytree(models_dir / "dev", tmp_path / "models" / "dev")
    return replace(settings, models_dir=tmp_path / "models", outputs_dir=tmp_path / "outputs")


def started(settings: Settings) -> LoadedFlux:
    return LoadedFlux.read(families.find_base("tiny-flux", settings), settings)


def drawn(settings: Settings, spec: GenerateSpec = SPEC, loaded: LoadedFlux | None = None) -> list[bytes]:
    """Pictures of a program that has just been started, unless a base is given."""
    reports = Reports()
    made = generate(spec, Store(settings), loaded or started(settings), reports)
    assert [step[1:] for step in reports.seen if step[0] == "Reading the prompts"][-1] == (2, 2)
    return [picture.path.read_bytes() for picture in made.pictures]


def entries(settings: Settings, person: str = "anna") -> set[str]:
    return {path.name for path in Store(settings).prompts_dir(person).glob("*")}


def test_the_second_time_no_encoder_is_read(here: Settings, read: Counter[str]) -> None:
    first = drawn(here)
    assert read["text"] == 1 and len(entries(here)) == 2, "the two prompts, and no empty one"
    read.clear()
    assert drawn(here) == first, "the same file, to the last byte"
    assert read == {"vae": 1, "denoiser": 1}
    shutil.rmtree(Store(here).prompts_dir("anna"))
    assert drawn(here) == first and read["text"] == 1


def test_only_what_is_new_is_read(here: Settings, read: Counter[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    real = LoadedFlux.encode_prompts
    monkeypatch.setattr(LoadedFlux, "encode_prompts", lambda self, texts: (asked.extend(texts), real(self, texts))[1])
    drawn(here)
    asked.clear()
    drawn(here, replace(SPEC, prompt="{subject} in soft light"))
    assert asked == ["tok person in soft light"]


def test_a_damaged_entry_is_read_again(here: Settings, read: Counter[str]) -> None:
    first = drawn(here)
    for path in list(Store(here).prompts_dir("anna").iterdir())[:2]:
        path.write_bytes(path.read_bytes()[:-7])
    read.clear()
    assert drawn(here) == first and read["text"] == 1
    read.clear()
    assert drawn(here) == first and not read["text"], "and is whole again"


def test_another_encoder_reads_for_itself(here: Settings, read: Counter[str]) -> None:
    first = drawn(here)
    before = entries(here)
    read.clear()
    file = here.models_dir / "dev" / "text_encoder" / "model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(file).items()}, file, {"format": "pt"})
    assert drawn(here) != first and read["text"] == 1
    assert len(entries(here) - before) == 2
    read.clear()
    words = here.models_dir / "dev" / "tokenizer" / "tokenizer_config.json"
    words.write_text(words.read_text("utf-8") + "\n", "utf-8")
    drawn(here)
    assert read["text"] == 1


def test_another_number_format_reads_for_itself(here: Settings, read: Counter[str]) -> None:
    drawn(here)
    read.clear()
    drawn(replace(here, wanted_dtype="bfloat16"))
    assert read["text"] == 1 and len(entries(here)) == 4


def test_a_person_has_their_own(here: Settings, read: Counter[str]) -> None:
    drawn(here)
    drawn(here, replace(SPEC, person="bert"))
    assert read["text"] == 2 and entries(here) == entries(here, "bert")
    Store(here).delete_person("anna")
    assert not entries(here) and len(entries(here, "bert")) == 2


# --- LoRAs --------------------------------------------------------------------------------------------
def lora(base: LoadedFlux, part: str, path: Path) -> Path:
    where = place_in_files(base.info)
    chosen = [name for name in where.shapes if name.startswith(f"{part}.")][:2]
    tensors: dict[str, torch.Tensor] = {}
    for name, layer in random_layers(where, chosen, rank=2).items():
        tensors |= by_hand(name, layer.down, layer.up, None, kohya=False)
    save_file(tensors, path)
    return path


def reader(base: LoadedFlux) -> str:
    kept = KeptPrompts.of(Path("prompts"), base.text_key)
    assert kept is not None
    return kept.read_by


def test_only_loras_that_change_an_encoder_count(here: Settings, tmp_path: Path) -> None:
    base = started(here)
    bare = reader(base)
    base.use_loras([(lora(base, "transformer", tmp_path / "face.safetensors"), 1.0)])
    assert reader(base) == bare
    words = lora(base, "text_encoder", tmp_path / "words.safetensors")
    found = []
    for weight in (1.0, 0.5):
        base.use_loras([(words, weight)])
        found.append(reader(base))
    assert len({bare, *found}) == 3
    base.use_loras(())
    assert reader(base) == bare


def test_blocks_that_travel_read_the_same(here: Settings) -> None:
    base = started(here)
    bare = reader(base)
    base.make_fit(None, streams_text=True)
    assert reader(base) == bare


def test_all_files_of_both_encoders_and_tokenizers_count(here: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    base = started(here)
    folder = base.info.folder
    shards = sorted((folder / "text_encoder_2").glob("*.safetensors"))
    assert len(shards) > 1
    wanted = {*shards, folder / "text_encoder" / "model.safetensors", *(folder / "tokenizer").iterdir(),
              *(folder / "tokenizer_2").iterdir(), folder / "text_encoder" / "config.json",
              folder / "text_encoder_2" / "config.json"}  # fmt: skip
    assert set(base.text_key.files) == wanted
    parts = [FilePart(shard, "text_encoder_2", "") for shard in shards]
    monkeypatch.setattr(text_key, "weight_places", lambda info: (FilePart(Path("one"), "transformer", ""), *parts))
    assert set(base.text_key.files) == wanted, "also where parts are told by their files"
