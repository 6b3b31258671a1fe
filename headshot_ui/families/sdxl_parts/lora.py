"""LoRA in the model: one of the UNet that is being trained, or finished ones switched on with weights.

Finished ones may change the text encoders too. Never fused: taking a fused LoRA off again leaves rounding residue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.sdxl_parts.load import SdxlModules, quiet
from headshot_ui.families.sdxl_parts.lora_file import LoraFile, LoraLayer
from headshot_ui.families.sdxl_parts.lora_names import TEXT_1, TEXT_2, TEXT_MODEL, UNET

TRAINED = "subject"
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
    return parameters


def trainable_state(unet: Any) -> dict[str, torch.Tensor]:
    """The LoRA being trained as float32 on the CPU, keys ``unet.<module>.lora_A.weight`` and ``…lora_B.weight``."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(unet, adapter_name=TRAINED)
    return {f"{PREFIX}{name}": tensor.detach().float().cpu().clone() for name, tensor in state.items()}


def set_trainable_state(unet: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Put a state of ``trainable_state`` back, exactly. Raises ModelError when it is for another LoRA."""
    parameters = {
        f"{PREFIX}{name.replace(f'.{TRAINED}.', '.')}": parameter
        for name, parameter in unet.named_parameters()
        if f".{TRAINED}." in name
    }
    same = parameters.keys() == state.keys() and all(parameters[name].shape == state[name].shape for name in state)
    if not same:
        raise ModelError("The saved LoRA does not belong to this base model and rank: start a new training run.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def parts(modules: SdxlModules) -> dict[str, Any]:
    """The modules that a LoRA can change and that are in memory, by ``lora_names.PARTS``."""
    found = {UNET: modules.unet, **dict(zip((TEXT_1, TEXT_2), modules.text_encoders, strict=False))}
    return {part: module for part, module in found.items() if module is not None}


def is_trained(unet: Any) -> bool:
    """Whether a LoRA that is being trained is on."""
    return TRAINED in (getattr(unet, "peft_config", None) or ())


def remove_all(modules: SdxlModules) -> None:
    """Take every LoRA off; UNet and text encoders are bit-equal to before, without any wrapper left."""
    from diffusers.utils import recurse_remove_peft_layers

    for module in parts(modules).values():
        if _has_lora(module):
            recurse_remove_peft_layers(module)
            del module.peft_config
            module._hf_peft_config_loaded = False


def put_on(modules: SdxlModules, chosen: Sequence[Any], loras: Sequence[tuple[LoraFile, float]]) -> None:
    """These LoRAs with these weights onto those of the ``chosen`` modules that have none on, wherever they are.

    Raises ModelError; then no LoRA is on at all.
    """
    weights = {f"lora_{index}": weight for index, (_, weight) in enumerate(loras)}
    try:
        for part, module in parts(modules).items():
            if any(module is one for one in chosen) and not _has_lora(module):
                layers = {name: file.of_part(part) for name, (file, _) in zip(weights, loras, strict=True)}
                with quiet():
                    _put_on(module, layers, weights)
    except Exception as error:
        remove_all(modules)
        paths = ", ".join(str(file.path) for file, _ in loras)
        raise ModelError(f"{paths} cannot be used with this base model: choose another LoRA.") from error


def _has_lora(module: Any) -> bool:
    return bool(getattr(module, "peft_config", None))


def _put_on(module: Any, loras: Mapping[str, Mapping[str, LoraLayer]], weights: Mapping[str, float]) -> None:
    """LoRAs by name, each path → matrices, onto one module.

    peft makes layers of rank 1 for the places named, which then take the file's own matrices, rank and alpha: its
    settings by pattern take minutes where every layer has a rank of its own, and mistake one name for another.
    """
    from peft import LoraConfig, inject_adapter_in_model

    used = {name: layers for name, layers in loras.items() if layers}
    for name, layers in used.items():
        paths = {_path_in(module, path): layer for path, layer in layers.items()}
        config = LoraConfig(r=1, lora_alpha=1, target_modules=list(paths), init_lora_weights=False)
        wanted = {f"{path}.lora_A.weight": layer.down for path, layer in paths.items()}
        inject_adapter_in_model(config, module, adapter_name=name, state_dict=wanted)
        for path, layer in paths.items():
            _fill(module.get_submodule(path), name, layer, weights[name])
    if used:
        for layer in module.modules():
            if hasattr(layer, "base_layer") and hasattr(layer, "lora_A"):
                layer.set_adapter([name for name in used if name in layer.lora_A])
        module._hf_peft_config_loaded = True
        module.requires_grad_(False)


def _path_in(module: Any, path: str) -> str:
    """The path of a layer in this module, whose ``text_model`` depends on the version of transformers."""
    shorter = path.removeprefix(TEXT_MODEL)
    return shorter if path != shorter and not hasattr(module, TEXT_MODEL.rstrip(".")) else path


def _fill(place: Any, name: str, layer: LoraLayer, weight: float) -> None:
    """One layer's own matrices, rank and alpha, times the weight it is used with.

    Frozen, because torch multiplies by trainable matrices in another order, which changes the last bits of a picture.
    """
    base = place.get_base_layer().weight
    for made, tensor in ((place.lora_A[name], layer.down), (place.lora_B[name], layer.up)):
        made.weight = torch.nn.Parameter(tensor.to(base.device, base.dtype, copy=True), requires_grad=False)
    place.r[name], place.lora_alpha[name] = layer.rank, layer.strength
    place.set_scale(name, weight)
