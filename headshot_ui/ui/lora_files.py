"""LoRA files from elsewhere that were added on the page, kept with the person so that pictures can be made again.

Files put into that folder by hand are offered too. No gradio.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from headshot_ui import families
from headshot_ui.errors import ModelError, SpecError
from headshot_ui.generation.loras import TRIGGER_KEYS
from headshot_ui.store import Store, atomic_file, check_free_space, sha256_of

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo

FOLDER = "loras"  # in the person's folder
ENDING = ".safetensors"


def lora_files(store: Store, person: str) -> tuple[Path, ...]:
    """By name; () where there are none."""
    if not person:
        return ()
    return tuple(sorted(path for path in (store.person_dir(person) / FOLDER).glob(f"*{ENDING}") if path.is_file()))


def find_lora(store: Store, person: str, name: str, info: BaseInfo) -> Path:
    """The file of that name, looked at once more. Raises SpecError for "lora"."""
    path = next((path for path in lora_files(store, person) if path.name == name), None)
    if path is None:
        raise SpecError("lora", f"The LoRA file “{name}” is no longer there: add it again, or choose another.")
    _check(path, info)
    return path


def add_lora(store: Store, person: str, upload: Path, info: BaseInfo | None) -> Path:
    """Keep a copy of an uploaded file that fits the base; equal files are kept once.

    Raises SpecError for "lora" or "person" with what is wrong and what to do, and StoreError.
    """
    if not person:
        raise SpecError("person", "Choose a person at the top of the page, or add one: the file is kept with them.")
    if info is None:
        raise SpecError("lora", "Choose a base model first: whether a LoRA fits depends on it.")
    if upload.suffix.lower() != ENDING:
        raise SpecError("lora", f"“{upload.name}” is no {ENDING} file: choose one, for others can hide programs.")
    _check(upload, info)
    digest = sha256_of(upload)
    there = next((path for path in lora_files(store, person) if sha256_of(path) == digest), None)
    if there is not None:
        return there
    kept = _free_name(store.person_dir(person) / FOLDER, upload.stem)
    check_free_space(kept, upload.stat().st_size)
    with atomic_file(kept) as temporary:
        shutil.copyfile(upload, temporary)
    return kept


def _check(path: Path, info: BaseInfo) -> None:
    try:
        families.check_lora(path, info)
    except ModelError as error:
        # Where an upload lies meanwhile is nothing that anybody has to know.
        raise SpecError("lora", str(error).replace(str(path), f"“{path.name}”")) from error


def _free_name(folder: Path, stem: str) -> Path:
    numbered = (folder / f"{stem}{f'-{number}' if number > 1 else ''}{ENDING}" for number in range(1, 10_000))
    return next(path for path in numbered if not path.exists())


def about_lora(path: Path) -> str:
    """What should be known of a file that fits: the word it was trained with."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
    except (OSError, SafetensorError):  # said where the file is used
        return ""
    word = next((header[key] for key in TRIGGER_KEYS if header.get(key)), "")
    if word:
        return f"“{path.name}” fits this base model. Its word “{word}” is put in the place of {{subject}}."
    return (
        f"“{path.name}” fits this base model. It does not say which word it was trained with: if its author names one, "
        "write it in your own words."
    )
