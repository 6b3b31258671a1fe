"""From the fields of the Generate tab to a request, and back; what can be chosen there. No gradio."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headshot_ui import families
from headshot_ui.errors import HeadshotError, ModelError, SpecError
from headshot_ui.generation.presets import load_presets
from headshot_ui.generation.prompts import render_free
from headshot_ui.runs import Run, list_runs
from headshot_ui.specs import GenerateSpec
from headshot_ui.store import Store
from headshot_ui.ui.abilities import abilities_of
from headshot_ui.ui.gallery import small_addresses
from headshot_ui.ui.lora_files import ENDING, find_lora
from headshot_ui.ui.picture_sets import counted
from headshot_ui.ui.tiles import Tile, chosen_ids, tiles_value
from headshot_ui.usual_base import usual_base

if TYPE_CHECKING:
    from headshot_ui.families.protocol import BaseInfo
    from headshot_ui.generation.presets import Preset
    from headshot_ui.settings import Settings

LATEST, NO_LORA, FILE = "latest", "none", "file"
FILE_OF = "file:"  # before the name of a LoRA file that is kept with the person
#: Fields of the tab in the order of its inputs; the names are those of GenerateSpec.
FIELDS = ("presets", "prompt", "lora", "count", "refine", "seed", "speed", "base", "steps", "guidance_scale",
          "width", "height", "negative_prompt", "lora_scale", "refiner_switch", "refiner_strength",
          "keep_best")  # fmt: skip
#: Those that are seen only when the expert settings are open.
EXPERT = FIELDS[7:]
#: Numbers that are typed, so their fields hold text.
TYPED = ("seed", "steps", "guidance_scale", "width", "height", "refiner_switch", "refiner_strength", "keep_best")
NEVER_NONE = ("count", "seed", "lora_scale", "speed")
WHOLE_NUMBERS = frozenset({"count", "seed", "steps", "width", "height", "keep_best"})
NUMBERS = frozenset({"guidance_scale", "lora_scale", "refiner_switch", "refiner_strength"})
PRESETS_DIR = Path(__file__).resolve().parent.parent / "presets"
TILE_PX = 256
LOOKS = "Looks"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RefineChoice:
    """Whether pictures can be finished by a refiner."""

    default: str  # one of specs.REFINE_WAYS
    reason: str = ""  # why not, in one sentence; "" when it can be done
    offered: bool = True  # refiners are made for bases of this kind


# --- what can be chosen ------------------------------------------------------------------------------------
def look_tiles(settings: Settings, shown_dir: Path) -> list[Tile]:
    """One tile per look, in the order of the presets; ``picture`` is "" where it has none. Raises StoreError."""
    presets = list(load_presets(settings).values())
    found = [thumbnail_of(preset, settings) for preset in presets]
    there = [path for path in found if path is not None]
    pictures = dict(zip(there, small_addresses(there, shown_dir, TILE_PX), strict=True))
    return [
        {"id": preset.id, "title": preset.title, "group": preset.category, "letter": preset.title[:1],
         "picture": "" if path is None else pictures[path]}
        for preset, path in zip(presets, found, strict=True)
    ]  # fmt: skip


def thumbnail_of(preset: Preset, settings: Settings) -> Path | None:
    """The preset's picture beside its file: the person's own first; None where there is none."""
    name = Path(preset.thumbnail).name
    places = (settings.outputs_dir / "presets" / name, PRESETS_DIR / name)
    return next((path for path in places if name and path.is_file()), None)


def usable_runs(store: Store, person: str, base: str | None) -> tuple[Run, ...]:
    """Trainings of a person for this base whose LoRA is there, newest first."""
    runs = list_runs(store, person) if person else ()
    return tuple(run for run in runs if run.spec.base == base and run.lora_path and run.lora_path.is_file())


def base_of(store: Store, person: str, bases: Sequence[BaseInfo]) -> str | None:
    """The base model of the person's newest training that is installed, else the usual one."""
    here = {info.id for info in bases}
    trained = (run.spec.base for run in (list_runs(store, person) if person else ()) if run.lora)
    usual = usual_base(bases, store.settings)
    return next((base for base in trained if base in here), usual.id if usual else None)


def lora_choices(runs: tuple[Run, ...], files: Sequence[Path] = ()) -> list[tuple[str, str]]:
    """(words, value) pairs: the newest training, every training, files from elsewhere, and drawing without any."""
    named = [(f"Training of {run_words(run)}", run.name) for run in runs]
    finished = next((run for run in runs if run.state == "done"), None)
    newest = [(f"Newest training ({run_words(finished)})", LATEST)] if finished else []
    kept = [(f"LoRA file “{path.name}”", FILE_OF + path.name) for path in files]
    none = ("No training: somebody the bare model makes up", NO_LORA)
    return [*newest, *named, *kept, none, ("Add a LoRA file of mine …", FILE)]


def run_words(run: Run) -> str:
    """ "2026-11-22 07:05, 260 steps"."""
    day, _, clock = run.name.partition("_")
    when = f"{day} {clock[:5].replace('-', ':')}".strip()
    broken_off = "" if run.state == "done" else ", broken off"
    return f"{when}, {counted(run.step, 'step')}{broken_off}"


