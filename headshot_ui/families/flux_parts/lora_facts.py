"""LoRA files beside a FLUX.1 that is not loaded: does it fit, what is in it, writing it anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import AGAIN
from headshot_ui.families.flux_parts.configs import transformer_config
from headshot_ui.families.flux_parts.lora_file import OURS, Place, layout_of, place_of, read_lora_file
from headshot_ui.families.flux_parts.lora_names import CLIP, PARTS, T5, TRANSFORMER, part_of
from headshot_ui.families.flux_parts.lora_write import lora_bytes
from headshot_ui.families.lora_parts.layers import commonest
from headshot_ui.families.lora_parts.origin import ForeignLora, made_for
from headshot_ui.families.lora_parts.reading import by_stem, check_kind, check_readable, is_nothing, read_tensors
from headshot_ui.families.lora_parts.relatives import kind_of, rank_of
from headshot_ui.families.lora_parts.writing import known_facts, plain_layers
from headshot_ui.families.protocol import BaseInfo, LoraFacts
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.families.shared_parts.load import quiet


def lora_facts(path: Path, family: str) -> LoraFacts:
    """What a file says and holds, whatever base model it is for. Raises ModelError unless it is a LoRA for FLUX.1.

    Layers are counted as they are in the file: query, key and value are one in kohya's layout.
    """
    check_readable(path)
    tensors, header = read_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_kind(path, header, shapes, family)
    other = made_for(header, shapes, OURS)
    stems = by_stem(path, tensors)
    parts = {stem: part for stem in stems if (part := part_of(stem)) is not None}
    strange = [name for stem, (name, found) in stems.items() if "" in found or not (stem in parts or is_nothing(found))]
    if other or strange or not parts:
        made, at = other or "another kind of base model", (*strange, *tensors)[0]
        raise ForeignLora(f"{path} was made for {made} (“{at}”), not for the family “{family}”: choose another LoRA.")
    if set(parts.values()) == {CLIP} and "family" not in header:
        raise ForeignLora(f"{path} changes CLIP only, and does not say for which base model: choose another LoRA.")
    roles = [stems[stem][1] for stem in parts]
    ranks = [rank for found in roles if (rank := rank_of(found)) is not None]
    alphas = [float(found["alpha"]) for found in roles if "alpha" in found]
    counts = {PARTS[part]: sum(found == part for found in parts.values()) for part in PARTS}
    return LoraFacts(
        family=family,
        layout=layout_of(shapes),
        modules={title: count for title, count in counts.items() if count},
        rank=int(commonest(ranks)) if ranks else 0,
        alpha=commonest(alphas) if alphas else None,
        one_rank=len(set(ranks)) <= 1 and len(set(alphas)) <= 1,
        dtype=str(next(iter(tensors.values())).dtype).removeprefix("torch."),
        header=header,
        kind=" and ".join(sorted({kind_of(found) for found in roles})),
    )


def check_lora(path: Path, info: BaseInfo) -> None:
    """Raise ModelError unless the LoRA fits this base model in every layer. Loads no weights of the base."""
    check_readable(path)  # what is wrong with the file itself comes first, whatever the base is like
    read_lora_file(path, place_in_files(info), info.family)


def lora_in_layout(
    layout: str, source: Path, info: BaseInfo, facts: Mapping[str, str], title: str, dtype: str | None
) -> bytes:
    """See ``protocol.Family.lora_in_layout``. The base's licence, which a LoRA trained on it inherits, is said."""
    place = place_in_files(info)
    file = read_lora_file(source, place, info.family)
    layers = plain_layers(file)
    guided = transformer_config(info).get("guidance_embeds")
    architecture = "flux-1-dev" if guided else "flux-1-schnell"
    known = {"licence": info.licence, **known_facts(file, facts, info), "architecture": architecture}
    return lora_bytes(layout, layers, place, known, title, dtype)


def place_in_files(info: BaseInfo) -> Place:
    """Where LoRAs can go in a base model, from its configs alone. Raises ModelError naming the file at fault."""
    # Folders of a base are called as its parts are.
    encoders = (read_json_file(info.folder / folder / "config.json") for folder in (CLIP, T5))
    configs = tuple(json.dumps(config) for config in (transformer_config(info), *encoders))
    return _place(info.title, info.folder, configs)


@lru_cache(maxsize=4)
def _place(title: str, folder: Path, configs: tuple[str, ...]) -> Place:
    """The networks are built without memory for their weights: under two seconds for the full size."""
    transformer, clip, t5 = (json.loads(config) for config in configs)
    try:
        with quiet(), torch.device("meta"):
            return place_of(title, _empty_modules(transformer, clip, t5))
    except Exception as error:  # the classes raise whatever a strange entry leads to
        raise ModelError(f"{folder} has a config that cannot be used: {AGAIN}.") from error


def _empty_modules(transformer: dict[str, Any], clip: dict[str, Any], t5: dict[str, Any]) -> dict[str, Any]:
    from diffusers import FluxTransformer2DModel
    from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

    return {
        TRANSFORMER: FluxTransformer2DModel.from_config(transformer),
        CLIP: CLIPTextModel(CLIPTextConfig.from_dict(clip)),
        T5: T5EncoderModel(T5Config.from_dict(t5)),
    }
