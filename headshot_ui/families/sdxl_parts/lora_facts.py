"""LoRA files beside a base model that is not loaded: does it fit, what is in it, writing it anew."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.bases import AGAIN
from headshot_ui.families.lora_parts.layers import commonest, told_apart
from headshot_ui.families.lora_parts.origin import ForeignLora, made_for
from headshot_ui.families.lora_parts.reading import check_kind, check_readable, read_tensors
from headshot_ui.families.lora_parts.relatives import kind_of, rank_of
from headshot_ui.families.lora_parts.writing import known_facts, plain_layers
from headshot_ui.families.protocol import BaseInfo, LoraFacts
from headshot_ui.families.sdxl_parts.kinds import read_schedule
from headshot_ui.families.sdxl_parts.lora_file import OURS, Place, layout_of, place_of, read_lora_file
from headshot_ui.families.sdxl_parts.lora_names import KOHYA, PARTS, TEXT_1, TEXT_2, UNET, Topology
from headshot_ui.families.sdxl_parts.lora_write import lora_bytes
from headshot_ui.families.shared_parts.files import read_json_file
from headshot_ui.families.shared_parts.load import quiet

_FOLDERS = {UNET: "unet", TEXT_1: "text_encoder", TEXT_2: "text_encoder_2"}


def lora_facts(path: Path, family: str) -> LoraFacts:
    """What a file says and holds, whatever base model it is for. Raises ModelError unless it is a LoRA for SDXL."""
    check_readable(path)
    tensors, header = read_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    check_kind(path, header, shapes, family)
    other = made_for(header, shapes, OURS)
    stems: dict[str, str] = {}  # stem → part
    roles: dict[str, dict[str, torch.Tensor]] = {}  # the tensors of each
    alphas: dict[str, float] = {}
    for name, tensor in tensors.items():
        stem, role = told_apart(name)
        part = _part_of(stem)
        if part is None or not role:
            made = f"for {other}" if other else "for another kind of base model"
            raise ForeignLora(f"{path} was made {made} (“{name}”), not for the family “{family}”: choose another LoRA.")
        stems[stem] = part
        roles.setdefault(stem, {})[role] = tensor
        if role == "alpha":
            alphas[stem] = float(tensor)
    if other:
        raise ForeignLora(f"{path} was made for {other}, not for the family “{family}”: choose another LoRA.")
    ranks = [rank for found in roles.values() if (rank := rank_of(found)) is not None]
    counts = {PARTS[part]: sum(found == part for found in stems.values()) for part in PARTS}
    return LoraFacts(
        family=family,
        layout=layout_of(shapes),
        modules={title: count for title, count in counts.items() if count},
        rank=int(commonest(ranks)) if ranks else 0,
        alpha=commonest(alphas.values()) if alphas else None,
        one_rank=len(set(ranks)) <= 1 and len(set(alphas.values())) <= 1,
        dtype=str(next(iter(tensors.values())).dtype).removeprefix("torch."),
        header=header,
        kind=" and ".join(sorted({kind_of(found) for found in roles.values()})),
    )


def _part_of(stem: str) -> str | None:
    """Which part a stem (see ``layers.told_apart``) belongs to, by its beginning."""
    beginnings = {**{f"{part}_": part for part in (UNET, TEXT_2, TEXT_1)}, "diffusion_model_": UNET, "lycoris_": UNET}
    beginnings |= {prefix: part for part, prefix in KOHYA.items()}
    for beginning in sorted(beginnings, key=len, reverse=True):
        if stem.startswith(beginning):
            return beginnings[beginning]
    return None


def check_lora(path: Path, info: BaseInfo) -> None:
    """Raise ModelError unless the LoRA fits this base model in every layer. Loads no weights of the base."""
    check_readable(path)  # what is wrong with the file itself comes first, whatever the base is like
    read_lora_file(path, place_in_files(info), info.family)


def lora_in_layout(
    layout: str, source: Path, info: BaseInfo, facts: Mapping[str, str], title: str, dtype: str | None
) -> bytes:
    """See ``protocol.Family.lora_in_layout``."""
    place = place_in_files(info)
    file = read_lora_file(source, place, info.family)
    layers = plain_layers(file)
    prediction = str(read_schedule(info).get("prediction_type", "epsilon"))
    known = {**known_facts(file, facts, info), "prediction_type": prediction}
    return lora_bytes(layout, layers, place.topology, known, title, dtype)


def place_in_files(info: BaseInfo) -> Place:
    """Where LoRAs can go in a base model, from its configs alone. Raises ModelError naming the file at fault."""
    configs = tuple(info.folder / folder / "config.json" for folder in _FOLDERS.values())
    for config in configs:
        read_json_file(config)
    return _place(info.title, configs, tuple(config.stat().st_mtime_ns for config in configs))


@lru_cache(maxsize=4)
def _place(title: str, configs: tuple[Path, ...], changed_ns: tuple[int, ...]) -> Place:
    """The networks are built without memory for their weights: under two seconds for the full size."""
    unet, text, text_2 = (read_json_file(config) for config in configs)
    try:
        with quiet(), torch.device("meta"):
            modules = _empty_modules(unet, text, text_2)
        return place_of(title, modules, Topology.of(unet))
    except Exception as error:  # the classes raise whatever a strange entry leads to
        raise ModelError(f"{configs[0].parent.parent} has a config that cannot be used: {AGAIN}.") from error


def _empty_modules(unet: dict[str, Any], text: dict[str, Any], text_2: dict[str, Any]) -> dict[str, Any]:
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    return {
        UNET: UNet2DConditionModel.from_config(unet),
        TEXT_1: CLIPTextModel(CLIPTextConfig.from_dict(text)),
        TEXT_2: CLIPTextModelWithProjection(CLIPTextConfig.from_dict(text_2)),
    }
