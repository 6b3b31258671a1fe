"""Fields of a request (``specs.py``) become command-line options, so that no option is written twice."""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from headshot_ui.commands.base_option import Unnamed
from headshot_ui.specs import (
    TRAIN_USUAL,
    DownloadSpec,
    ExportSpec,
    GenerateSpec,
    HeadshotsSpec,
    PrepareSpec,
    RestoreSpec,
    Spec,
    TrainSpec,
)

SpecType = TypeVar("SpecType", bound=Spec)

#: Help of every field, for people. A test fails when a field has none.
HELP: dict[type[Spec], dict[str, str]] = {
    PrepareSpec: {
        "person": "name of the person: small letters, digits, - and _ (becomes a folder under outputs/people)",
        "photos": "photos, folders or .zip archives with photos of one person",
        "base": "base model the photos are prepared for",
        "trigger": "word that will stand for this person in prompts (default: the base model's own)",
        "class_word": "plain noun for the person",
        "held_out": "photos kept out of training to measure likeness (default: 2 of ten or more, else 1, 0 below 5)",
        "captions": "phrase: a fixed phrase and what is measured (default); automatic: each photo is described, never "
        "the face (needs florence-2: see “models list”)",
        "recipe": "recipe whose captions and trigger word are taken where you set none, such as flux-original",
    },
    TrainSpec: {
        "person": "name of the person whose prepared photos are learned",
        "base": "base model to train on",
        "run": "name of an unfinished run to continue (default: begin a new one)",
        "steps": "training steps",
        "rank": "size of the LoRA: more can hold more detail and learns by heart more easily",
        "alpha": "strength the LoRA is trained at (default: equal to the rank)",
        "learning_rate": "how far each step goes",
        "batch_size": "photos per step",
        "gradient_accumulation": "batches added up before each step: a larger batch in the same memory",
        "gradient_checkpointing": "none, partial or full: less memory and more time (default: as the memory needs)",
        "min_snr_gamma": "cap on the weight of nearly noiseless steps",
        "caption_dropout": "share of steps trained without a caption",
        "prior_preservation": "also train on generated pictures of other people, against forgetting them",
        "prior_weight": "weight of those pictures",
        "class_pictures": "number of those pictures",
        "seed": "same seed, same training",
        "checkpoint_every": "steps between two checkpoints",
        "sample_every": "steps between two sample pictures",
        "optimizer": "adamw, or adamw8bit: the same in less graphics memory (32 bit where that cannot be used)",
        "size_px": "side of the square photos are learned at, a multiple of 64: smaller is faster and less sharp",
        "recipe": "settings that belong together where you set none: default, original, quick, flux-original, your own",
        "resolutions": "several such sizes, such as 512 768 1024: each photo is learned at each of them",
    },
    GenerateSpec: {
        "person": "name of the person",
        "base": "base model that draws",
        "presets": "ids of headshot presets (default: all of them, unless there is a prompt)",
        "prompt": "your own words; {subject} stands for the person",
        "negative_prompt": "what should not be in the picture",
        "count": "pictures per preset, or of the prompt",
        "seed": "picture number i is drawn with this seed plus i",
        "steps": "sampling steps per picture",
        "guidance_scale": "how strictly the prompt is followed",
        "lora": "name of a training run, path of a .safetensors file, or latest; none is the bare base model",
        "lora_scale": "strength of the LoRA",
        "width": "width in pixels, a multiple of 64",
        "height": "height in pixels, a multiple of 64",
        "keep_best": "keep only this many, the most alike (default: keep all)",
        "refine": "off, ensemble (a refiner draws the last steps) or img2img (it draws over the finished picture)",
        "refiner": "id of the refiner (default: the first one made for the base model)",
        "refiner_switch": "ensemble: share of the noise schedule after which the refiner takes over, 0.05 to 0.95",
        "refiner_strength": "img2img: share of the steps that the refiner draws again, 0.01 to 1",
        "speed": "exact, or fast: guidance ends before the picture does, which changes fine detail a little",
        "guided_share": "share of the steps that are guided, 0 to 1 (default: 1 for exact, 0.6 for fast)",
        "recipe": "settings that belong together where you set none: default, original, quick, flux-original, your own",
    },
    ExportSpec: {
        "person": "name of the person whose folder the files go to",
        "pictures": "pictures to export (default: every picture of the person that has a star)",
        "layouts": "what for: linkedin, cv, badge, full (default: all of them)",
        "file_type": "jpeg, png or webp",
        "quality": "quality of JPEG and WebP, 1 to 100",
        "disclose": "say in the files that the pictures are AI-generated, where other programs look for it",
    },
    RestoreSpec: {
        "person": "name of the person whose folder the results go to",
        "pictures": "picture files, folders or .zip archives; any pictures, not only those made here",
        "restorer": "id of the restorer (default: the best one that is installed)",
        "fidelity_weight": "0 repairs most and may change the face, 1 keeps most of what is there, flaws as well",
        "faces": "numbers of the faces to repair in each picture, the largest is 1 (default: all)",
        "upscale": "enlarge the whole picture 1, 2 or 4 times",
        "parse_face": "blend in along the outline of the face instead of a soft square",
    },
    DownloadSpec: {
        "entries": "ids of the models; “models list” shows them",
        "check_only": "read what is there and name what is damaged; fetch nothing",
    },
    HeadshotsSpec: {
        "restore_best": "repair the faces of this many of the best pictures",
        "export_best": "crop this many of the best pictures for LinkedIn, a CV and a badge",
        "fidelity_weight": "of that repair: 0 repairs most and may change the face, 1 keeps most, flaws as well",
    },
}

