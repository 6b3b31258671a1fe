"""CLIP's words: are they whole, are they those of the encoder, and which ones does a small vocabulary know?

Told from files first, before anything is loaded: with a tokenizer of two words loaders draw nonsense. Needs no torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import AGAIN
from headshot_ui.families.shared_parts.files import must_exist, read_json_file

CLIP_TOKENS = 77
CLIP_WORDS = 49408
#: What the two encoders were trained to see after the end of a text: the end mark again, and "!".
_PADS = {"tokenizer": CLIP_WORDS - 1, "tokenizer_2": 0}
CLOSED_VOCABULARY = 5000  # fewer tokens than this: the encoders know these words and no others (CLIP's own has 49408)
_LEGACY_END = 2  # an old way to say "the token with the highest number", which transformers still minds

_log = logging.getLogger(__name__)


# --- files ----------------------------------------------------------------------------------------------
def check_tokenizer(folder: Path) -> None:
    """Raise ModelError for the first file of a tokenizer that is missing or damaged."""
    read_json_file(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        read_json_file(folder / "tokenizer.json")
        return
    if not (folder / "vocab.json").is_file():
        raise ModelError(f"{folder / 'tokenizer.json'} is missing: {AGAIN}.")
    read_json_file(folder / "vocab.json")
    must_exist(folder / "merges.txt")


def check_words(folder: Path, suffix: str) -> None:
    """Raise ModelError unless a tokenizer has the words, the length and the end mark of its text encoder."""
    place = folder / f"tokenizer{suffix}"
    encoder = read_json_file(folder / f"text_encoder{suffix}" / "config.json")
    words, wanted = vocabulary_of(place), encoder.get("vocab_size")
    if len(words) != wanted:
        raise ModelError(
            f"The tokenizer in {place} has {len(words)} words, but its text encoder knows {wanted}: {AGAIN}."
        )
    length = read_json_file(place / "tokenizer_config.json").get("model_max_length")
    if length != CLIP_TOKENS or encoder.get("max_position_embeddings", CLIP_TOKENS) != CLIP_TOKENS:
        raise ModelError(f"The tokenizer in {place} cuts texts at {length} tokens instead of {CLIP_TOKENS}: {AGAIN}.")
    end = words.get("<|endoftext|>")
    if end is None or encoder.get("eos_token_id", _LEGACY_END) not in (_LEGACY_END, end):
        raise ModelError(f"The tokenizer in {place} marks the end of a text otherwise than its text encoder: {AGAIN}.")


def vocabulary_of(tokenizer: Path) -> dict[str, int]:
    """Token → number, from either kind of file. Raises ModelError for a damaged one."""
    whole = tokenizer / "tokenizer.json"
    try:
        if whole.is_file():
            data = read_json_file(whole)
            added = {token["content"]: int(token["id"]) for token in data.get("added_tokens") or ()}
            return {**data["model"]["vocab"], **added}
        more = tokenizer / "added_tokens.json"
        return read_json_file(tokenizer / "vocab.json") | (read_json_file(more) if more.is_file() else {})
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{whole} is damaged: {AGAIN}.") from error


def read_tokenizer(folder: Path, vocab_size: int) -> Any:
    """A CLIP tokenizer. Raises ModelError unless it has the ``vocab_size`` words of its text encoder."""
    from transformers import CLIPTokenizer

    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{folder} cannot be loaded: {AGAIN}.") from error
    if len(tokenizer) != vocab_size:
        raise ModelError(
            f"The tokenizer in {folder} has {len(tokenizer)} words, but its text encoder knows {vocab_size}: {AGAIN}."
        )
    length, pad = tokenizer.model_max_length, tokenizer.pad_token_id
    if length != CLIP_TOKENS:
        raise ModelError(f"The tokenizer in {folder} cuts texts at {length} tokens instead of {CLIP_TOKENS}: {AGAIN}.")
    if vocab_size == CLIP_WORDS and pad != _PADS.get(folder.name, pad):
        raise ModelError(
            f"The tokenizer in {folder} fills short texts up with “{tokenizer.pad_token}”, but it was trained with "
            f"“{tokenizer.convert_ids_to_tokens(_PADS[folder.name])}”: {AGAIN}."
        )
    return tokenizer


# --- texts ----------------------------------------------------------------------------------------------
def unknown_words(tokenizers: Sequence[Any], text: str) -> tuple[str, ...]:
    """Words of ``text`` that a small vocabulary lacks, each once, in order; always () for a full vocabulary."""
    words = [word for word, known in _words(tokenizers, text) if not known and any(c.isalnum() for c in word)]
    return tuple(dict.fromkeys(words))


def known_part(tokenizers: Sequence[Any], text: str, apart: bool = False) -> str:
    """``text`` without what a small vocabulary lacks.

    An unknown word would become a row of meaningless letters or an early end of the text. ``apart``: for a small
    vocabulary words come as the first tokenizer cuts them, with spaces between, so that the others cut them alike.
    """
    if not _is_closed(tokenizers):
        return text
    words = list(_words(tokenizers, text))
    if any(not known for _, known in words):
        _log.info("Left out of the prompt: %s", ", ".join(word for word, known in words if not known))
        apart = True
    return " ".join(word for word, known in words if known) if apart else text


def _words(tokenizers: Sequence[Any], text: str) -> list[tuple[str, bool]]:
    """Each word of ``text`` as the tokenizer cuts it, with whether both encoders have a token for it."""
    if not _is_closed(tokenizers):
        return []
    rust = tokenizers[0].backend_tokenizer
    plain = rust.normalizer.normalize_str(text)
    words = [plain[start:end] for _, (start, end) in rust.pre_tokenizer.pre_tokenize_str(plain)]
    return [(word, all(_is_one_token(tokenizer, word) for tokenizer in tokenizers)) for word in words]


def _is_closed(tokenizers: Sequence[Any]) -> bool:
    return len(tokenizers[0]) < CLOSED_VOCABULARY


def _is_one_token(tokenizer: object, word: str) -> bool:
    ids = tokenizer(word, add_special_tokens=False).input_ids  # type: ignore[operator]
    return len(ids) == 1 and ids[0] != tokenizer.unk_token_id  # type: ignore[attr-defined]
