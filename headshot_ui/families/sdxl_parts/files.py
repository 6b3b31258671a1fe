"""Is a folder in diffusers layout complete? Asked before loading, because loaders mind too little.

Without ``tokenizer.json`` transformers builds an empty tokenizer and draws nonsense; without weights
diffusers looks for pickles; missing tensors are filled with random numbers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import AGAIN, weights_fault

_MODELS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
}
#: Folder below the models folder with the VAE of SDXL whose weights were made smaller so that float16 holds what it
#: computes. It decodes to the same pictures but for the last bits.
SAFE_VAE = "sdxl-vae-fp16-fix"
_TOKENIZERS = ("tokenizer", "tokenizer_2")
CLIP_TOKENS = 77
_PUBLISHED = Path(__file__).parent / "published"


def published(name: str) -> Path:
    """The folder with Stability's configs of "base" or "refiner", which ship with the program."""
    return _PUBLISHED / name


def check_files(folder: Path, weights: bool = True) -> None:
    """Raise ModelError for the first file of an SDXL folder that is missing, cut short or unreadable.

    Without ``weights`` those are not looked for: they are in a checkpoint elsewhere.
    """
    read_json_file(folder / "model_index.json")
    read_json_file(folder / "scheduler" / "scheduler_config.json")
    for part in _MODELS:
        read_json_file(folder / part / "config.json")
        for path in weight_files(folder, part) if weights else ():
            check_safetensors(path)
    for part in _TOKENIZERS:
        check_tokenizer(folder / part)


def _stem(part: str) -> str:
    return _MODELS.get(part, _MODELS["vae"])  # the safe VAE has a folder of its own name


def variant_of(folder: Path, part: str) -> str | None:
    """ "fp16" when a part has its weights only under that name, as half-precision downloads do."""
    stem = _stem(part)
    plain = (folder / part / f"{stem}.safetensors", folder / part / f"{stem}.safetensors.index.json")
    half = (folder / part / f"{stem}.fp16.safetensors", folder / part / f"{stem}.safetensors.index.fp16.json")
    return "fp16" if not any(path.is_file() for path in plain) and any(path.is_file() for path in half) else None


def weight_files(folder: Path, part: str) -> tuple[Path, ...]:
    """The safetensors files of a part: one, or the shards that its index names. Raises ModelError."""
    middle = ".fp16" if variant_of(folder, part) else ""
    index = folder / part / f"{_stem(part)}.safetensors.index{middle}.json"
    if index.is_file():
        shards = read_json_file(index).get("weight_map", {}).values()
        return tuple(folder / part / name for name in sorted(set(shards)))
    return (folder / part / f"{_stem(part)}{middle}.safetensors",)


def read_json_file(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError naming the file when it is missing or damaged."""
    _must_exist(path)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {AGAIN}.") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is damaged: {AGAIN}.")
    return data


def check_safetensors(path: Path) -> None:
    """Raise ModelError unless a safetensors file is as long as its header says. Reads the header only."""
    if not path.is_file():
        pickle = next((pickle for pickle in _pickles_of(path) if pickle.is_file()), None)
        if pickle is not None:
            raise ModelError(
                f"{path} is missing and {pickle.name}, a pickle that could run any program, is not opened: "
                "get the .safetensors version of this model."
            )
    _must_exist(path)
    fault = weights_fault(path)
    if fault:
        raise ModelError(f"{path} is {fault}: {AGAIN}.")


def _pickles_of(path: Path) -> tuple[Path, ...]:
    """What the same weights are called as a pickle."""
    stem = path.name.removesuffix(".safetensors")
    names = (stem, "pytorch_" + stem, stem.removesuffix(".fp16"), "pytorch_" + stem.removesuffix(".fp16"))
    return tuple(path.with_name(f"{name}.bin") for name in names)


def check_tokenizer(folder: Path) -> None:
    """Raise ModelError for the first file of a tokenizer that is missing or damaged."""
    read_json_file(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        read_json_file(folder / "tokenizer.json")
        return
    if not (folder / "vocab.json").is_file():
        raise ModelError(f"{folder / 'tokenizer.json'} is missing: {AGAIN}.")
    read_json_file(folder / "vocab.json")
    _must_exist(folder / "merges.txt")


def _must_exist(path: Path) -> None:
    if not path.is_file():
        raise ModelError(f"{path} is missing: {AGAIN}.")
