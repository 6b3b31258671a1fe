"""The small vocabulary of the demo FLUX: a T5 tokenizer in which every word of the drawn world is one token.

Captions are drawn once, as numbers of the CLIP tokenizer (``dataset.py``). Here those numbers are looked up as T5's.
T5 writes a word that begins after a space with "▁" before it, and what follows without a space without. The program
gives a small vocabulary words with spaces between, diffusers gives the text as it is: training sees both.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tools.demo_models import words

if TYPE_CHECKING:
    from transformers import T5Tokenizer

#: Tokens that T5 reads; the longest caption has 48.
LENGTH = 64
PAD, END = 0, 1
_BEFORE = "▁"


def tokenizer(known: Iterable[str]) -> T5Tokenizer:
    """ "<pad>", "</s>", "<unk>", then every word with and without a space before it."""
    from transformers import T5Tokenizer

    pieces = sorted(set(known))
    vocab = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocab += [(_BEFORE + piece, -5.0) for piece in pieces] + [(piece, -6.0) for piece in pieces] + [(_BEFORE, -9.0)]
    return T5Tokenizer(vocab=vocab, extra_ids=0, model_max_length=LENGTH)


class FromClip:
    """Numbers of the CLIP tokenizer to those of T5, by a table."""

    def __init__(self, known: Iterable[str], device: torch.device) -> None:
        pieces = sorted(set(known))
        clip, _ = words.vocabulary(pieces)
        t5 = {
            token: number
            for number, token in enumerate(tokenizer(pieces).convert_ids_to_tokens(range(3 + 2 * len(pieces))))
        }
        self._apart = torch.full((len(clip),), -1)  # with a space before it
        self._joined = torch.full((len(clip),), -1)
        for piece in pieces:
            self._apart[clip[piece + "</w>"]] = t5[_BEFORE + piece]
            self._joined[clip[piece + "</w>"]] = t5[piece]
        self._apart, self._joined = self._apart.to(device), self._joined.to(device)
        self._comma, self._hyphen = clip[",</w>"], clip["-</w>"]

    def __call__(self, tokens: Tensor, spaced: Tensor) -> Tensor:
        """(B, 77) of CLIP, begun, ended and filled up, to (B, LENGTH) of T5; ``spaced`` (B,): spaces between all words.

        Without, commas and hyphens follow the word before them, and what follows a hyphen follows it at once.
        """
        inner = tokens[:, 1 : LENGTH + 1]  # without the start
        sticks = (inner == self._comma) | (inner == self._hyphen)
        sticks[:, 1:] |= inner[:, :-1] == self._hyphen
        found = torch.where(sticks & ~spaced[:, None], self._joined[inner], self._apart[inner])
        first_end = (found < 0).int().argmax(1)  # CLIP's end is no word
        places = torch.arange(LENGTH, device=tokens.device)
        found = torch.where(places < first_end[:, None], found, PAD)
        return torch.where(places == first_end[:, None], END, found)
