"""Write the CLIP vocabulary into the published SDXL configs, from the merges that OpenAI published with CLIP.

    pip download --no-deps open_clip_torch
    unzip -p open_clip_torch-*.whl open_clip/bpe_simple_vocab_16e6.txt.gz > merges.gz
    python tools/clip_vocabulary.py merges.gz

SDXL's two tokenizers have one vocabulary and differ in the token they fill up with (``tokenizer_config.json``). The
files must have the SHA-256 sums with which the same files are published beside CLIP and SDXL; nothing else is written.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "headshot_ui" / "families" / "sdxl_parts" / "published" / "base"
MERGES = 49152 - 256 - 2  # the file holds more of them than CLIP was trained with
SHA256 = {
    "merges.txt": "9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
    "vocab.json": "5047b556ce86ccaf6aa22b3ffccfc52d391ea4accdab9c2f2407da5b742d4363",
}


def byte_letters() -> list[str]:
    """The letter that stands for each of the 256 bytes, in CLIP's order: printable ones stand for themselves."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(others)]


def vocabulary(merges: list[str]) -> dict[str, int]:
    """Token → id: bytes, bytes that end a word, merged pairs, and the two marks around a text."""
    letters = byte_letters()
    pairs = [merge.replace(" ", "") for merge in merges]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *pairs, "<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}


def main() -> None:
    lines = gzip.decompress(Path(sys.argv[1]).read_bytes()).decode("utf-8").splitlines()
    merges = lines[1 : MERGES + 1]
    files = {
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
        "vocab.json": json.dumps(vocabulary(merges), ensure_ascii=False, separators=(",", ":")),
    }
    for name, text in files.items():
        data = text.encode("utf-8")
        if hashlib.sha256(data).hexdigest() != SHA256[name]:
            raise SystemExit(f"{name} would not be CLIP's own: nothing was written.")
        for folder in ("tokenizer", "tokenizer_2"):
            (FOLDER / folder / name).write_bytes(data)


if __name__ == "__main__":
    main()
