"""The small vocabulary of the demo base: CLIP tokenizers in which every word of the drawn world is one token."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
CONTEXT = 77
#: How CLIP cuts text before looking words up (letters, single digits, runs of other signs).
_PIECES = re.compile(r"[^\W\d_]+|\d|[^\s\w]+|_+")


def pieces(text: str) -> list[str]:
    """Lower-case words and signs of a caption, cut as CLIP's tokenizer cuts them."""
    return _PIECES.findall(text.lower())


def _byte_characters() -> list[str]:
    """The 256 printable stand-ins of byte-level tokenizers, "!" first, so that its id is 0 as in SDXL."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) for b in plain] + [chr(256 + i) for i in range(256 - len(plain))]


def _merges(words: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, most frequent first, until each word is a single token."""
    split = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    merges: list[tuple[str, str]] = []
    while True:
        pairs = Counter(pair for parts in split.values() for pair in zip(parts, parts[1:], strict=False))
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word, parts in split.items():
            split[word] = _joined(parts, best)


def _joined(parts: list[str], pair: tuple[str, str]) -> list[str]:
    out: list[str] = []
    for part in parts:
        if out and (out[-1], part) == pair:
            out[-1] += part
        else:
            out.append(part)
    return out


def vocabulary(words: Iterable[str]) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Token → id and merges, for the pieces of all ``words``."""
    known = sorted({piece for word in words for piece in pieces(word) if len(piece) > 1})
    merges = _merges(known)
    characters = _byte_characters()
    tokens = [*characters, *(c + "</w>" for c in characters), *(a + b for a, b in merges), START, END]
    return {token: index for index, token in enumerate(dict.fromkeys(tokens))}, merges


def tokenizers(words: Iterable[str]) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """The two tokenizers of an SDXL pipeline: the first pads with the end token, the second with "!" (id 0)."""
    from transformers import CLIPTokenizer

    vocab, merges = vocabulary(words)
    first, second = (
        CLIPTokenizer(
            vocab=vocab,
            merges=merges,
            unk_token=END,
            bos_token=START,
            eos_token=END,
            pad_token=pad,
            model_max_length=CONTEXT,
        )
        for pad in (END, "!")
    )
    return first, second


def save_tokenizers(folder: Path, words: Iterable[str]) -> None:
    """Write ``tokenizer`` and ``tokenizer_2`` into a pipeline's folder, and ``words.json`` with all known pieces."""
    words = list(words)
    vocab, merges = vocabulary(words)
    for name, tokenizer in zip(("tokenizer", "tokenizer_2"), tokenizers(words), strict=True):
        tokenizer.save_pretrained(folder / name)
        (folder / name / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
        lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges)]
        (folder / name / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    known = sorted({piece for word in words for piece in pieces(word)})
    (folder / "words.json").write_text(json.dumps(known), encoding="utf-8")


def encode(caption: str, vocab: dict[str, int]) -> list[int]:
    """Token ids of a caption of known words, end-padded to 77: quickly what the first tokenizer gives."""
    ids = [vocab[START], *(vocab[piece + "</w>"] for piece in pieces(caption)), vocab[END]]
    if len(ids) > CONTEXT:
        raise ValueError(f"caption has {len(ids)} tokens, more than {CONTEXT}: {caption}")
    return ids + [vocab[END]] * (CONTEXT - len(ids))
