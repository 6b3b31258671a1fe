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
from headshot_ui.specs import GenerateSpec, Spec, TrainSpec

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.settings import Settings

DEFAULT = "default"  # says nothing, so that the base model's own settings count
_SHIPPED = Path(__file__).resolve().parent
_ID = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
#: Fields that may be None and are no matter of a recipe: which run, file or model, what is kept, what the memory needs.
_NEVER = frozenset({"recipe", "run", "lora", "keep_best", "gradient_checkpointing",
                    "refine", "refiner", "refiner_switch", "refiner_strength"})  # fmt: skip

Value = bool | int | float | str
Request = TypeVar("Request", TrainSpec, GenerateSpec)


@dataclass(frozen=True)
class Recipe:
    """One set of settings; ``train`` and ``generate`` by the names of the fields of those requests."""

    id: str
    title: str
    note: str  # one sentence for people
    families: tuple[str, ...] = ()  # of base models; () means any
    demo: bool = True  # also for the small models that only show how everything works
    train: Mapping[str, Value] = field(default_factory=dict)
    generate: Mapping[str, Value] = field(default_factory=dict)

    def suits(self, info: BaseInfo) -> bool:
        """Whether the recipe is meant for this base model, which learns from pictures as large as it asks for."""
        size = self.train.get("size_px", 0)
        own_kind = not self.families or info.family in self.families
        return own_kind and (self.demo or not info.demo) and isinstance(size, int) and size <= info.size_px


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
    said = recipe.train if isinstance(spec, TrainSpec) else recipe.generate
    filled: dict[str, Any] = {name: value for name, value in said.items() if getattr(spec, name) is None}
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
    families, demo = data.get("families", []), data.get("demo", True)
    if not isinstance(families, list) or not all(isinstance(name, str) for name in families):
        raise ValueError("“families” is not a list of names")
    if not isinstance(demo, bool):
        raise ValueError("“demo” is neither true nor false")
    train, generate = _said(TrainSpec, data, "train"), _said(GenerateSpec, data, "generate")
    return Recipe(data["id"], data["title"].strip(), data["note"].strip(), tuple(families), demo, train, generate)


def _said(kind: type[Spec], data: dict[str, Any], part: str) -> dict[str, Value]:
    """Settings of one kind of request. Raises ValueError for one that a recipe cannot make, or a wrong value."""
    said = data.get(part, {})
    if not isinstance(said, dict):
        raise ValueError(f"“{part}” must be a JSON object in braces")
    open_fields = {entry.name for entry in dataclasses.fields(kind) if entry.default is None} - _NEVER
    hints = typing.get_type_hints(kind)
    for name, value in said.items():
        if name not in open_fields:
            raise ValueError(f"“{name}” in “{part}” is no setting of a recipe")
        kinds = typing.get_args(hints[name])
        if type(value) not in kinds and not (type(value) is int and float in kinds):
            raise ValueError(f"“{name}” in “{part}” is of the wrong kind")
    try:
        kind.from_json({"person": "anybody", "base": "any", **said})
    except SpecError as error:
        raise ValueError(str(error).rstrip(".")) from error
    return said
