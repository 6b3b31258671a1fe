"""Is a folder in diffusers layout complete? Asked before loading, because loaders mind too little.

Without ``tokenizer.json`` transformers builds an empty tokenizer and draws nonsense; without weights
diffusers looks for pickles; missing tensors are filled with random numbers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import AGAIN, read_object, weights_fault

_ENCODERS = ("text_encoder", "text_encoder_2")


def _stem(part: str) -> str:
    """What transformers and diffusers call the weights that they save."""
    return "model" if part in _ENCODERS else "diffusion_pytorch_model"


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
    must_exist(path)
    return read_object(path)


def check_safetensors(path: Path) -> None:
    """Raise ModelError unless a safetensors file is as long as its header says. Reads the header only."""
    if not path.is_file():
        pickle = next((pickle for pickle in _pickles_of(path) if pickle.is_file()), None)
        if pickle is not None:
            raise ModelError(
                f"{path} is missing and {pickle.name}, a pickle that could run any program, is not opened: "
                "get the .safetensors version of this model."
            )
    must_exist(path)
    fault = weights_fault(path)
    if fault:
        raise ModelError(f"{path} is {fault}: {AGAIN}.")


def _pickles_of(path: Path) -> tuple[Path, ...]:
    """What the same weights are called as a pickle."""
    stem = path.name.removesuffix(".safetensors")
    names = (stem, "pytorch_" + stem, stem.removesuffix(".fp16"), "pytorch_" + stem.removesuffix(".fp16"))
    return tuple(path.with_name(f"{name}.bin") for name in names)


def must_exist(path: Path) -> None:
    """Raise ModelError naming a file that is not there."""
    if not path.is_file():
        raise ModelError(f"{path} is missing: {AGAIN}.")
