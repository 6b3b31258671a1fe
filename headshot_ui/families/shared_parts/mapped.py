"""One part of a base model whose weights are mapped from safetensors files, not read.

A mapped file costs nothing until its numbers are needed, and then the system copies them from where it keeps them
anyway. The module is built without memory for its weights, without first values for them, and pointed at those: half
the processor time of the libraries' loaders.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headshot_ui.families.shared_parts.files import read_json_file, weight_files
from headshot_ui.memory import StoredTensor, read_header

#: Number formats as safetensors calls them.
STORED = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
_WHOLE_NUMBERS = ("I64", "I32")  # positions
#: Bytes of the file that are in memory beside the model while numbers are changed.
AT_A_TIME = 2**28

_log = logging.getLogger(__name__)


def read_mapped(kind: Any, folder: Path, part: str, dtype: torch.dtype) -> Any | None:
    """The part as a model of the class ``kind``, built by ``folder``/``part``/config.json, in ``dtype`` on the CPU.

    None where its files do not hold exactly what the model is made of: the libraries know older layouts, and say what
    is missing.
    """
    try:
        model = empty_model(kind, read_json_file(folder / part / "config.json"))
        wanted = model.state_dict()
        state: dict[str, torch.Tensor] = {}
        for path in weight_files(folder, part):
            state |= mapped_tensors(path, "", dtype)
        state = as_named_here(state, wanted)
        tied = getattr(model, "_tied_weights_keys", None) or {}  # one tensor under two names, of which files hold one
        state = {name: state[source] for name, source in tied.items() if source in state} | state
        if all(name in state and state[name].shape == empty.shape for name, empty in wanted.items()):
            filled(model, {name: state[name] for name in wanted}, dtype)
            if tied:
                model.tie_weights()
            return model
    except Exception as error:  # whatever it is, the other way will say it better
        _log.info("%s is not mapped: %s", folder / part, error)
    return None


def empty_model(kind: Any, config: dict[str, Any]) -> Any:
    """The model without memory for its weights; buffers, which are in no file, are real.

    Weights without memory need no first values either: drawing those would take as long as all the rest. Raises
    ValueError for a buffer that is not known here.
    """
    from diffusers.models.modeling_utils import no_init_weights
    from transformers import PreTrainedModel

    with torch.device("meta"), no_init_weights():
        made = kind(kind.config_class(**config)) if issubclass(kind, PreTrainedModel) else kind.from_config(config)
    for module in made.modules():
        for name, buffer in module._buffers.items():
            if name != "position_ids":
                raise ValueError(f"the buffer {name} is not known")
            module._buffers[name] = torch.arange(buffer.shape[-1]).expand(buffer.shape)  # as all of CLIP's are
    return made


def mapped_tensors(path: Path, prefix: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file whose names begin with ``prefix``, in ``dtype``: mapped, or changed copies."""
    from safetensors import safe_open

    stored = [tensor for tensor in read_header(path) if tensor.name.startswith(prefix)]
    ready = all(STORED.get(tensor.dtype) == dtype or tensor.dtype in _WHOLE_NUMBERS for tensor in stored)
    tensors = {}
    for group in [stored] if ready else _groups(stored, AT_A_TIME):
        # All that came through one opening share its mapping, which ends with the last of them.
        with safe_open(path, framework="pt", device="cpu") as file:
            for one in group:
                tensor = file.get_tensor(one.name)
                tensors[one.name] = tensor if ready else _in(tensor, dtype, copy=True)
    return tensors


def _groups(stored: Sequence[StoredTensor], most_bytes: int) -> Iterator[list[StoredTensor]]:
    """In their order, as many at a time as have ``most_bytes``, and at least one."""
    group: list[StoredTensor] = []
    for tensor in stored:
        if group and sum(one.stored_bytes for one in group) + tensor.stored_bytes > most_bytes:
            yield group
            group = []
        group.append(tensor)
    if group:
        yield group


def as_named_here(state: Mapping[str, torch.Tensor], wanted: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """transformers 5 says "encoder.…" where files say "text_model.encoder.…", but for encoders with a projection."""
    if any(name.startswith("text_model.") for name in wanted):
        return dict(state)
    return {name.removeprefix("text_model."): tensor for name, tensor in state.items()}


def filled(model: Any, state: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    """The model with these weights, frozen, fractions in ``dtype``; ``state``, of the right shapes, is used up.

    Each is changed by itself and the stored one let go, so that never two copies of the whole part are there.
    """
    for place, module in model.named_modules():
        for kept in (module._parameters, module._buffers):
            for leaf in list(kept):
                tensor = state.pop(f"{place}.{leaf}" if place else leaf, None)
                if tensor is None:
                    continue
                tensor = _in(tensor, dtype)  # torch's own way of loading asks each module eight things first
                kept[leaf] = torch.nn.Parameter(tensor, requires_grad=False) if kept is module._parameters else tensor
    return model


def _in(tensor: torch.Tensor, dtype: torch.dtype, copy: bool = False) -> torch.Tensor:
    return tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=copy)
