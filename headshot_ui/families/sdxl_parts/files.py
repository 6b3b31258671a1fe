"""Is a folder with SDXL in diffusers layout complete? Asked before loading, because loaders mind too little."""

from __future__ import annotations

from pathlib import Path

from headshot_ui.families.shared_parts.files import check_safetensors, read_json_file, weight_files
from headshot_ui.families.shared_parts.words import check_tokenizer

_MODELS = ("unet", "vae", "text_encoder", "text_encoder_2")
#: Folder below the models folder with the VAE of SDXL whose weights were made smaller so that float16 holds what it
#: computes. It decodes to the same pictures but for the last bits.
SAFE_VAE = "sdxl-vae-fp16-fix"
_TOKENIZERS = ("tokenizer", "tokenizer_2")
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
