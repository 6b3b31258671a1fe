"""The fields of the Train tab, made from ``TrainSpec``, and the way back from their values to a request."""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from headshot_ui.commands.spec_options import HELP
from headshot_ui.errors import HeadshotError, SpecError
from headshot_ui.families.protocol import Abilities, BaseDefaults, BaseInfo
from headshot_ui.recipes import DEFAULT, Recipe
from headshot_ui.specs import TRAIN_USUAL, TrainSpec

#: How long to train, as a share of what the base model was made for.
LENGTHS: Mapping[str, float] = {"quick": 0.5, "normal": 1.0, "long": 2.0}
#: Chosen elsewhere on the page.
_NOT_HERE = frozenset({"person", "base", "run", "recipe"})
_LABELS = {"rank": "LoRA rank", "alpha": "LoRA alpha", "min_snr_gamma": "Min-SNR gamma", "steps": "Steps",
           "size_px": "Size of the photos in pixels"}  # fmt: skip
#: Words for the values of fields that are chosen from a list.
_CHOICES = {
    "optimizer": (("AdamW in 32 bit", "adamw"), ("AdamW in 8 bit", "adamw8bit")),
    "gradient_checkpointing": (("none", "none"), ("partial", "partial"), ("full", "full")),
}
#: Who chooses where a person does not.
_OTHERWISE = {"gradient_checkpointing": "as the memory needs"}
#: ``BaseDefaults`` calls some fields otherwise.
_BASE_NAMES = {"steps": "train_steps"}


@dataclass(frozen=True)
class Field:
    """One expert setting."""

    name: str  # of the field of TrainSpec
    label: str
    help: str
    kind: type  # bool, int, float, tuple for several whole numbers, or str for one of ``choices``
    default: Any  # None: as the recipe says, else as the base model was made for
    choices: tuple[tuple[str, str], ...] = ()  # (words, value)
    otherwise: str = "as the recipe says"  # words for choosing none of them


@lru_cache(maxsize=1)
def fields() -> tuple[Field, ...]:
    """Every field of ``TrainSpec`` that is not chosen elsewhere, in its order."""
    hints = typing.get_type_hints(TrainSpec)
    return tuple(
        Field(
            field.name, _label(field.name), _help(field.name), _kind(hints[field.name]), field.default,
            _CHOICES.get(field.name, ()), _OTHERWISE.get(field.name, "as the recipe says"),
        )
        for field in dataclasses.fields(TrainSpec)
        if field.name not in _NOT_HERE
    )  # fmt: skip


def _label(name: str) -> str:
    return _LABELS.get(name, name.replace("_", " ").capitalize())


def _help(name: str) -> str:
    text = HELP[TrainSpec][name]
    return text[:1].upper() + text[1:]


def _kind(hint: Any) -> type:
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    kind: type = typing.get_origin(kinds[0]) or kinds[0]
    return kind


def is_typed(field: Field) -> bool:
    """Whether a field holds text: not a tick or a choice."""
    return field.kind is not bool and not field.choices


def means_anything(field: Field, can: Abilities) -> bool:
    """Whether a base model with these abilities takes the setting."""
    return can.weighs_by_snr or field.name != "min_snr_gamma"


def placeholder(field: Field, defaults: BaseDefaults | None) -> str:
    """What an empty field stands for."""
    if field.name == "steps":
        return "as chosen above"
    if field.name == "alpha":
        return "equal to the rank"
    if field.name == "size_px":
        return "the base model's own"
    if field.name == "resolutions":
        return "only the size above"
    value = getattr(defaults, _BASE_NAMES.get(field.name, field.name), None) if defaults else None
    value = TRAIN_USUAL.get(field.name) if value is None else value
    return "none" if value is None else value if isinstance(value, str) else f"{value:g}"


def length_choices(defaults: BaseDefaults | None, recipe: Recipe | None = None) -> list[tuple[str, str]]:
    """Choices of the length: “Normal (400 steps)” and “normal”."""
    if defaults is None:
        return [(name.capitalize(), name) for name in LENGTHS]
    return [(f"{name.capitalize()} ({steps_of(name, defaults, recipe)} steps)", name) for name in LENGTHS]


def steps_of(length: str, defaults: BaseDefaults, recipe: Recipe | None = None) -> int:
    said = recipe.train.get("steps") if recipe is not None else None
    usual = said if isinstance(said, int) else defaults.train_steps
    return max(1, round(usual * LENGTHS.get(length, 1.0)))


