"""Is a folder with FLUX.1 in diffusers layout complete? Asked before loading, because loaders mind too little.

A shard that is missing, or that holds other tensors than the index says, is found here from headers alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import AGAIN
from headshot_ui.families.shared_parts.files import check_safetensors, read_json_file, weight_files
from headshot_ui.memory import read_header

TRANSFORMER, VAE, CLIP, T5 = "transformer", "vae", "text_encoder", "text_encoder_2"
WEIGHTS = (TRANSFORMER, VAE, CLIP, T5)
CLIP_WORDS, T5_WORDS = "tokenizer", "tokenizer_2"
#: Tokens that T5 reads, by Black Forest Labs' own program (``src/flux/cli.py``: 256 for schnell, else 512).
T5_TOKENS, T5_TOKENS_FEW_STEPS = 512, 256
#: Places of an encoder that a tokenizer may have no words for: T5's 100 marks, and what fills up to a multiple of 128.
_SPARE = 228
#: Number formats that weights may be stored in; others are shortened for other programs.
_WHOLE = frozenset({"F32", "F16", "BF16"})


def cell_px(vae_config: Mapping[str, Any]) -> int:
    """Pixels per side of one latent cell, by the config of a VAE."""
    return int(2 ** (len(vae_config["block_out_channels"]) - 1))


def check_files(folder: Path, weights: Collection[str] = WEIGHTS) -> None:
    """Raise ModelError for the first file that is missing, cut short or unreadable.

    ``weights``: the parts whose weights must be there too; those of the others are in a file elsewhere.
    """
    read_json_file(folder / "model_index.json")
    read_json_file(folder / "scheduler" / "scheduler_config.json")
    for part in WEIGHTS:
        config = read_json_file(folder / part / "config.json")
        if part not in weights:
            continue
        if config.get("quantization_config"):
            raise ModelError(_shortened(folder / part))
        check_weights(folder, part)


def check_weights(folder: Path, part: str) -> None:
    """Raise ModelError unless all files of a part are whole and hold what their index says, no less and no more."""
    held: dict[str, str] = {}  # tensor → file
    for path in weight_files(folder, part):
        check_safetensors(path)
        tensors = read_header(path)
        if {tensor.dtype for tensor in tensors} - _WHOLE:
            raise ModelError(_shortened(path))
        held |= {tensor.name: path.name for tensor in tensors}
    index = next((folder / part).glob("*.safetensors.index*.json"), None)
    if index is None:
        return
    said = read_json_file(index).get("weight_map", {})
    wrong = sorted(name for name in said.keys() | held.keys() if said.get(name) != held.get(name))
    if wrong:
        where = f"is not in {said[wrong[0]]}, where" if wrong[0] in said else f"is in {held[wrong[0]]}, but not where"
        raise ModelError(f"The tensor “{wrong[0]}” {where} {index} looks for it: {AGAIN}.")


def _shortened(path: Path) -> str:
    return f"{path} is stored in fewer than 16 bits a number, for other programs: get the bfloat16 version of FLUX.1."


# --- words --------------------------------------------------------------------------------------------
def check_t5_words(folder: Path) -> None:
    """Raise ModelError unless the second tokenizer has the words, length, end and filling of its T5.

    T5's own has 32000 words and 100 marks, and its encoder room for 32128, a multiple of 128. Without
    ``tokenizer.json`` transformers makes a tokenizer of four words, and draws.
    """
    place, encoder = folder / T5_WORDS, read_json_file(folder / T5 / "config.json")
    length = read_json_file(place / "tokenizer_config.json").get("model_max_length")
    words, known = t5_vocabulary(place), encoder.get("vocab_size")
    if not isinstance(known, int) or not known // 2 <= len(words) <= known or known - len(words) > _SPARE:
        raise ModelError(
            f"The tokenizer in {place} has {len(words)} words, but its text encoder knows {known}: {AGAIN}."
        )
    if not isinstance(length, int) or not 1 < length <= T5_TOKENS:
        raise ModelError(
            f"The tokenizer in {place} cuts texts at {length} tokens instead of {T5_TOKENS} at most: {AGAIN}."
        )
    for token, entry, what in (("</s>", "eos_token_id", "marks the end of"), ("<pad>", "pad_token_id", "fills up")):
        if words.get(token) != encoder.get(entry, {"eos_token_id": 1, "pad_token_id": 0}[entry]):
            raise ModelError(f"The tokenizer in {place} {what} a text otherwise than its text encoder: {AGAIN}.")


def t5_vocabulary(tokenizer: Path) -> dict[str, int]:
    """Token → number. Raises ModelError for a missing or damaged ``tokenizer.json``."""
    path = tokenizer / "tokenizer.json"
    data = read_json_file(path)
    try:
        words = {entry[0]: number for number, entry in enumerate(data["model"]["vocab"])}
        return words | {token["content"]: int(token["id"]) for token in data.get("added_tokens") or ()}
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise ModelError(f"{path} is damaged: {AGAIN}.") from error
