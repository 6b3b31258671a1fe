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
from headshot_ui.families.protocol import BaseDefaults
from headshot_ui.specs import TrainSpec

#: How long to train, as a share of what the base model was made for.
LENGTHS: Mapping[str, float] = {"quick": 0.5, "normal": 1.0, "long": 2.0}
#: Chosen elsewhere on the page.
_NOT_HERE = frozenset({"person", "base", "run"})
_LABELS = {"rank": "LoRA rank", "alpha": "LoRA alpha", "min_snr_gamma": "Min-SNR gamma", "steps": "Steps"}
#: ``BaseDefaults`` calls some fields otherwise.
_BASE_NAMES = {"steps": "train_steps"}


@dataclass(frozen=True)
class Field:
    """One expert setting."""

    name: str  # of the field of TrainSpec
    label: str
    help: str
    kind: type  # bool, int or float
    default: Any  # None: as the base model was made for


@lru_cache(maxsize=1)
def fields() -> tuple[Field, ...]:
    """Every field of ``TrainSpec`` that is not chosen elsewhere, in its order."""
    hints = typing.get_type_hints(TrainSpec)
    return tuple(
        Field(field.name, _label(field.name), _help(field.name), _kind(hints[field.name]), field.default)
        for field in dataclasses.fields(TrainSpec)
        if field.name not in _NOT_HERE
    )


def _label(name: str) -> str:
    return _LABELS.get(name, name.replace("_", " ").capitalize())


def _help(name: str) -> str:
    text = HELP[TrainSpec][name]
    return text[:1].upper() + text[1:]


def _kind(hint: Any) -> type:
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    return kinds[0]  # type: ignore[no-any-return]


def placeholder(field: Field, defaults: BaseDefaults | None) -> str:
    """What an empty field stands for."""
    if field.name == "steps":
        return "as chosen above"
    if field.name == "alpha":
        return "equal to the rank"
    value = getattr(defaults, _BASE_NAMES.get(field.name, field.name), None) if defaults else None
    return "none" if value is None else f"{value:g}"


def length_choices(defaults: BaseDefaults | None) -> list[tuple[str, str]]:
    """Choices of the length: “Normal (400 steps)” and “normal”."""
    if defaults is None:
        return [(name.capitalize(), name) for name in LENGTHS]
    return [(f"{name.capitalize()} ({steps_of(name, defaults)} steps)", name) for name in LENGTHS]


def steps_of(length: str, defaults: BaseDefaults) -> int:
    return max(1, round(defaults.train_steps * LENGTHS.get(length, 1.0)))


def train_request(
    person: str, base: str, defaults: BaseDefaults | None, length: str, values: Sequence[Any]
) -> TrainSpec:
    """The training that was asked for; ``values`` in the order of ``fields()``, as text where they are numbers.

    Raises SpecError, whose ``field`` is one of ``fields()`` or "person".
    """
    given: dict[str, Any] = {}
    for field, value in zip(fields(), values, strict=True):
        if field.kind is bool:
            given[field.name] = bool(value) or field.default  # unticked: off, or decided by the memory
        elif value is not None and str(value).strip():
            given[field.name] = _number(field, str(value))
    if defaults is not None and "steps" not in given and length != "normal":
        given["steps"] = steps_of(length, defaults)
    return TrainSpec(person, base, **given)


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


def plan_lines(engine: Any, spec: TrainSpec, defaults: BaseDefaults | None, photos: int) -> dict[str, Any]:
    """Values of the plan template: what will be done, and how long and how much it takes where the engine knows."""
    steps = spec.steps or (defaults.train_steps if defaults else 0)
    rank = spec.rank or (defaults.rank if defaults else 0)
    first = f"{steps} steps on {photos} photo{'' if photos == 1 else 's'}, a LoRA of rank {rank}."
    forecast = getattr(engine, "forecast", None)
    if forecast is None:
        return {"lines": [first], "problem": ""}
    from headshot_ui.forecast import forecast_lines

    try:
        told = forecast(spec)
    except HeadshotError as error:
        return {"lines": [first], "problem": str(error)}
    return {"lines": [first, *forecast_lines(told)], "problem": "" if told.fits else told.advice}
