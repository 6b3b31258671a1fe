"""LoRA in a model: one that is being trained, or finished ones switched on with weights.

Never fused: taking a fused LoRA off again leaves rounding residue.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.lora_parts import linear
from headshot_ui.families.lora_parts.base_layer import computing_dtype
from headshot_ui.families.lora_parts.layers import TEXT_MODEL, Layer, LoraFile
from headshot_ui.families.lora_parts.relatives import Change, RelatedLayer
from headshot_ui.families.shared_parts.load import quiet

TRAINED = "subject"


def trainable_state(denoiser: Any, prefix: str) -> dict[str, torch.Tensor]:
    """The LoRA being trained as float32 on the CPU.

    Keys are ``<prefix><module>.lora_A.weight`` and ``…lora_B.weight``; the prefix ends with a dot.
    """
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(denoiser, adapter_name=TRAINED)
    return {f"{prefix}{name}": tensor.detach().float().cpu().clone() for name, tensor in state.items()}


def set_trainable_state(denoiser: Any, state: Mapping[str, torch.Tensor], prefix: str) -> None:
    """Put a state of ``trainable_state`` back, exactly. Raises ModelError when it is for another LoRA."""
    parameters = {
        f"{prefix}{name.replace(f'.{TRAINED}.', '.')}": parameter
        for name, parameter in denoiser.named_parameters()
        if f".{TRAINED}." in name
    }
    same = parameters.keys() == state.keys() and all(parameters[name].shape == state[name].shape for name in state)
    if not same:
        raise ModelError("The saved LoRA does not belong to this base model and rank: start a new training run.")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])


def is_trained(denoiser: Any) -> bool:
    """Whether a LoRA that is being trained is on."""
    return TRAINED in (getattr(denoiser, "peft_config", None) or ())


def refresh(denoiser: Any) -> None:
    """Before the denoiser computes: a LoRA in training counts as it is now."""
    if is_trained(denoiser):
        linear.refresh(denoiser)


def take_off(parts: Mapping[str, Any], slow_down: Callable[[Any], None] = linear.slow_down) -> None:
    """Take every LoRA off these modules; they are bit-equal to before, without any wrapper left.

    ``slow_down`` undoes what made training faster: a family that does more than ``linear.speed_up`` gives its own.
    """
    from diffusers.utils import recurse_remove_peft_layers

    for module in parts.values():
        if _has_lora(module):
            slow_down(module)
            recurse_remove_peft_layers(module)
            del module.peft_config
            module._hf_peft_config_loaded = False


def put_on_parts(
    parts: Mapping[str, Any],
    chosen: Sequence[Any],
    loras: Sequence[tuple[LoraFile, float]],
    slow_down: Callable[[Any], None] = linear.slow_down,
) -> None:
    """These LoRAs with these weights onto those of the ``chosen`` modules that have none on, wherever they are.

    ``parts`` has the modules in memory by what their layers' names begin with in a ``LoraFile``. Raises ModelError;
    then no LoRA is on at all. ``slow_down`` as for ``take_off``.
    """
    weights = {f"lora_{index}": weight for index, (_, weight) in enumerate(loras)}
    try:
        for part, module in parts.items():
            if any(module is one for one in chosen) and not _has_lora(module):
                layers = {name: file.of_part(part) for name, (file, _) in zip(weights, loras, strict=True)}
                with quiet():
                    _put_on(module, layers, weights)
    except Exception as error:
        take_off(parts, slow_down)
        paths = ", ".join(str(file.path) for file, _ in loras)
        raise ModelError(f"{paths} cannot be used with this base model: choose another LoRA.") from error


def _has_lora(module: Any) -> bool:
    return bool(getattr(module, "peft_config", None))


def _put_on(module: Any, loras: Mapping[str, Mapping[str, Layer]], weights: Mapping[str, float]) -> None:
    """LoRAs by name, each path → matrices, onto one module.

    peft makes layers of rank 1 for the places named, which then take the file's own matrices, rank and alpha: its
    settings by pattern take minutes where every layer has a rank of its own, and mistake one name for another.
    """
    from peft import LoraConfig, inject_adapter_in_model

    used = {name: layers for name, layers in loras.items() if layers}
    for name, layers in used.items():
        paths = {_path_in(module, path): layer for path, layer in layers.items()}
        config = LoraConfig(r=1, lora_alpha=1, target_modules=list(paths), init_lora_weights=False)
        wanted = {f"{path}.lora_A.weight": torch.empty(1) for path in paths}  # only the names are looked at
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


def _fill(place: Any, name: str, layer: Layer, weight: float) -> None:
    """One layer's own matrices, rank and alpha, times the weight it is used with.

    Frozen, because torch multiplies by trainable matrices in another order, which changes the last bits of a picture.
    """
    base = place.get_base_layer()
    if isinstance(layer, RelatedLayer):  # peft's own of these names know neither cores nor a DoRA at another weight
        place.lora_A[name], place.lora_B[name] = Change(base, layer), torch.nn.Identity()
    else:
        for made, tensor in ((place.lora_A[name], layer.down), (place.lora_B[name], layer.up)):
            moved = tensor.to(base.weight.device, computing_dtype(base), copy=True)
            made.weight = torch.nn.Parameter(moved, requires_grad=False)
        place.r[name], place.lora_alpha[name] = layer.rank, layer.strength
    place.set_scale(name, weight)