# --- recipes ----------------------------------------------------------------------------------------
def recipe_choices(info: BaseInfo | None, recipes: Mapping[str, Recipe]) -> list[tuple[str, str]]:
    """(title, id) of the recipes that are meant for a base model."""
    return [(recipe.title, name) for name, recipe in recipes.items() if info is not None and recipe.suits(info)]


def filled_by(recipe: Recipe | None, before: Recipe | None, values: Sequence[Any]) -> list[Any]:
    """Values of the fields after another recipe was chosen: its own settings, visibly, where nothing else is entered.

    ``before`` is the recipe that filled them last: what it put there goes away with it. Steps stay with the length.
    """
    return [
        _filled(field, value, _text_of(recipe, field), _text_of(before, field))
        for field, value in zip(fields(), values, strict=True)
    ]


def _filled(field: Field, value: Any, new: str, old: str) -> Any:
    if field.kind is bool:
        return value
    mine = "" if value is None else str(value).strip()
    return new if mine in ("", old) else value


def _text_of(recipe: Recipe | None, field: Field) -> str:
    """What a recipe puts into a field; "" where it says nothing."""
    value = recipe.train.get(field.name) if recipe is not None and field.name != "steps" else None
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return "" if value is None else value if isinstance(value, str) else f"{value:g}"


def train_request(
    person: str,
    base: str,
    defaults: BaseDefaults | None,
    length: str,
    values: Sequence[Any],
    recipe: Recipe | None = None,
) -> TrainSpec:
    """The training that was asked for; ``values`` in the order of ``fields()``, as text where they are numbers.

    Raises SpecError, whose ``field`` is one of ``fields()`` or "person".
    """
    given: dict[str, Any] = {}
    for field, value in zip(fields(), values, strict=True):
        if field.kind is bool:
            given[field.name] = bool(value) or field.default
        elif value is not None and str(value).strip():
            given[field.name] = str(value) if field.choices else _entered(field, str(value))
    if defaults is not None and "steps" not in given and length != "normal":
        given["steps"] = steps_of(length, defaults, recipe)
    if recipe is not None and recipe.id != DEFAULT:
        given["recipe"] = recipe.id
    return TrainSpec(person, base, **given)


def _entered(field: Field, text: str) -> int | float | tuple[int | float, ...]:
    """What was typed: one number, or several with blanks or commas between them. Raises SpecError."""
    if field.kind is not tuple:
        return _number(field, text)
    whole = dataclasses.replace(field, kind=int)
    return tuple(_number(whole, each) for each in text.replace(",", " ").replace(";", " ").split())


def _number(field: Field, text: str) -> int | float:
    """What was typed, with a comma or a point. Raises SpecError."""
    try:
        value = float(text.strip().replace(",", "."))
        if field.kind is int and not value.is_integer():
            raise SpecError(field.name, f"“{text.strip()}” is not a whole number: enter one, or empty the field.")
    except ValueError as error:
        raise SpecError(field.name, f"“{text.strip()}” is not a number: enter one, or empty the field.") from error
    if not math.isfinite(value):
        raise SpecError(field.name, f"“{text.strip()}” is not a number: enter one, or empty the field.")
    return int(value) if field.kind is int else value


def plan_lines(
    engine: Any, spec: TrainSpec, defaults: BaseDefaults | None, photos: int, recipe: Recipe | None = None
) -> dict[str, Any]:
    """Values of the plan template: what will be done, and how long and how much it takes where the engine knows."""
    said: Mapping[str, Any] = recipe.train if recipe is not None else {}
    steps = spec.steps or said.get("steps") or (defaults.train_steps if defaults else 0)
    rank = spec.rank or said.get("rank") or (defaults.rank if defaults else 0)
    batches = spec.gradient_accumulation or said.get("gradient_accumulation") or 1
    of_batches = f" of {batches} batches" if batches > 1 else ""
    first = f"{steps} steps{of_batches} on {photos} photo{'' if photos == 1 else 's'}, a LoRA of rank {rank}."
    forecast = getattr(engine, "forecast", None)
    if forecast is None:
        return {"lines": [first], "problem": ""}
    from headshot_ui.forecast import forecast_lines

    try:
        told = forecast(spec)
    except HeadshotError as error:
        return {"lines": [first], "problem": str(error)}
    return {"lines": [first, *forecast_lines(told)], "problem": "" if told.fits else told.advice}
