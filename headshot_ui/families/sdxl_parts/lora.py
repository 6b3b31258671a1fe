"""LoRA on the UNet: one that is being trained, or finished ones switched on with weights.

Never fused: taking a fused LoRA off again leaves rounding residue in the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headshot_ui.errors import ModelError
from headshot_ui.families.sdxl_parts.load import quiet
from headshot_ui.families.sdxl_parts.lora_file import LoraFile, read_lora_file

TRAINED = "subject"
TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2")
PREFIX = "unet."


def add_trainable(unet: Any, rank: int, alpha: float, seed: int) -> list[torch.nn.Parameter]:
    """A fresh float32 LoRA on attention and feed-forward layers: A gaussian from ``seed``, B zero.

    Replaces whatever LoRA was on. Returns its parameters in the order of the modules.
    """
    from peft import LoraConfig

    remove_all(unet)
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


def remove_all(unet: Any) -> None:
    """Take every LoRA off; the base is bit-equal to before, without any wrapper left."""
    if getattr(unet, "peft_config", None):
        unet.unload_lora()


def use(unet: Any, loras: Sequence[tuple[Path, float]], family: str) -> None:
    """Make exactly these LoRAs with these weights active. All files are checked before anything changes.

    Raises ModelError when a file is damaged or was made for another family or size.
    """
    files = [read_lora_file(path, unet.config, family) for path, _ in loras]
    for file in files:
        check_fit(file, unet)
    remove_all(unet)
    if not files:
        return
    names = [f"lora_{index}" for index in range(len(files))]
    try:
        with quiet():
            for name, file in zip(names, files, strict=True):
                _load(unet, name, file)
            unet.set_adapters(names, [weight for _, weight in loras])
    except Exception as error:
        remove_all(unet)
        paths = ", ".join(str(path) for path, _ in loras)
        raise ModelError(f"{paths} cannot be used with this base model: choose another LoRA.") from error
    for parameter in unet.parameters():
        parameter.requires_grad_(False)


def _load(unet: Any, name: str, file: LoraFile) -> None:
    unet.load_lora_adapter(
        dict(file.state),
        prefix=PREFIX.rstrip("."),
        network_alphas=file.alphas,
        metadata=file.adapter_metadata,
        adapter_name=name,
    )


def check_fit(file: LoraFile, unet: Any) -> None:
    """Raise ModelError unless every layer of the LoRA exists in ``unet`` with the same widths."""
    modules = dict(unet.named_modules())
    for name, tensor in file.state.items():
        path, _, part = name.removeprefix(PREFIX).rpartition(".lora_")
        if not name.startswith(PREFIX) or not path:
            continue
        module = modules.get(path)
        module = getattr(module, "base_layer", module)
        weight = getattr(module, "weight", None)
        axis = 1 if part.startswith("A") else 0
        if weight is None or weight.shape[axis] != tensor.shape[axis]:
            raise ModelError(f"{file.path} was made for a base model of another size or kind: choose another LoRA.")
