"""LoRA in SDXL: one of the UNet that is being trained. Finished ones may change the text encoders too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from headshot_ui.families.lora_parts import in_model
from headshot_ui.families.lora_parts.in_model import TRAINED
from headshot_ui.families.lora_parts.layers import LoraFile
from headshot_ui.families.sdxl_parts import trained_blocks
from headshot_ui.families.sdxl_parts.load import SdxlModules
from headshot_ui.families.sdxl_parts.lora_names import TEXT_1, TEXT_2, UNET
from headshot_ui.families.shared_parts.load import quiet

TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
PREFIX = "unet."


def add_trainable(modules: SdxlModules, rank: int, alpha: float, seed: int) -> list[torch.nn.Parameter]:
    """A fresh float32 LoRA on attention and feed-forward layers: A gaussian from ``seed``, B zero.

    Replaces whatever LoRA was on. Returns its parameters in the order of the modules.
    """
    from peft import LoraConfig

    remove_all(modules)
    unet = modules.unet
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(TARGETS), init_lora_weights="gaussian")
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        unet.add_adapter(config, TRAINED)
    parameters = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    for parameter in parameters:  # in bfloat16 most updates would be rounded away
        parameter.data = parameter.data.float()
    trained_blocks.speed_up(unet, TRAINED)
    return parameters


def trainable_state(unet: Any) -> dict[str, torch.Tensor]:
    """The LoRA being trained as float32 on the CPU, keys ``unet.<module>.lora_A.weight`` and ``…lora_B.weight``."""
    return in_model.trainable_state(unet, PREFIX)


def set_trainable_state(unet: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Put a state of ``trainable_state`` back, exactly. Raises ModelError when it is for another LoRA."""
    in_model.set_trainable_state(unet, state, PREFIX)


def parts(modules: SdxlModules) -> dict[str, Any]:
    """The modules that a LoRA can change and that are in memory, by ``lora_names.PARTS``."""
    found = {UNET: modules.unet, **dict(zip((TEXT_1, TEXT_2), modules.text_encoders, strict=False))}
    return {part: module for part, module in found.items() if module is not None}


def remove_all(modules: SdxlModules) -> None:
    """Take every LoRA off; UNet and text encoders are bit-equal to before, without any wrapper left."""
    in_model.take_off(parts(modules), trained_blocks.slow_down)


def put_on(modules: SdxlModules, chosen: Sequence[Any], loras: Sequence[tuple[LoraFile, float]]) -> None:
    """See ``in_model.put_on_parts``."""
    in_model.put_on_parts(parts(modules), chosen, loras, trained_blocks.slow_down)
