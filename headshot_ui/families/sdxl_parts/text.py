"""Prompts to SDXL's text conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from headshot_ui.families.protocol import BaseInfo
from headshot_ui.families.sdxl_parts.load import SdxlModules
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.families.shared_parts.load import quiet
from headshot_ui.families.shared_parts.words import (
    CLIP_TOKENS,
    check_tokenizer,
    known_part,
    read_tokenizer,
    unknown_words,
)


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
        """See ``words.unknown_words``."""
        return unknown_words(self._tokenizers, text)


@torch.no_grad()
def encode_prompts(modules: SdxlModules, prompts: Sequence[str]) -> dict[str, torch.Tensor]:
    """Encode as StableDiffusionXLPipeline does; "" gives zeros where the model was trained so.

    Returns on the CPU "prompt_embeds" (B, 77, D1 + D2), the last but one hidden states of both encoders side by
    side, and "pooled_prompt_embeds" (B, P), the projection of the second. dtype is the encoders' own.
    """
    texts = [known_part(modules.tokenizers, prompt) for prompt in prompts]
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
