"""Which LoRA file a request means, and what the person is called in prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headshot_ui.errors import ModelError, SpecError
from headshot_ui.families.bases import PICKLES, pickled_lora
from headshot_ui.families.protocol import BaseInfo
from headshot_ui.runs import find_run, latest_run
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import Store, read_json, sha256_of

LATEST = "latest"
#: Header entries that name the trigger word: ours, then the one other programs write.
TRIGGER_KEYS = ("trigger", "modelspec.trigger_phrase")
CLASS_WORD_KEYS = ("class_word",)
#: Header entries that name the base model a LoRA was trained on: ours, then kohya's.
BASE_KEYS = ("base", "ss_sd_model_name")


@dataclass(frozen=True)
class ChosenLora:
    """One LoRA file that is there."""

    name: str  # what ``GenerateSpec.lora`` says to mean exactly this file: never "latest"
    path: Path
    sha256: str
    metadata: Mapping[str, str]


def choose_lora(spec: GenerateSpec, store: Store) -> ChosenLora | None:
    """The file behind ``spec.lora``; None for the bare base.

    Raises SpecError when there is none, StoreError for an unknown run, ModelError when the run is for another
    base or the file is damaged. Whether the file fits the base is checked where it is put on the model.
    """
    if spec.lora is None:
        return None
    if spec.lora == LATEST:
        run = latest_run(store, spec.person, spec.base)
        if run is None or run.lora_path is None:
            raise SpecError(
                "lora", f"“{spec.person}” has no finished training for “{spec.base}” yet; train first, or choose none."
            )
        return _read(run.name, run.lora_path)
    if spec.lora.lower().endswith(".safetensors"):
        return _read(spec.lora, Path(spec.lora).expanduser())
    if spec.lora.lower().endswith(PICKLES):
        raise pickled_lora(spec.lora)
    run = find_run(store, spec.person, spec.lora)
    if run.spec.base != spec.base:
        raise ModelError(
            f"The training “{run.name}” was made for “{run.spec.base}”, not for “{spec.base}”; choose that base model."
        )
    if run.lora_path is None:
        raise SpecError("lora", f"The training “{run.name}” has no LoRA yet; resume it or choose another.")
    return _read(run.name, run.lora_path)


def check_family(lora: ChosenLora | None, info: BaseInfo) -> None:
    """Raise ModelError when the header of the LoRA says that it was trained for another family of base models."""
    family = "" if lora is None else _word(lora.metadata, "family")
    if lora is not None and family and family != info.family:
        raise ModelError(
            f"{lora.path} was trained for the family “{family}”, not for “{info.family}”: choose another LoRA."
        )


def base_note(lora: ChosenLora | None, info: BaseInfo) -> str:
    """One sentence when a LoRA says that it was trained on another base model than this one; "" otherwise.

    Models of one family share their layers, so it is used all the same.
    """
    if lora is None:
        return ""
    trained_on = _word(lora.metadata, "base_title") or _file_stem(_word(lora.metadata, *BASE_KEYS))
    same = {name.casefold() for name in (info.id, info.title, info.folder.name)}
    names = [trained_on, *(_file_stem(_word(lora.metadata, key)) for key in BASE_KEYS)]
    if not trained_on or any(name.casefold() in same for name in names if name):
        return ""
    return (
        f"The LoRA was trained on “{trained_on}” and is used with “{info.title}”: "
        "if the likeness is weaker than you hoped, draw with the base model it was trained on."
    )


def _file_stem(name: str) -> str:
    """Other programs write a file name, some a whole path of the maker's computer."""
    file = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
    return file.removesuffix(".safetensors").removesuffix(".ckpt")[:80]


def person_words(lora: ChosenLora | None, store: Store, person: str, info: BaseInfo) -> tuple[str, str]:
    """(trigger word, class word): as the LoRA was trained, else as the photos were prepared, else the base's own."""
    trigger, class_word = info.defaults.trigger, "person"
    manifest = store.dataset_dir(person) / "dataset.json"
    if manifest.is_file():
        data = read_json(manifest)
        trigger = _word(data, "trigger") or trigger
        class_word = _word(data, "class_word") or class_word
    if lora is not None:
        trigger = _word(lora.metadata, *TRIGGER_KEYS) or trigger
        class_word = _word(lora.metadata, *CLASS_WORD_KEYS) or class_word
    return trigger, class_word


def _word(data: Any, *names: str) -> str:
    """The first of these entries that is there; "" when none is."""
    values = [data.get(name) for name in names] if isinstance(data, Mapping) else []
    return next((value for value in values if isinstance(value, str) and value), "")


def _read(name: str, path: Path) -> ChosenLora:
    if not path.is_file():
        raise SpecError("lora", f"The LoRA {path} is not there; choose another or train again.")
    return ChosenLora(name, path, sha256_of(path), _metadata(path))


def _metadata(path: Path) -> Mapping[str, str]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} is damaged or is no LoRA file; choose another or train again.") from error
