"""Prompts to FLUX.1's text conditions: every word from T5, the whole from CLIP."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import AGAIN
from headshot_ui.families.flux_parts.files import CLIP, CLIP_WORDS, T5_WORDS, check_t5_words, t5_vocabulary
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.families.shared_parts.load import quiet
from headshot_ui.families.shared_parts.words import (
    CLIP_TOKENS,
    check_tokenizer,
    known_part,
    read_tokenizer,
    unknown_words,
)

_FILLING, _END = "<pad>", "</s>"


class FluxVocabulary:
    """See ``protocol.Vocabulary``: the tokenizers of a base without its weights. Raises ModelError."""

    def __init__(self, info: BaseInfo) -> None:
        self.info = info
        self._tokenizers = read_tokenizers(info.folder)

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """See ``words.unknown_words``."""
        return unknown_words(self._tokenizers, text)


def read_tokenizers(folder: Path) -> tuple[Any, Any]:
    """Those of CLIP and T5. Raises ModelError unless they are those of their encoders."""
    check_tokenizer(folder / CLIP_WORDS)
    check_t5_words(folder)
    with quiet():
        clip = read_tokenizer(folder / CLIP_WORDS, read_json_file(folder / CLIP / "config.json").get("vocab_size", 0))
        return clip, _read_t5_tokenizer(folder / T5_WORDS)


def _read_t5_tokenizer(place: Path) -> Any:
    from transformers import T5Tokenizer

    try:
        tokenizer = T5Tokenizer.from_pretrained(place, local_files_only=True)
    except Exception as error:
        raise ModelError(f"{place} cannot be loaded: {AGAIN}.") from error
    words = t5_vocabulary(place)
    if len(tokenizer) != len(words):
        raise ModelError(f"The tokenizer in {place} was read as one of {len(tokenizer)} words: {AGAIN}.")
    if (tokenizer.pad_token_id, tokenizer.eos_token_id) != (words[_FILLING], words[_END]):
        raise ModelError(f"The tokenizer in {place} fills up or ends texts otherwise than T5: {AGAIN}.")
    return tokenizer


@torch.no_grad()
def encode_prompts(
    tokenizers: Sequence[Any], encoders: Sequence[Any], prompts: Sequence[str], text_tokens: int
) -> dict[str, torch.Tensor]:
    """Encode as FluxPipeline does: T5 fills up to ``text_tokens`` and masks nothing.

    Returns on the CPU "prompt_embeds" (B, text_tokens, D), what T5 makes of every token, and "pooled_prompt_embeds"
    (B, P), what CLIP makes of the whole. dtype is the encoders' own. The empty text is read like any other.
    """
    texts = [known_part(tokenizers, prompt, apart=True) for prompt in prompts]
    clip, t5 = encoders
    ids = [
        tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids
        for tokenizer, length in zip(tokenizers, (CLIP_TOKENS, text_tokens), strict=True)
    ]
    pooled = clip(ids[0].to(clip.device)).pooler_output
    hidden = t5(ids[1].to(t5.device))[0]
    return {"prompt_embeds": hidden.cpu(), "pooled_prompt_embeds": pooled.cpu()}