#: Fields whose None means "as the base model was made for".
_BASE_DECIDES = frozenset(
    {
        *("steps", "rank", "learning_rate", "batch_size", "min_snr_gamma", "checkpoint_every", "sample_every"),
        *("negative_prompt", "guidance_scale", "width", "height"),
        *("refine", "refiner_switch", "refiner_strength", "size_px"),
    }
)


def add_spec_options(
    parser: argparse._ActionsContainer,
    spec: type[Spec],
    skip: frozenset[str] = frozenset(),
    rename: Mapping[str, str] | None = None,
    defaults: Mapping[str, Any] | None = None,
) -> None:
    """Add one option per field of ``spec``; ``rename`` maps a field to another option name (with underscores)."""
    hints = typing.get_type_hints(spec)
    for field in dataclasses.fields(spec):
        if field.name in skip:
            continue
        name = (rename or {}).get(field.name, field.name)
        given = dict(defaults or {})
        required = field.name not in given and field.default is dataclasses.MISSING
        default = given.get(field.name, None if required else field.default)
        text = (HELP[spec][field.name] + _default_text(field.name, default, required)).replace("%", "%%")
        if isinstance(default, Unnamed):  # found out only when the help is shown
            text += " (default: %(default)s)"
        flag = "--" + name.replace("_", "-")
        if bool in _members(hints[field.name]):
            parser.add_argument(flag, dest=name, action=argparse.BooleanOptionalAction, default=default, help=text)
            continue
        more: dict[str, Any] = {"nargs": "+"} if _is_tuple(hints[field.name]) else {}
        parser.add_argument(
            flag, dest=name, required=required, default=default, help=text,
            type=_value_type(hints[field.name]), metavar=_metavar(hints[field.name]), **more,
        )  # fmt: skip


def build_spec(
    spec: type[SpecType], args: argparse.Namespace, rename: Mapping[str, str] | None = None, **fixed: Any
) -> SpecType:
    """The request the options ask for; ``fixed`` fields win over options. Raises SpecError (exit code 2)."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(spec):
        name = (rename or {}).get(field.name, field.name)
        if field.name in fixed:
            values[field.name] = fixed[field.name]
        elif hasattr(args, name):
            value = getattr(args, name)
            values[field.name] = tuple(value) if isinstance(value, list) else value
    return spec(**values)


def _default_text(name: str, default: Any, required: bool) -> str:
    if required or isinstance(default, (bool, tuple, Unnamed)) or default == "":
        return ""
    if default is None:
        default = TRAIN_USUAL.get(name)
        if default is None:
            return " (default: as the base model was made for)" if name in _BASE_DECIDES else ""
    return f" (default: {default})"


def _members(hint: Any) -> list[Any]:
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return [option for option in typing.get_args(hint) if option is not type(None)]
    return [hint]


def _is_tuple(hint: Any) -> bool:
    return any(typing.get_origin(option) is tuple for option in _members(hint))


def _value_type(hint: Any) -> type:
    """Type of one value: of a tuple's items where it is a tuple."""
    member = _members(hint)[0]
    kind: type = typing.get_args(member)[0] if _is_tuple(hint) else member
    return kind


def _metavar(hint: Any) -> str:
    names: dict[type, str] = {int: "N", float: "X", str: "NAME" if _is_tuple(hint) else "TEXT"}
    return names[_value_type(hint)]
