"""Recipes: settings that belong together, as data files. They fill in what a person leaves open, and nothing else.

A recipe is one JSON file. The shipped ones lie in this folder; a person's own lie in ``outputs/recipes`` and replace
a shipped one of the same id. In a request a person's own setting counts first, then the recipe's, then the base
model's. Base models know nothing of recipes: a recipe says for which it is meant.
"""

from __future__ import annotations

import dataclasses
import json
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from headshot_ui.errors import SpecError, StoreError
from headshot_ui.specs import GenerateSpec, PrepareSpec, Spec, TrainSpec

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.settings import Settings

DEFAULT = "default"  # says nothing, so that the base model's own settings count
_SHIPPED = Path(__file__).resolve().parent
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
#: Fields that may be None and are no matter of a recipe: which run, file or model, what is kept, what the memory needs.
_NEVER = frozenset({"recipe", "run", "held_out", "lora", "keep_best", "gradient_checkpointing",
                    "refine", "refiner", "refiner_switch", "refiner_strength", "guided_share"})  # fmt: skip

#: Of which a person says only one: who set the one is not given the recipe's other.
_EITHER = ({"size_px", "resolutions"},)

Value = bool | int | float | str | tuple[int, ...]
Request = TypeVar("Request", PrepareSpec, TrainSpec, GenerateSpec)
#: Requests a recipe can fill, by its part, each with what must be there besides.
_PARTS: Mapping[str, tuple[type[Spec], Mapping[str, Any]]] = {
    "prepare": (PrepareSpec, {"photos": ["any"]}),
    "train": (TrainSpec, {}),
    "generate": (GenerateSpec, {}),
}


@dataclass(frozen=True)
class Recipe:
    """One set of settings; ``prepare``, ``train`` and ``generate`` by the names of the fields of those requests."""

    id: str
    title: str
    note: str  # one sentence for people
    families: tuple[str, ...] = ()  # of base models; () means any
    not_for: tuple[str, ...] = ()  # ids of base models of those families
    demo: bool = True  # also for the small models that only show how everything works
    prepare: Mapping[str, Value] = field(default_factory=dict)
    train: Mapping[str, Value] = field(default_factory=dict)
    generate: Mapping[str, Value] = field(default_factory=dict)

    def suits(self, info: BaseInfo) -> bool:
        """Whether the recipe is meant for this base model, which learns from pictures as large as it asks for."""
        own_kind = (not self.families or info.family in self.families) and info.id not in self.not_for
        return own_kind and (self.demo or not info.demo) and self._largest_px() <= info.size_px

    def _largest_px(self) -> int:
        size, several = self.train.get("size_px", 0), self.train.get("resolutions", ())
        return max([size if isinstance(size, int) else 0, *(several if isinstance(several, tuple) else ())])


def load_recipes(settings: Settings | None = None) -> dict[str, Recipe]:
    """All recipes by id: "default" first, the other shipped ones, then the person's own under ``outputs/recipes``.

    Raises StoreError naming the file that cannot be used and what is wrong in it.
    """
    recipes: dict[str, Recipe] = {}
    own = [] if settings is None else sorted((Path(settings.outputs_dir) / "recipes").glob("*.json"))
    for path in (*sorted(_SHIPPED.glob("*.json")), *own):
        recipe = read_recipe(path)
        recipes[recipe.id] = recipe
    return recipes


def find_recipe(recipe_id: str | None, info: BaseInfo, recipes: Mapping[str, Recipe]) -> Recipe:
    """The recipe of that id, None being "default". Raises SpecError listing those there are for this base model."""
    wanted = recipe_id or DEFAULT
    suitable = ", ".join(name for name, recipe in recipes.items() if recipe.suits(info))
    if wanted not in recipes:
        raise SpecError("recipe", f"There is no recipe “{wanted}”; choose from {suitable}.")
    if not recipes[wanted].suits(info):
        raise SpecError("recipe", f"The recipe “{wanted}” is not meant for “{info.title}”; choose from {suitable}.")
    return recipes[wanted]


