"""Prompts to SDXL's text conditions."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch

from headshot_ui.families.protocol import BaseInfo
from headshot_ui.families.sdxl_parts.files import CLIP_TOKENS, check_tokenizer, read_json_file
from headshot_ui.families.sdxl_parts.load import SdxlModules, quiet, read_tokenizer

CLOSED_VOCABULARY = 5000  # fewer tokens than this: the encoders know these words and no others (CLIP's own has 49408)

_log = logging.getLogger(__name__)


class SdxlVocabulary:
    """See ``protocol.Vocabulary``: the tokenizers of a base without its weights. Raises ModelError."""

    def __init__(self, info: BaseInfo) -> None:
        self.info = info
        self._tokenizers = (self._read(""), self._read("_2"))

    def _read(self, suffix: str) -> Any:
        folder = self.info.folder
        check_tokenizer(folder / f"tokenizer{suffix}")
        encoder = read_json_file(folder / f"text_encoder{suffix}" / "config.json")
        with quiet():
            return read_tokenizer(folder / f"tokenizer{suffix}", encoder.get("vocab_size", 0))

    def unknown_words(self, text: str) -> tuple[str, ...]:
        """See ``unknown_words``."""
        return unknown_words(self._tokenizers, text)


@torch.no_grad()
def encode_prompts(modules: SdxlModules, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Encode as StableDiffusionXLPipeline does; "" gives zeros where the model was trained so.

    Returns on the CPU "prompt_embeds" (B, 77, D1 + D2), the last but one hidden states of both encoders side by
    side, and "pooled_prompt_embeds" (B, P), the projection of the second. dtype is the encoders' own.
    """
    texts = [_known_part(modules.tokenizers, prompt) for prompt in prompts]
    hidden = []
    for tokenizer, encoder in zip(modules.tokenizers, modules.text_encoders, strict=True):
        ids = tokenizer(texts, padding="max_length", max_length=CLIP_TOKENS, truncation=True, return_tensors="pt")
        output = encoder(ids.input_ids.to(encoder.device), output_hidden_states=True)
        hidden.append(output.hidden_states[-2])
    embeds = {"prompt_embeds": torch.cat(hidden, dim=-1).cpu(), "pooled_prompt_embeds": output[0].cpu()}
    if modules.zeros_for_empty_prompt:
        for index, prompt in enumerate(prompts):
            if not prompt:
                for tensor in embeds.values():
                    tensor[index] = 0
    return embeds


def unknown_words(tokenizers: Sequence[Any], text: str) -> tuple[str, ...]:
    """Words of ``text`` that a small vocabulary lacks, each once, in order; always () for a full vocabulary."""
    words = [word for word, known in _words(tokenizers, text) if not known and any(c.isalnum() for c in word)]
    return tuple(dict.fromkeys(words))


def _known_part(tokenizers: Sequence[Any], text: str) -> str:
    """``text`` without what a small vocabulary lacks.

    An unknown word would become a row of meaningless letters or an early end of the text.
    """
    if not _is_closed(tokenizers):
        return text
    words = list(_words(tokenizers, text))
    if any(not known for _, known in words):
        _log.info("Left out of the prompt: %s", ", ".join(word for word, known in words if not known))
        return " ".join(word for word, known in words if known)
    return text


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
