"""What decides how a FLUX.1 base reads a text, so that a text that was read before can be recognised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from headshot_ui.families import weight_places
from headshot_ui.families.flux_parts.files import CLIP, CLIP_WORDS, T5, T5_WORDS
from headshot_ui.families.lora_parts.layers import LoraFile, split
from headshot_ui.families.protocol import BaseInfo, TextKey
from headshot_ui.families.shared_parts.files import weight_files
from headshot_ui.memory import FilePart
from headshot_ui.store import sha256_of

if TYPE_CHECKING:
    from headshot_ui.families.flux_parts.source import Source


def text_key_of(source: Source, text_tokens: int, loras: Sequence[tuple[LoraFile, float]]) -> TextKey:
    """Of a base as ``source`` reads it, with these finished LoRAs on. Raises ModelError and StoreError.

    That blocks of T5 travel changes no number, so it is not in it.
    """
    where = source.device
    if where == "cuda":  # cards of one kind compute alike
        where = f"cuda {torch.cuda.get_device_name()}"
    elif where == "cpu":  # so many threads, so many partial sums
        where = f"cpu {torch.get_num_threads()}"
    rest = (where, str(source.dtype), f"{text_tokens} tokens", *_changes(loras))
    return TextKey(tuple(_files(source.info)), rest)


def _files(info: BaseInfo) -> Iterator[Path]:
    """Weights and configs of both encoders, and everything of their tokenizers."""
    places = [place for place in weight_places(info) if isinstance(place, FilePart)]
    for part in (CLIP, T5):
        yield info.folder / part / "config.json"
        inside = [place.file for place in places if place.name == part]
        yield from inside or weight_files(info.folder, part)
    for words in (CLIP_WORDS, T5_WORDS):
        yield from sorted(path for path in (info.folder / words).iterdir() if path.is_file())


def _changes(loras: Sequence[tuple[LoraFile, float]]) -> list[str]:
    """Those LoRAs that change an encoder too, with their weights."""
    return [
        f"LoRA {sha256_of(file.path)} at {weight!r}"
        for file, weight in loras
        if any(split(layer)[0] in (CLIP, T5) for layer in file.layers)
    ]