def with_recipe(spec: Request, info: BaseInfo, recipes: Mapping[str, Recipe]) -> Request:
    """The request with what its recipe says wherever it says nothing itself, and the recipe's id. Raises SpecError."""
    recipe = find_recipe(spec.recipe, info, recipes)
    said: Mapping[str, Value] = next(getattr(recipe, part) for part, (kind, _) in _PARTS.items() if type(spec) is kind)
    set_by_person = {entry.name for entry in dataclasses.fields(spec) if getattr(spec, entry.name) is not None}
    covered = set_by_person.union(*(either for either in _EITHER if either & set_by_person))
    filled: dict[str, Any] = {name: value for name, value in said.items() if name not in covered}
    return dataclasses.replace(spec, recipe=recipe.id, **filled)


# --- files ----------------------------------------------------------------------------------------
def read_recipe(path: Path) -> Recipe:
    """One recipe file. Raises StoreError naming the file, what is wrong in it and what to do."""
    try:
        return _from_json(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise StoreError(f"The recipe file {path} cannot be read ({error.strerror}); check its permissions.") from error
    except ValueError as error:  # JSON and Unicode errors are ValueErrors too
        problem = "it is not valid JSON" if isinstance(error, json.JSONDecodeError | UnicodeDecodeError) else str(error)
        raise StoreError(f"The recipe file {path} cannot be used: {problem}. Correct the file or remove it.") from error


def _from_json(data: Any) -> Recipe:
    """Raises ValueError with half a sentence about what is wrong."""
    known = {entry.name for entry in dataclasses.fields(Recipe)}
    if not isinstance(data, dict):
        raise ValueError("it must be a JSON object in braces")
    for name in data:
        if name not in known:
            raise ValueError(f"“{name}” is not known")
    for name in ("id", "title", "note"):
        if not isinstance(data.get(name), str) or not data[name].strip():
            raise ValueError(f"“{name}” is missing or is not text")
    if not _ID.fullmatch(data["id"]):
        raise ValueError(f"“{data['id']}” is not an id of small letters, digits and -")
    families, not_for, demo = data.get("families", []), data.get("not_for", []), data.get("demo", True)
    for name, names in (("families", families), ("not_for", not_for)):
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise ValueError(f"“{name}” is not a list of names")
    if not isinstance(demo, bool):
        raise ValueError("“demo” is neither true nor false")
    said = {part: _said(kind, data, part, others) for part, (kind, others) in _PARTS.items()}
    title, note = data["title"].strip(), data["note"].strip()
    return Recipe(data["id"], title, note, tuple(families), tuple(not_for), demo, **said)


def _said(kind: type[Spec], data: dict[str, Any], part: str, others: Mapping[str, Any]) -> dict[str, Value]:
    """Settings of one kind of request. Raises ValueError for one that a recipe cannot make, or a wrong value."""
    said = data.get(part, {})
    if not isinstance(said, dict):
        raise ValueError(f"“{part}” must be a JSON object in braces")
    open_fields = {entry.name for entry in dataclasses.fields(kind) if entry.default is None} - _NEVER
    hints = typing.get_type_hints(kind)
    for name, value in said.items():
        if name not in open_fields:
            raise ValueError(f"“{name}” in “{part}” is no setting of a recipe")
        if not _is_of(typing.get_args(hints[name]), value):
            raise ValueError(f"“{name}” in “{part}” is of the wrong kind")
    said = {name: tuple(value) if isinstance(value, list) else value for name, value in said.items()}
    try:
        kind.from_json({"person": "anybody", "base": "any", **others, **said})
    except SpecError as error:
        raise ValueError(str(error).rstrip(".")) from error
    return said


def _is_of(kinds: tuple[Any, ...], value: Any) -> bool:
    """Whether a JSON value is of one of the declared kinds; a whole number may stand for any number."""
    if isinstance(value, list):
        items = [typing.get_args(kind)[0] for kind in kinds if typing.get_origin(kind) is tuple]
        return bool(items) and all(type(each) is items[0] for each in value)
    return type(value) in kinds or (type(value) is int and float in kinds)
