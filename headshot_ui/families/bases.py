"""``base.json`` and ``refiner.json``: what a person is told about a model, beside its weights."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui.errors import ModelError
from headshot_ui.families.folders import model_folders
from headshot_ui.families.protocol import BaseDefaults, BaseInfo, RefinerInfo
from headshot_ui.gguf_files import SUFFIX, gguf_fault
from headshot_ui.specs import REFINE_WAYS, TIMESTEP_DENSITIES
from headshot_ui.wording import how_to_get

if TYPE_CHECKING:
    from headshot_ui.settings import Settings

BASE_FILE, REFINER_FILE = "base.json", "refiner.json"
WAITING = ".waiting"  # behind the name of such a file while a download of the others has not ended
NOT_ENDED = "has not ended, and goes on where it stopped"
AGAIN = "put a complete copy of this model there"
#: Fields that no file says: they follow from where the weights lie.
_NOT_SAID = {"folder", "checkpoint", "checkpoint_parts", "borrowed"}
#: Files that Python would have to execute; a LoRA in one is refused.
PICKLES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")


def find_bases(family: str, settings: Settings) -> tuple[BaseInfo, ...]:
    """Base models of one family under ``settings.models_dir``, by path; damaged ``base.json`` are left out."""
    found = []
    for path in _files(BASE_FILE, settings):
        try:
            info = read_base(path)
        except ModelError:
            continue  # told by damaged_base_files: one bad folder must not hide the good ones
        if info.family == family:
            found.append(info)
    return tuple(found)


def find_refiners(family: str, settings: Settings) -> tuple[RefinerInfo, ...]:
    """Refiners of one family under ``settings.models_dir``, by path; damaged ``refiner.json`` are left out."""
    found = []
    for path in _files(REFINER_FILE, settings):
        try:
            info = read_refiner(path)
        except ModelError:
            continue  # told by refiner_not_found
        if info.family == family:
            found.append(info)
    return tuple(found)


def base_not_found(base_id: str, known: Iterable[str], settings: Settings) -> ModelError:
    """Why there is no base model of that id, and what to do."""
    for path in _files(BASE_FILE, settings):
        try:
            info = read_base(path)
        except ModelError as error:
            if f'"{base_id}"' in _text(path):
                return error
            continue
        if info.id == base_id:
            return ModelError(
                f"The base model “{base_id}” is of the kind “{info.family}”, which this version does not know: "
                "update the program, or choose another base model."
            )
    if _is_waiting(BASE_FILE, base_id, settings):
        return ModelError(f"The download of the base model “{base_id}” {NOT_ENDED}: {how_to_get(base_id)}.")
    here = f"There is no base model “{base_id}” in {settings.models_dir}"
    damaged = ", ".join(str(path) for path in damaged_base_files(settings))
    if damaged:
        here += f", but these could not be read: {damaged}"
    names = ", ".join(known)
    if names:
        return ModelError(
            f"{here}; choose one of those found: {names}. “python3 app.py models list” shows what can be downloaded."
        )
    return ModelError(f"{here}: none can be used; get a complete copy of the program, or set --models.")


def refiner_not_found(refiner_id: str | None, base: BaseInfo, settings: Settings) -> ModelError:
    """Why there is no refiner of that id (None: none at all) for this base, and what to do."""
    if refiner_id and _is_waiting(REFINER_FILE, refiner_id, settings):
        return ModelError(f"The download of the refiner “{refiner_id}” {NOT_ENDED}: {how_to_get(refiner_id)}.")
    which = f"no refiner “{refiner_id}”" if refiner_id else "no refiner"
    text = f"There is {which} for “{base.title}” in {settings.models_dir}"
    damaged = []
    for path in _files(REFINER_FILE, settings):
        try:
            read_refiner(path)
        except ModelError as error:
            if refiner_id and f'"{refiner_id}"' in _text(path):
                return error
            damaged.append(str(path))
    if damaged:
        text += f", but these could not be read: {', '.join(damaged)}"
    return ModelError(f"{text}: put one there, or draw without refining.")


def _is_waiting(name: str, model_id: str, settings: Settings) -> bool:
    """Whether a download, or the repair of one, has begun to put that model there."""
    for path in _files(name + WAITING, settings):
        with suppress(ModelError):
            if read_object(path).get("id") == model_id:
                return True
    return False


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def pickled_lora(path: str | Path) -> ModelError:
    """Why a LoRA in a pickle is not opened, and what to do."""
    return ModelError(
        f"{path} is a pickle file, which can run programs of its maker when it is opened: take the .safetensors file "
        "of this LoRA, or have it converted by somebody you trust."
    )


def weights_fault(path: Path) -> str:
    """What is wrong with a safetensors or GGUF file, in a few words; "" when it is as long as its header says.

    safetensors' layout: 8 bytes little-endian header length, JSON header with ``data_offsets``, then the data. Reads
    no tensor.
    """
    if path.suffix.lower() == SUFFIX:
        return gguf_fault(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(min(length, size)))
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return "damaged"
    expected = 8 + length + max(ends, default=0)
    return "" if size == expected else f"damaged ({size} bytes instead of {expected})"


def damaged_weights(info: BaseInfo | RefinerInfo) -> tuple[Path, ...]:
    """Every weight file of a model that was cut short or overwritten."""
    return tuple(path for path in all_weights(info) if weights_fault(path))


def all_weights(info: BaseInfo | RefinerInfo) -> tuple[Path, ...]:
    """Every weight file of a model, without those that it borrows."""
    return tuple(sorted(info.folder.rglob("*.safetensors"))) if info.checkpoint is None else (info.checkpoint,)


def damaged_base_files(settings: Settings) -> tuple[Path, ...]:
    """Every ``base.json`` that cannot be read."""
    damaged = []
    for path in _files(BASE_FILE, settings):
        try:
            read_base(path)
        except ModelError:
            damaged.append(path)
    return tuple(damaged)


def read_base(path: Path) -> BaseInfo:
    """Read one ``base.json``. Raises ModelError saying what is wrong with it."""
    data = read_object(path)
    defaults = BaseDefaults(**_checked(BaseDefaults, data.pop("defaults", {}), path))
    _check_defaults(defaults, path)
    return BaseInfo(**_complete(BaseInfo, data | {"defaults": defaults}, path))


def read_refiner(path: Path) -> RefinerInfo:
    """Read one ``refiner.json``. Raises ModelError saying what is wrong with it."""
    return RefinerInfo(**_complete(RefinerInfo, read_object(path), path))


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ModelError naming the file when it cannot be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is damaged: {AGAIN}.") from error
    if not isinstance(data, dict):
        raise ModelError(f"{path} is damaged: {AGAIN}.")
    return data


def _complete(kind: type, data: dict[str, Any], path: Path) -> dict[str, Any]:
    """The fields of a dataclass of models, with its folder; all that have no default must be there."""
    fields = _checked(kind, data, path) | {"folder": path.parent}
    for field in dataclasses.fields(kind):
        needed = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if needed and field.name not in fields:
            raise ModelError(f"The entry “{field.name}” is missing in {path}: {AGAIN}.")
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _check_defaults(defaults: BaseDefaults, path: Path) -> None:
    """What requests ask of the same settings."""
    usable = {
        "refine": defaults.refine in REFINE_WAYS,
        "refiner_switch": 0.05 <= defaults.refiner_switch <= 0.95,
        "refiner_strength": 0.01 <= defaults.refiner_strength <= 1,
    }
    usable["timestep_density"] = defaults.timestep_density in TIMESTEP_DENSITIES
    usable["training_guidance"] = 0 <= defaults.training_guidance <= 30
    for name, good in usable.items():
        if not good:
            raise ModelError(f"“{name}” in {path} is not usable: {AGAIN}.")


def _checked(kind: type, data: Any, path: Path) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(kind)} - _NOT_SAID
    if not isinstance(data, dict):
        raise ModelError(f"{path} is damaged: {AGAIN}.")
    unknown = sorted(set(data) - known)
    if unknown:
        raise ModelError(f"{path} has an entry “{unknown[0]}” that this version does not know: update the program.")
    hints = typing.get_type_hints(kind)
    for name, value in data.items():
        if not _fits(value, hints[name]):
            raise ModelError(f"“{name}” in {path} is not usable: {AGAIN}.")
    return data


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a declared type; whole numbers may stand for fractions, never true for 1."""
    if typing.get_origin(hint) is tuple:
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    kinds = typing.get_args(hint) or (hint,)
    if isinstance(value, bool):
        return bool in kinds
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)


def _files(name: str, settings: Settings) -> list[Path]:
    return sorted(folder / name for folder, files in model_folders(settings.models_dir) if name in files)