def refine_choice(info: BaseInfo, settings: Settings) -> RefineChoice:
    """What the base model does by itself, and whether a refiner for it is installed."""
    if not abilities_of(info).takes_refiner:
        return RefineChoice("off", offered=False)
    try:
        families.find_refiner(None, info, settings)
    except ModelError as error:
        return RefineChoice("off", str(error))
    return RefineChoice(info.defaults.refine)


# --- the request --------------------------------------------------------------------------------------------
def generate_request(person: str, values: Mapping[str, Any], settings: Settings) -> GenerateSpec:
    """The request of the tab's fields (``values`` by the names in ``FIELDS``; empty means the default).

    Raises SpecError whose ``field`` is one of ``FIELDS`` or "person".
    """
    if not person:
        raise SpecError("person", "Choose a person at the top of the page, or add one.")
    if not values.get("base"):
        raise SpecError("base", "No base model was found: get a complete copy of the program, then start it again.")
    filled = {name: _plain(name, values.get(name)) for name in FIELDS}
    filled["presets"] = _looks(filled["presets"], settings)
    filled["prompt"] = (filled["prompt"] or "").strip()
    if not filled["presets"] and not filled["prompt"]:
        raise SpecError("presets", "Choose at least one look, or write in your own words what to draw.")
    render_free(filled["prompt"], "", "")
    if not filled["lora"]:
        raise SpecError(
            "lora", f"“{person}” has no finished training yet: train first, or choose to draw without a training."
        )
    filled["lora"] = _lora(filled["lora"], person, values["base"], settings)
    required = {name: filled[name] for name in NEVER_NONE if filled[name] is not None}
    rest = {name: value for name, value in filled.items() if name not in NEVER_NONE}
    return GenerateSpec(person=person, **rest, **required)


def _lora(chosen: str, person: str, base: str, settings: Settings) -> str | None:
    """What GenerateSpec.lora says for a choice. Raises SpecError for a file that is gone or does not fit."""
    if chosen == NO_LORA:
        return None
    if chosen == FILE:
        raise SpecError("lora", "Add your LoRA file first, or choose another training.")
    if not chosen.startswith(FILE_OF):
        return chosen
    try:
        info = families.find_base(base, settings)
    except ModelError as error:
        raise SpecError("base", str(error)) from error
    return str(find_lora(Store(settings), person, chosen.removeprefix(FILE_OF), info))


def _plain(name: str, value: Any) -> Any:
    """The value of a field as GenerateSpec wants it; None for an empty one. Raises SpecError for no number."""
    if value is None or value == "":
        return None
    if name not in WHOLE_NUMBERS and name not in NUMBERS:
        return value
    text = str(value).strip().replace(",", ".")
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (name in WHOLE_NUMBERS and number != int(number)):
        raise SpecError(
            name, f"“{value}” is no {'whole ' if name in WHOLE_NUMBERS else ''}number: write one, or nothing."
        )
    if name in WHOLE_NUMBERS:
        return int(text) if text.lstrip("+-").isdigit() else int(number)  # large seeds are more exact than a float
    return number


def _looks(chosen: Any, settings: Settings) -> tuple[str, ...]:
    """The chosen looks there are, in the order of the presets. What the browser sent is only compared."""
    wanted = set(chosen_ids(chosen))
    return tuple(look for look in load_presets(settings) if look in wanted)


def filled_from(spec: GenerateSpec, info: BaseInfo | None, tiles: Sequence[Tile]) -> dict[str, Any]:
    """Values of the fields that make this request again; the base's own defaults are left to it."""
    defaults = info.defaults if info is not None else None
    usual = {} if defaults is None else {
        "steps": defaults.sampling_steps, "guidance_scale": defaults.guidance_scale,
        "refiner_switch": defaults.refiner_switch, "refiner_strength": defaults.refiner_strength,
    }  # fmt: skip
    values = {name: getattr(spec, name) for name in FIELDS}
    values |= {name: None for name, value in usual.items() if values[name] == value}
    values["presets"] = tiles_value(LOOKS, tiles, spec.presets)
    lora = spec.lora or NO_LORA
    values["lora"] = FILE_OF + Path(lora).name if lora.endswith(ENDING) else lora
    values["refine"] = spec.refine or "off"
    for name in (*TYPED, "negative_prompt"):
        values[name] = "" if values[name] is None else str(values[name])
    return values


def amount_words(spec: GenerateSpec) -> str:
    """ "8 pictures: 2 of each of 4 looks"."""
    looks = len(spec.presets) + bool(spec.prompt)
    total = counted(looks * spec.count, "picture")
    return f"{total}: {spec.count} of each of {looks} looks" if looks > 1 else total


def plan_words(engine: Any, spec: Any) -> list[str]:
    """What the engine expects of a request, as plain lines; [] from an engine that cannot tell."""
    forecast = getattr(engine, "forecast", None)
    if forecast is None:
        return []
    try:
        from headshot_ui.forecast import forecast_lines

        return [str(line) for line in forecast_lines(forecast(spec))]
    except HeadshotError as error:
        return [str(error)]
    except Exception:  # whatever is wrong with a plan, it must not keep anybody from starting
        _log.exception("The plan of a request failed")
        return []
